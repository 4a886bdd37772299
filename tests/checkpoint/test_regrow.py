"""A directory against what growing gives: whatever was changed in it shows, in any precision, by any operator."""

import json
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from models import batch, build, loss_of
from mupscale import GrowthError
from mupscale.checkpoint.regrowth import regrow, unchanged
from mupscale.cli import main
from mupscale.growth import grow_checkpoint

WEIGHTS, OPTIMIZER = "model.safetensors", "optimizer.pt"
GROWTHS = {
    "copies": {"width": 2, "operator": "duplicate"},
    "copies, gaussian": {"width": 2, "operator": "duplicate", "noise": "gaussian:0.3"},
    "asymmetric": {"width": 2, "operator": "duplicate", "state": "asymmetric"},
    "default": {"width": 2},
    "zero_pad": {
        "axes": {"d_ff": 3},
        "operator": "zero_pad",
        "shrink": {"*": 0.4, "*.mlp.*": 0.6},
        "optimizer": True,
    },
    "expand": {"width": 2, "operator": "expand"},
    "stack": {"axes": {"layers": 2}, "operator": "stack"},
}


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def narrow(request, tmp_path_factory):
    """A checkpoint of a Llama in one precision, with an AdamW that has made three steps."""
    path = tmp_path_factory.mktemp(f"narrow-{request.param}")
    model = build("llama_tied").float()
    optimizer = torch.optim.AdamW(list(model.named_parameters()), lr=3e-3, weight_decay=0.1)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=10)
    for seed in range(3):
        loss_of(model, batch("llama_tied", seed)).backward()
        optimizer.step(), optimizer.zero_grad(), scheduler.step()
    model.to(getattr(torch, request.param)).save_pretrained(path)
    torch.save(optimizer.state_dict(), path / OPTIMIZER)
    torch.save(scheduler.state_dict(), path / "scheduler.pt")
    return path


def test_every_growth_comes_out_the_same_again(narrow, tmp_path):
    for name, how in GROWTHS.items():
        grow_checkpoint(narrow, tmp_path / name, seed=3, max_shard_size="100KB", **how)
        found = regrow(narrow, tmp_path / name)
        assert found, (name, str(found))
        assert found.rounding == 0
        assert unchanged(tmp_path / name).tensors == found.tensors
        with_optimizer = (tmp_path / name / OPTIMIZER).is_file()
        assert with_optimizer == ("optimizer" in how or how.get("operator") == "duplicate")
        weights = 38 if name == "stack" else 20
        assert found.tensors == (4 * weights if with_optimizer else weights)  # exp_avg, exp_avg_sq, step


def test_it_is_as_grown_still_when_transformers_has_saved_it(narrow, tmp_path):
    grow_checkpoint(narrow, tmp_path / "wide", width=2, operator="duplicate")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "wide", dtype="auto")
    model.save_pretrained(tmp_path / "wide", max_shard_size="50KB")
    assert regrow(narrow, tmp_path / "wide")
    assert unchanged(tmp_path / "wide")


@pytest.fixture(scope="module")
def wide(narrow, tmp_path_factory):
    path = tmp_path_factory.mktemp("wide") / "wide"
    grow_checkpoint(narrow, path, width=2, operator="duplicate")
    return path


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_one_weight_or_moment_that_is_off_shows(narrow, wide, tmp_path_factory, data):
    """By 1 % of the tensor's RMS, in bfloat16 too, where outputs would not tell."""
    path = tmp_path_factory.mktemp("off") / "wide"
    shutil.copytree(wide, path)
    weights = load_file(path / WEIGHTS)
    saved = torch.load(path / OPTIMIZER)
    moments = {
        f"{key} {i}": state[key] for i, state in saved["state"].items() for key in ("exp_avg", "exp_avg_sq")
    }
    name = data.draw(st.sampled_from([*weights, *moments]))
    tensor = (weights | moments)[name]
    at = data.draw(st.integers(0, tensor.numel() - 1))
    flat = tensor.view(-1)
    off = 0.01 * tensor.float().square().mean().sqrt()
    while flat[at] + off == flat[at]:  # rounds to the same in this precision
        off *= 2
    flat[at] += off
    save_file(weights, path / WEIGHTS, {"format": "pt"})
    torch.save(saved, path / OPTIMIZER)
    found = regrow(narrow, path)
    assert found.differing == 1
    assert f"1 of {tensor.numel()} numbers" in found.first
    assert unchanged(path).differing == 1


def _json(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def _pickle(path, change):
    data = torch.load(path, weights_only=True)
    change(data)
    torch.save(data, path)


def _swapped(saved):
    state = saved["state"][0]
    state["exp_avg"], state["exp_avg_sq"] = state["exp_avg_sq"], state["exp_avg"]


CHANGES = {
    "config.json: rope": ("config.json", lambda c: c["rope_parameters"].update(rope_theta=5e5)),
    "config.json: hidden_act": ("config.json", lambda c: c.update(hidden_act="gelu")),
    "config.json: rms_norm_eps": ("config.json", lambda c: c.update(rms_norm_eps=1e-3)),
    "optimizer.pt: param_groups": (OPTIMIZER, lambda s: s["param_groups"][0].update(lr=1.0)),
    "optimizer.pt: exp_avg of": (OPTIMIZER, _swapped),
    "optimizer.pt: exp_avg_sq of": (OPTIMIZER, lambda s: s["state"][3]["exp_avg_sq"].fill_(torch.nan)),
    "optimizer.pt: step of": (OPTIMIZER, lambda s: s["state"][1]["step"].add_(1)),
    "optimizer.pt: what it holds for": (OPTIMIZER, lambda s: s["state"][2].pop("exp_avg")),
    "optimizer.pt: parameters": (OPTIMIZER, lambda s: s["state"].pop(4)),
    "scheduler.pt": ("scheduler.pt", lambda s: s.update(last_epoch=0)),
}


@pytest.mark.parametrize("place", CHANGES)
def test_a_change_beside_the_weights_shows(place, narrow, wide, tmp_path):
    shutil.copytree(wide, tmp_path / "wide")
    file, change = CHANGES[place]
    (_json if file.endswith("json") else _pickle)(tmp_path / "wide" / file, change)
    found = regrow(narrow, tmp_path / "wide")
    assert not found
    assert f"wide/{place}" in found.first, found.first


def test_what_another_machine_grew_may_be_rounded_otherwise(narrow, wide, tmp_path):
    shutil.copytree(wide, tmp_path / "wide")
    weights = load_file(wide / WEIGHTS)
    one = weights["model.layers.0.mlp.up_proj.weight"]
    one[3, 5] = torch.nextafter(one[3, 5], one[3, 5] + 1)
    save_file(weights, tmp_path / "wide" / WEIGHTS, {"format": "pt"})
    assert not regrow(narrow, tmp_path / "wide")
    _json(tmp_path / "wide/mupscale.json", lambda m: m.update(machine="another"))
    found = regrow(narrow, tmp_path / "wide")
    assert found
    assert "but for rounding" in str(found)
    one[3, 5] *= 1.1
    save_file(weights, tmp_path / "wide" / WEIGHTS, {"format": "pt"})
    assert not regrow(narrow, tmp_path / "wide")


def test_verify_tells_it_by_its_exit_status(narrow, wide, tmp_path, capsys):
    argv = ["verify", str(narrow), str(tmp_path / "wide")]
    shutil.copytree(wide, tmp_path / "wide")
    alone = ["verify", str(tmp_path / "wide")]
    assert main(argv) == main([*argv, "--files-only"]) == main(alone) == 0
    assert "as grown: config and 80 tensors are what duplicate" in capsys.readouterr().out
    _pickle(tmp_path / "wide" / OPTIMIZER, lambda s: s["state"][0]["exp_avg"].mul_(2))
    assert main(argv) == main([*argv, "--files-only"]) == main(alone) == 1
    said = capsys.readouterr().out
    assert "NOT as grown: 1 of the config's fields and 80 tensors" in said
    assert "\nequal: " in said
    assert "exp_avg of model.embed_tokens.weight" in said
    assert main([*argv, "--files-only", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["as_grown"] is False


@pytest.mark.parametrize("how", ["--operator zero_pad", "--operator duplicate --noise gaussian:1"])
def test_a_growth_that_is_to_change_the_function_passes_when_it_is_as_grown(how, narrow, tmp_path, capsys):
    wide = str(tmp_path / "wide")
    capsys.readouterr()
    assert main(["grow", str(narrow), wide, "--width", "2", *how.split()]) == 0
    assert main(["verify", str(narrow), wide]) == 0
    said = capsys.readouterr().out
    assert f"not the same function, as {how.split()[1]}" in said
    assert "is not to keep it: outputs differ by at most" in said
    assert main(["verify", str(narrow), wide, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert not found["equal"]
    assert found["regrown"]["as_grown"]
    assert found["regrown"]["keeps_function"] is False
    weights = load_file(f"{wide}/{WEIGHTS}")
    weights["model.norm.weight"] += 1
    save_file(weights, f"{wide}/{WEIGHTS}", {"format": "pt"})
    assert main(["verify", str(narrow), wide]) == 1
    assert "NOT as grown: 1 of" in capsys.readouterr().out


def test_a_source_that_is_another_is_told_from_a_wide_model_that_was_changed(narrow, wide, tmp_path):
    other = shutil.copytree(narrow, tmp_path / "narrow")
    weights = load_file(other / WEIGHTS)
    weights["model.norm.weight"] += 1
    save_file(weights, other / WEIGHTS, {"format": "pt"})
    with pytest.raises(GrowthError, match="narrow: its weights are not those that .*wide was grown from"):
        regrow(other, wide)


def test_without_what_growing_needs_it_says_so(narrow, wide, tmp_path, capsys):
    shutil.copytree(wide, tmp_path / "wide")
    shutil.copytree(narrow, tmp_path / "narrow")
    (tmp_path / "narrow" / OPTIMIZER).unlink()
    with pytest.raises(GrowthError, match="its optimizer is gone"):
        regrow(tmp_path / "narrow", tmp_path / "wide")
    _json(tmp_path / "wide/mupscale.json", lambda m: m.pop("sha256"))
    assert main(["verify", str(tmp_path / "wide")]) == 2
    assert "holds no checksums; compare with what it was grown from" in capsys.readouterr().err
    (tmp_path / "wide/mupscale.json").unlink()
    assert main(["verify", str(narrow), str(tmp_path / "wide"), "--files-only"]) == 2
    assert "verify without --files-only" in capsys.readouterr().err
    assert main(["verify", str(narrow), str(tmp_path / "wide"), "--files-only", "--steps", "2"]) == 2
