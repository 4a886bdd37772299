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
from mupscale.checkpoint.differences import difference
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
    "many digits": {"width": 2, "operator": "zero_pad", "shrink": {"*": 1 / 3, "*.mlp.*": 2 / 3}},
    "noise of many digits": {"width": 2, "operator": "duplicate", "noise": f"gaussian:{1 / 3}"},
    "stack": {"axes": {"layers": 2}, "operator": "stack"},
}


@pytest.fixture(scope="module", params=[pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
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


@settings(max_examples=20)
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


@pytest.fixture(scope="module")
def tensors_beside(tmp_path_factory):
    """A checkpoint whose optimizer's learning rates are tensors, with more numbers beside its state."""
    path = tmp_path_factory.mktemp("beside")
    model = build("llama_tied").float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(3e-3), foreach=False)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=10)
    loss_of(model, batch("llama_tied", 0)).backward()
    optimizer.step(), scheduler.step()
    model.save_pretrained(path)
    scaler = {"scale": torch.tensor(2.0), "growth": [torch.tensor(7), torch.ones(20000)[None, 5]]}
    torch.save({**optimizer.state_dict(), "scaler": scaler}, path / OPTIMIZER)
    torch.save(scheduler.state_dict(), path / "scheduler.pt")
    return path


def test_tensors_beside_the_state_are_written_and_compared(tensors_beside, tmp_path):
    wide, other = tmp_path / "wide", tmp_path / "other"
    grow_checkpoint(tensors_beside, wide, width=2, operator="duplicate")
    saved, narrow = (torch.load(path / OPTIMIZER) for path in (wide, tensors_beside))
    (group,) = narrow["param_groups"]
    for grown in saved["param_groups"]:
        for key in ("lr", "initial_lr"):
            assert grown[key] == pytest.approx(float(group[key]) * grown["lr_scale"]), key
    assert saved["scaler"] == narrow["scaler"]
    found = regrow(tensors_beside, wide)
    assert found
    assert unchanged(wide)
    assert unchanged(wide).tensors == found.tensors == 4 * 20 + 3 + 2 * len(saved["param_groups"])
    for place, change in {
        "param_groups 1 lr": lambda s: s["param_groups"][1]["lr"].mul_(1 + 1e-6),
        "scaler scale": lambda s: s["scaler"]["scale"].mul_(2),
        "scaler growth 0": lambda s: s["scaler"]["growth"][0].add_(1),
        "scaler more": lambda s: s["scaler"].update(more=torch.ones(1)),
    }.items():
        shutil.rmtree(other, ignore_errors=True)
        shutil.copytree(wide, other)
        _pickle(other / OPTIMIZER, change)
        for told in (regrow(tensors_beside, other), unchanged(other)):
            assert told.differing == 1
            assert f"other/{OPTIMIZER}: {place}" in told.first


def test_averages_beside_the_state_are_not_left_at_the_narrow_model_s_shape(tensors_beside, tmp_path):
    shutil.copytree(tensors_beside, tmp_path / "narrow")
    averages = {"model.norm.weight": torch.ones(12)}
    _pickle(tmp_path / "narrow" / OPTIMIZER, lambda s: s.update(ema=averages))
    with pytest.raises(GrowthError, match=r"optimizer\.pt: ema model\.norm\.weight: holds a tensor of shape"):
        grow_checkpoint(tmp_path / "narrow", tmp_path / "wide", width=2, operator="duplicate")
    assert not (tmp_path / "wide").exists()
    grow_checkpoint(tmp_path / "narrow", tmp_path / "wide", width=2, operator="duplicate", optimizer=False)


def test_tensors_among_other_values_are_compared_to_the_last_bit():
    one, other = torch.tensor(0.003), torch.tensor(0.00300009)
    assert difference({"base_lrs": [one]}, {"base_lrs": [one.clone()]}) == 0
    for found in (other, one.double(), one[None]):
        assert difference({"base_lrs": [one]}, {"base_lrs": [found]})


@pytest.mark.parametrize("lost", ["all", "a weight", "a moment"])
def test_without_a_checksum_nothing_counts_as_unchanged(lost, narrow, wide, tmp_path, capsys):
    shutil.copytree(wide, tmp_path / "wide")
    gone = {"a weight": "model.norm.weight", "a moment": f"{OPTIMIZER} 3 exp_avg"}.get(lost)
    _json(
        tmp_path / "wide/mupscale.json", lambda m: m["sha256"].pop(gone) if gone else m.update({"sha256": {}})
    )
    assert unchanged(tmp_path / "wide").differing == (1 if gone else 80)
    assert main(["verify", str(tmp_path / "wide")]) == 1
    said = capsys.readouterr().out
    assert "CHANGED: " in said
    assert "has no checksum in mupscale.json" in said


def test_verify_tells_it_by_its_exit_status(narrow, wide, tmp_path, capsys):
    argv = ["verify", str(narrow), str(tmp_path / "wide")]
    shutil.copytree(wide, tmp_path / "wide")
    alone = ["verify", str(tmp_path / "wide")]
    assert main(argv) == main([*argv, "--files-only"]) == main(alone) == 0
    said = capsys.readouterr().out
    assert "as grown: config and 80 tensors are what duplicate" in said
    assert "unchanged: config and 80 tensors have the checksums that growing (duplicate, noise bal" in said
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
    assert f"not the same function: {how.split()[1]}" in said
    assert "does not keep it; outputs differ by at most" in said
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
