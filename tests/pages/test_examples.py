"""The examples run, at a small size, and say what they promise."""

import importlib.util
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mupscale

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def run(monkeypatch, capsys):
    """An example in this process, which has long imported what takes them longest; what it prints."""

    def run(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_plain_loop_loses_nothing_by_growing(run):
    out = run("plain_loop.py", "--steps", 30, "--wide-steps", 15)
    before, grown, after = (float(x) for x in re.findall(r"held-out loss ([\d.]+)", out))
    assert grown == before
    assert after < before


def test_a_checkpoint_of_nanogpt_grows_and_is_one_again(tmp_path):
    narrow, wide = tmp_path / "ckpt.pt", tmp_path / "wide" / "ckpt.pt"
    command = [sys.executable, EXAMPLES / "grow_nanogpt.py", narrow, wide, "--demo"]
    command += ["--narrow-steps", "60", "--steps", "30"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert out.startswith("equal: ") or "\nequal: " in out
    before, grown, after = (float(x) for x in re.findall(r"held-out loss ([\d.]+)", out))
    assert grown == before
    assert after < before

    spec = importlib.util.spec_from_file_location("grow_nanogpt", EXAMPLES / "grow_nanogpt.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    checkpoints = [torch.load(path, weights_only=True) for path in (narrow, wide)]
    assert checkpoints[1].keys() == checkpoints[0].keys() | {"plan"}
    assert [c["model_args"]["n_embd"] for c in checkpoints] == [48, 96]
    assert [c["model_args"]["n_head"] for c in checkpoints] == [2, 4]
    assert [c["iter_num"] for c in checkpoints] == [60, 90]

    # nanoGPT resumes by its own two groups; under a compiled model it saves longer names.
    compiled = {"_orig_mod." + name: tensor for name, tensor in checkpoints[1]["model"].items()}
    model, optimizer = example.load({**checkpoints[1], "model": compiled})
    assert model.lm_head.weight is model.transformer["wte"].weight
    assert [len(group["params"]) for group in optimizer.param_groups] == [10, 5]
    held_out = example.library_source()[950_000:]
    assert abs(example.held_out_loss(model, held_out, 64) - after) < 1e-3

    # What the example says to add to train.py.
    plan = mupscale.Plan.from_json(checkpoints[1]["plan"])
    decay = [name for name, p in model.named_parameters() if p.dim() >= 2]
    groups = mupscale.param_groups(model, plan, torch.optim.AdamW, lr=1e-3, decay=decay, weight_decay=0.1)
    loaded, optimizer = optimizer, torch.optim.AdamW(groups)
    optimizer.state.update(loaded.state)
    assert {*optimizer.state} == {*model.parameters()}
    assert {group["lr_scale"] for group in optimizer.param_groups} == {0.5, 1.0}


def test_lightning_module_learns(run):
    (loss,) = re.findall(r"loss after 12 steps: ([\d.]+)", run("lightning_module.py", "--steps", 12))
    assert float(loss) < 6.1  # ln 512 = 6.24
