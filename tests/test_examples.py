"""The examples run, at a small size, and say what they promise."""

import json
import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(script, *arguments):
    command = [sys.executable, EXAMPLES / script, *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout


def test_plain_loop_loses_nothing_by_growing():
    out = run("plain_loop.py", "--steps", 30, "--wide-steps", 15)
    before, grown, after = (float(x) for x in re.findall(r"held-out loss ([\d.]+)", out))
    assert grown == before
    assert after < before


def test_lightning_module_learns():
    (loss,) = re.findall(r"loss after 12 steps: ([\d.]+)", run("lightning_module.py", "--steps", 12))
    assert float(loss) < 6.1  # ln 512 = 6.24


def test_lr_transfer_prints_tables_or_json(tmp_path):
    small = ["--d-model", 16, "--widths", 1, 2, "--lrs", 1e-3, 4e-3, 1.6e-2, "--seeds", 1, "--steps", 20]
    small += ["--block-size", 16, "--batch-size", 4, "--jobs", 1, "--out", tmp_path]
    small += ["--data", EXAMPLES.parent / "README.md", "--vocab-size", 300]
    command = [sys.executable, EXAMPLES / "lr_transfer.py", *small]
    ran = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert ran.returncode in (0, 1), ran.stderr  # so short, either may come out
    assert "standard parametrization" in ran.stdout
    assert "μP relative to the narrowest model: the best learning rate goes from" in ran.stdout
    assert len((tmp_path / "losses.csv").read_text().splitlines()) == 1 + 12
    assert (tmp_path / "lr_transfer.png").is_file()
    again = subprocess.run(list(map(str, [*command, "--json"])), capture_output=True, text=True)
    result = json.loads(again.stdout)
    assert len(result["trials"]) == 12
    assert result["passed"] == (ran.returncode == 0) == (again.returncode == 0)


def test_shrink_dynamics_makes_a_picture_each_and_a_sentence(tmp_path):
    small = [
        "--widths",
        2,
        4,
        "--shrinks",
        0,
        1,
        "--narrow-steps",
        12,
        "--steps",
        6,
        "--jobs",
        1,
        "--out",
        tmp_path,
    ]
    result = json.loads(run("shrink_dynamics.py", *small, "--json"))
    assert len(result["losses"]) == 4
    assert "attention outputs overshoot the size they end at by ×" in result["sentence"]
    pictures = {f"{kind}s_over_time.png" for kind in ("activation", "weight", "gradient")}
    assert {*pictures, "activations_over_width.png", "losses.csv"} <= {p.name for p in tmp_path.iterdir()}
