"""The comparison is fair: what must be the same is the same, and what differs is said."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

import mupscale
from mupscale import GrowthError
from mupscale.study.data.tokens import Tokens
from mupscale.study.data.flops import training_flops
from mupscale.study.savings import savings
from mupscale.study.runs.training import training_like
from mupscale.study.warmstart import WarmstartConfig, warmstart


@pytest.fixture
def results(comparison: Path) -> dict[str, Any]:
    return json.loads((comparison / "results.json").read_text())


def held_out(run: dict[str, Any]) -> list[float]:
    return [p["held_out_loss"] for p in run["curve"] if p["held_out_loss"] is not None]


def test_grown_goes_on_where_the_narrow_model_stopped(results: dict[str, Any]) -> None:
    grown = results["runs"][0]
    assert held_out(grown)[0] == pytest.approx(results["narrow"]["final_loss"], abs=1e-4)
    assert results["verification"]["equal"]


def test_scratch_starts_at_chance(results: dict[str, Any]) -> None:
    for run in results["runs"][1:]:
        assert held_out(run)[0] == pytest.approx(math.log(300), abs=0.05)


def test_only_learning_rate_and_length_differ(results: dict[str, Any]) -> None:
    configs = [run["settings"]["config"] for run in results["runs"]]
    for config in configs:
        free = {"lr", "steps"}
        assert {k: v for k, v in config.items() if k not in free} == {
            k: v for k, v in configs[0].items() if k not in free
        }
        assert config["skip_blocks"] == 160  # the narrow model saw 40 steps of 4
    assert {(run["kind"], run["lr"]) for run in results["runs"]} == {
        ("grown", 5e-3),
        ("scratch", 1e-2),
        ("scratch", 5e-3),
    }


def test_lengths_include_the_compute_of_narrow_and_grown_together(results: dict[str, Any]) -> None:
    steps = sorted({run["steps"] for run in results["runs"] if run["kind"] == "scratch"})
    plan = mupscale.plan(mupscale.Plan.load(results_folder(results)).narrow_config, width=2)
    narrow, wide = (training_flops(c, batch_size=4, block_size=16) for c in (plan.narrow_config, plan.config))
    assert steps == [20, 20 + round(40 * narrow / wide), 40]
    assert results["savings"]["scratch_steps_at_equal_compute"] == steps[1]


def results_folder(results: dict[str, Any]) -> Path:
    return Path(results["grown_checkpoint"])


def test_better_learning_rate_counts_at_every_length(results: dict[str, Any]) -> None:
    scratch = [run for run in results["runs"] if run["kind"] == "scratch"]
    for steps in {run["steps"] for run in scratch}:
        of_length = [run for run in scratch if run["steps"] == steps]
        assert len(of_length) == 2
        assert [r["best"] for r in of_length] == [
            r["final_loss"] == min(o["final_loss"] for o in of_length) for r in of_length
        ]
    assert results["savings"] == savings(results["runs"], results["narrow"]["flops"])


def test_optimizer_is_carried(comparison: Path) -> None:
    state = torch.load(comparison / "runs" / "grown" / "optimizer.pt", weights_only=True)["state"]
    assert {float(s["step"]) for s in state.values()} == {60.0}  # 40 narrow, 20 grown


def test_finished_runs_are_not_repeated(
    comparison: Path, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "training_step", lambda *_: pytest.fail("trained again"))
    before = json.loads((comparison / "results.json").read_text())
    narrow = comparison / "narrow"
    again = warmstart(narrow, comparison, tokens, training_like(narrow, steps=20), WarmstartConfig())
    assert json.loads(json.dumps(again)) == before


def test_data_seen_is_told(results: dict[str, Any]) -> None:
    data = results["data"]
    assert data["narrow_saw_blocks"] == [0, 160]
    assert data["grown_sees_blocks"] == [160, 240]
    assert data["longest_scratch_sees_blocks"] == [160, 320]
    assert data["fresh"] == (data["blocks_in_training_text"] >= 320)


def test_bad_input_is_named(comparison: Path, tokens: Tokens, tmp_path: Path) -> None:
    with pytest.raises(GrowthError, match=r"no history\.json"):
        training_like(tmp_path, steps=10)
    training = training_like(comparison / "narrow", steps=10)
    with pytest.raises(GrowthError, match=r"no config\.json"):
        warmstart(tmp_path, tmp_path / "out", tokens, training)
    with pytest.raises(GrowthError, match="scratch_lrs"):
        WarmstartConfig(scratch_lrs=())
