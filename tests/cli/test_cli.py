"""The command line as a user meets it."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import mupscale
from models import CONFIGS, batch, build, loss_of
from mupscale.cli import COMMANDS, main, names
from mupscale.operators.catalogue import DEFAULT, OPERATORS
from mupscale.theory.registry import optimizer_names


@pytest.fixture
def pair(tmp_path, capsys):
    build("qwen3_tied").float().save_pretrained(tmp_path / "narrow")
    assert (
        main(
            [
                "grow",
                str(tmp_path / "narrow"),
                str(tmp_path / "wide"),
                "--width",
                "2",
                "--operator",
                "duplicate",
            ]
        )
        == 0
    )
    capsys.readouterr()
    return str(tmp_path / "narrow"), str(tmp_path / "wide")


def run_json(capsys, *argv):
    status = main([*argv, "--json"])
    captured = capsys.readouterr()
    assert captured.err == ""
    return status, json.loads(captured.out)


def test_verify_says_equal_and_after_one_changed_weight_where_not(pair, capsys, tmp_path):
    status, report = run_json(capsys, "verify", *pair)
    assert (status, report["equal"]) == (0, True)
    assert report["max_abs_diff"] < 1e-4 * report["logits_std"]
    file = tmp_path / "wide/model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.down_proj.weight"][3, 5] += 0.1
    save_file(tensors, file)
    status, report = run_json(capsys, "verify", *pair)
    assert (status, report["equal"]) == (1, False)
    assert report["first_deviation"] == "model.layers.1.mlp.down_proj"


def test_help_lists_the_commands_on_a_page(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    told = capsys.readouterr().out
    assert all(command in told for command in COMMANDS)
    assert told.count("Example") == 2
    assert told.count("\n") <= 48
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert f"Example: mupscale {command}" in " ".join(capsys.readouterr().out.split())


def test_a_width_may_be_a_fraction(pair, capsys, tmp_path):
    assert main(["grow", pair[0], str(tmp_path / "half"), "--width", "1.5", "--axes", "d_ff=5/4"]) == 0
    narrow, wide = (
        mupscale.Plan.load(tmp_path / "half").__getattribute__(c) for c in ("narrow_config", "config")
    )
    assert wide.hidden_size == narrow.hidden_size * 1.5
    assert wide.intermediate_size == narrow.intermediate_size * 1.25
    capsys.readouterr()
    for given in ("x", "1e9", "3/0", "-2"):
        assert main(["plan", pair[0], f"--width={given}"]) == 2
        assert capsys.readouterr().err.endswith(
            "expected a factor, such as 2; or a fraction, as 3/2 or 1.5\n"
        )


def test_where_nothing_grows_nothing_is_written(pair, capsys, tmp_path):
    assert main(["grow", pair[0], str(tmp_path / "same"), "--to", f"{pair[0]}/config.json"]) == 2
    assert capsys.readouterr().err.startswith("mupscale: nothing grows: ")
    assert not (tmp_path / "same").exists()


def test_verify_works_without_a_manifest(pair, capsys, tmp_path):
    (tmp_path / "wide/mupscale.json").unlink()
    status, report = run_json(capsys, "verify", *pair, "--steps", "2")
    assert (status, report["steps"]) == (0, 2)
    assert 0 <= report["max_loss_diff"] < 1e-8


def test_plan_gives_every_row_as_json_and_a_table(pair, capsys):
    status, plan = run_json(capsys, "plan", pair[0], "--width", "2", "--axes", "d_ff=3")
    assert status == 0
    assert plan["growth"] == {"d_model": "2", "d_ff": "3", "kv_heads": "2"}
    row = next(r for r in plan["rows"] if r["parameter"] == "model.layers.*.mlp.down_proj.weight")
    assert (row["count"], row["copies"], row["adam_lr"]) == (2, 6, pytest.approx(1 / 3))
    assert main(["plan", pair[0], "--width", "2"]) == 0
    assert "(kv_heads q_per_kv head_dim) [d_model]" in capsys.readouterr().out


def test_plan_to_a_config_file(pair, capsys, tmp_path):
    status, plan = run_json(capsys, "plan", pair[0], "--to", str(tmp_path / "wide/config.json"))
    assert (status, plan["growth"]["d_model"]) == (0, "2")


def test_hparams_are_the_groups_of_the_library(pair, capsys):
    status, result = run_json(
        capsys, "hparams", pair[1], "--optimizer", "adamw", "--lr", "3e-3", "--weight-decay", "0.1"
    )
    assert status == 0
    group = next(g for g in result["groups"] if "model.layers.0.mlp.up_proj.weight" in g["param_names"])
    assert (group["lr"], group["weight_decay"], group["lr_scale"]) == (1.5e-3, 0.2, 0.5)
    status, split = run_json(
        capsys,
        "hparams",
        pair[1],
        "--lr",
        "1e-3",
        "--trainer-split",
        "--weight-decay",
        "0.1",
    )
    assert status == 0
    for group in split["groups"]:  # as the Trainer does, none of norms and biases
        kinds = {"norm" in name or name.endswith("bias") for name in group["param_names"]}
        assert kinds == {group["weight_decay"] == 0}
    assert main(["hparams", pair[1], "--lr", "1e-3", "--optimizer", "muon"]) == 0
    assert "the rest goes to AdamW" in capsys.readouterr().out
    assert main(["hparams", pair[1], "--lr", "1", "--optimizer", "rprop", "--weight-decay", "0.1"]) == 2
    assert main(["hparams", pair[0], "--lr", "1e-3"]) == 2
    assert main(["hparams", pair[1], "--lr", "-1"]) == 2
    assert main(["hparams", pair[1], "--lr", "1", "--optimizer", "lion"]) == 2


def test_hparams_of_a_plain_module_are_refused_in_one_line(tmp_path, capsys):
    def make(width):
        return torch.nn.Sequential(torch.nn.Linear(4, 8 * width), torch.nn.Linear(8 * width, 2))

    mupscale.plan(make, width=2).save(tmp_path)
    assert main(["hparams", str(tmp_path), "--lr", "1e-3"]) == 2
    error = capsys.readouterr().err
    assert "is no transformers model" in error
    assert "mupscale.param_groups" in error
    assert error.count("\n") == 1


def test_hparams_go_by_batch_size_and_tokens_as_the_groups_of_the_library_do(pair, capsys):
    argv = ["hparams", pair[1], "--lr", "3e-3", "--weight-decay", "0.1", "--betas", "0.9", "0.95"]
    before = run_json(capsys, *argv)[1]["groups"]
    status, result = run_json(capsys, *argv, "--batch-size", "0.5M", "2M", "--tokens", "1.4B", "22.4B")
    assert status == 0
    for was, group in zip(before, result["groups"], strict=True):
        assert group["param_names"] == was["param_names"]
        for key, factor in {"lr": 0.5, "lr_scale": 0.5, "weight_decay": 0.5, "eps": 2}.items():
            assert group[key] == pytest.approx(factor * was[key])
        assert group["betas"] == pytest.approx([0.9**0.25, 0.95**0.25])
    plan = mupscale.Plan.load(pair[1])
    groups = mupscale.param_groups(
        AutoModelForCausalLM.from_pretrained(pair[1]),
        plan,
        torch.optim.AdamW,
        lr=3e-3,
        weight_decay=0.1,
        betas=(0.9, 0.95),
        batch_size=(0.5e6, 2e6),
        tokens=(1.4e9, 22.4e9),
    )
    of_library = [{k: v for k, v in g.items() if k != "params"} for g in groups]
    assert result["groups"] == json.loads(json.dumps(of_library))
    assert main([*argv, "--batch-size", "64", "16"]) == 0
    assert "4 × the narrow model's steps: lr and decoupled weight decay × 0.5" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--batch-size", "64", "none"], "--batch-size 'none': expected a number above 0"),
        (["--tokens", "0", "1B"], "--tokens '0': expected a number above 0"),
        (["--tokens", "1B"], "--tokens"),
        (
            ["--tokens", "1B", "4B", "--optimizer", "sgd"],
            "SGD: no rule is published for both batch size and tokens",
        ),
        (["--batch-size", "64", "256", "--optimizer", "muon"], "Muon: no rule is published for both"),
    ],
)
def test_batch_sizes_and_tokens_that_cannot_be_are_refused_in_one_line(words, said, pair, capsys):
    assert main(["hparams", pair[1], "--lr", "1e-3", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_shows_an_example(command, capsys):
    with pytest.raises(SystemExit) as exit:
        main([*([command] if command else []), "--help"])
    assert not exit.value.code
    assert f"Example: mupscale {command or ''}" in " ".join(capsys.readouterr().out.split())


def test_no_traceback_from_the_shell():
    """Refused by our own code, before torch is imported."""
    command = [sys.executable, "-m", "mupscale", "grow", "a", "b", "--dtype", "int3"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("mupscale: ")
    assert result.stderr.count("\n") == 1


def test_gaussian_noise_is_said_to_change_the_function(pair, capsys, tmp_path):
    other = str(tmp_path / "noisy")
    assert (
        main(["grow", pair[0], other, "--width", "2", "--operator", "duplicate", "--noise", "gaussian:0.5"])
        == 0
    )
    assert main(["verify", pair[0], other]) == 0
    assert "not the same function: duplicate, noise gaussian:0.5" in capsys.readouterr().out
    assert torch.isfinite(load_file(f"{other}/model.safetensors")["model.norm.weight"]).all()


def test_zero_pad_reaches_any_larger_config_and_verify_says_by_how_much_it_differs(pair, capsys, tmp_path):
    narrow, _ = pair
    config = CONFIGS["qwen3_tied"]()
    config.hidden_size, config.intermediate_size = 40, 50
    config.save_pretrained(tmp_path / "target")
    wide = str(tmp_path / "padded")
    argv = ["grow", narrow, wide, "--to", str(tmp_path / "target"), "--operator", "zero_pad"]
    assert main([*argv, "--shrink", "0.4", "*.mlp.*=0.6"]) == 0
    assert "zero_pad, shrink 0.4 *.mlp.*=0.6, noise fresh:1, weights only" in capsys.readouterr().out
    assert main(["verify", narrow, wide]) == 0
    said = capsys.readouterr().out
    assert "as grown: config and" in said
    assert "not the same function: zero_pad, shrink 0.4 *.mlp.*=0.6, noise fresh:1" in said
    assert main(["hparams", wide, "--lr", "1e-3"]) == 0
    capsys.readouterr()
    argv = ["grow", narrow, str(tmp_path / "no"), "--to", str(tmp_path / "target")]
    assert main([*argv, "--operator", "duplicate"]) == 2
    assert (
        "d_model': grows by 5/4, but even copies are made a whole number of times" in capsys.readouterr().err
    )


def test_zero_pad_starts_afresh_unless_the_optimizer_is_asked_for(tmp_path, capsys):
    narrow = build("llama").float()
    optimizer = torch.optim.AdamW(narrow.parameters())
    loss_of(narrow, batch("llama", 0)).backward()
    optimizer.step()
    narrow.save_pretrained(tmp_path / "narrow")
    torch.save(optimizer.state_dict(), tmp_path / "narrow/optimizer.pt")
    argv = [
        "grow",
        str(tmp_path / "narrow"),
        str(tmp_path / "wide"),
        "--width",
        "2",
        "--overwrite",
        "--operator",
    ]
    assert main([*argv, "zero_pad"]) == 0
    assert not (tmp_path / "wide/optimizer.pt").exists()
    assert main([*argv, "zero_pad", "--carry-optimizer"]) == 0
    state = torch.load(tmp_path / "wide/optimizer.pt", weights_only=True)["state"]
    before = optimizer.state[narrow.model.embed_tokens.weight]["exp_avg_sq"]
    assert any(
        torch.equal(s["exp_avg_sq"][:, :32], before)
        for s in state.values()
        if s["exp_avg_sq"].shape == (61, 64)
    )
    capsys.readouterr()
    assert main([*argv, "net2net", "--carry-optimizer"]) == 2
    assert "operator 'net2net': its copies are uneven" in capsys.readouterr().err
    assert main([*argv, "zero_pad", "--carry-optimizer", "--no-optimizer"]) == 2


def test_the_choices_that_help_shows_are_those_of_the_registries():
    assert tuple(OPERATORS) == names.OPERATORS
    assert names.DEFAULT_GROWTH == DEFAULT
    # Those of torch: other tests register more.
    own = [n for n, kind in optimizer_names().items() if kind.__module__.startswith("torch.")]
    assert tuple(own) == names.OPTIMIZERS
    assert all(getattr(torch, name).is_floating_point for name in names.DTYPES)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mupscale {mupscale.__version__}\n"


def test_a_name_that_is_no_text_is_told_all_the_same(capsys):
    """As of a file whose name is not UTF-8, or out of JSON; other lines go to standard output."""
    assert main(["plan", "nothing\udcff\ud800"]) == 2
    assert r"mupscale: nothing\udcff\ud800: no such directory" in capsys.readouterr().err
    print("\ud800")
    assert capsys.readouterr().out == "\\ud800\n"
