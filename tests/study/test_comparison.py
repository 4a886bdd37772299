"""Operators against each other: the same text and budget for all, and the table says what was run."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conftest import TRAINING
from mupscale import GrowthError
from mupscale.growth import grow_checkpoint
from mupscale.study import comparison as module
from mupscale.study.comparison import STARTS, CompareConfig, Start, compare
from mupscale.study.comparison_report import comparison_table, markdown, steps_to_reach, write_comparison
from mupscale.study.data.tokens import Tokens
from mupscale.study.runs.training import train, training_like

CONFIG = CompareConfig(
    widths=(2,), starts=("scratch", "duplicate", "zero_pad,shrink=1"), lr_factors=(1.0, 0.5), seeds=2
)


def training(narrow: Path) -> Any:
    return training_like(narrow, steps=10, eval_every=2)


@pytest.fixture(scope="module")
def results(comparison: Path, tokens: Tokens, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("operators")
    found = compare(comparison / "narrow", out, tokens, training(comparison / "narrow"), CONFIG)
    assert not list(out.rglob("*.safetensors"))
    again = compare(comparison / "narrow", out, tokens, training(comparison / "narrow"), CONFIG)
    assert again == found
    return found


def runs(results: dict[str, Any], **wanted: Any) -> list[dict[str, Any]]:
    return [run for run in results["runs"] if all(run[k] == v for k, v in wanted.items())]


def test_every_start_runs_at_every_rate_and_the_best_with_every_seed(results: dict[str, Any]) -> None:
    for start in map(str, map(Start.parse, CONFIG.starts)):
        tuned = runs(results, start=start, seed=0, schedule="cooldown")
        assert {run["lr_factor"] for run in tuned} == {1.0, 0.5}
        best = min(tuned, key=lambda run: run["final_loss"])
        assert [run["chosen"] for run in tuned] == [run is best for run in tuned]
        assert [run["lr_factor"] for run in runs(results, start=start, seed=1, schedule="cooldown")] == [
            best["lr_factor"]
        ]


def test_budgets_are_equal(results: dict[str, Any]) -> None:
    assert len({(run["steps"], run["flops"], run["tokens"]) for run in results["runs"]}) == 1


def test_duplicates_start_where_the_narrow_model_ended_and_plain_pads_do_not(results: dict[str, Any]) -> None:
    narrow = results["narrow"]["final_loss"]
    for run in runs(results, start="duplicate, balanced:1, optimizer carried"):
        assert run["initial_loss"] == pytest.approx(narrow, abs=1e-4)
    for run in runs(results, start="zero_pad λ=1, optimizer fresh"):
        assert abs(run["initial_loss"] - narrow) > 0.01


def test_the_cooldown_leaves_the_constant_run(results: dict[str, Any]) -> None:
    for cooled in runs(results, schedule="cooldown"):
        (constant,) = runs(
            results, schedule="constant", **{k: cooled[k] for k in ("start", "seed", "lr_factor")}
        )
        shared = [point for point in constant["curve"] if point["step"] <= 8]
        assert cooled["curve"][: len(shared)] == shared
        assert cooled["final_loss"] != constant["final_loss"]


def test_seeds_see_other_text(results: dict[str, Any]) -> None:
    first, second = (runs(results, start="from scratch, μP", seed=seed, chosen=True)[0] for seed in (0, 1))
    assert first["curve"][-1] != second["curve"][-1]


def test_table_counts_what_it_says(results: dict[str, Any]) -> None:
    rows = {row["start"]: row for row in comparison_table(results)}
    scratch = rows["from scratch, μP"]
    assert (scratch["saved"], scratch["saved_counting_narrow"]) == (pytest.approx(0, abs=1e-9), None)
    grown = rows["duplicate, balanced:1, optimizer carried"]
    assert grown["flops_to_reach"] == 0  # it starts below what 10 steps from scratch reach
    assert grown["saved"] == 1
    assert grown["saved_counting_narrow"] == pytest.approx(1 - results["narrow"]["flops"] / grown["flops"])
    text = markdown(results)
    assert "tuned over 1, 0.5 for each start" in text
    assert text.count("\n| ") == 1 + len(rows)


def test_steps_to_reach_is_interpolated_and_never_extrapolated() -> None:
    curve = [(0, 5.0), (10, 4.0), (20, 3.0)]
    assert steps_to_reach(curve, 3.5) == 15
    assert steps_to_reach(curve, 6.0) == 0
    assert steps_to_reach(curve, 2.9) is None


def test_a_killed_comparison_goes_on(
    comparison: Path, tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, results: dict[str, Any]
) -> None:
    calls = []

    def dies_in_the_fourth(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return train(*args, **kwargs)

    narrow = comparison / "narrow"
    monkeypatch.setattr(module, "train", dies_in_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        compare(narrow, tmp_path, tokens, training(narrow), CONFIG)
    monkeypatch.undo()
    assert json.dumps(compare(narrow, tmp_path, tokens, training(narrow), CONFIG)) == json.dumps(results)


def test_all_default_starts_can_begin(comparison: Path, tokens: Tokens) -> None:
    narrow = module.load_model(comparison / "narrow")
    plan = module.mupscale.plan(narrow.config, width=2)
    for text in (*STARTS, "aki", "zero_pad,optimizer=carried"):
        trial = module.Trial(width=2, start=Start.parse(text), lr_factor=1.0, seed=0)
        model, optimizer = module.begin(comparison / "narrow", narrow, plan, trial, TRAINING)
        assert bool(optimizer.state) == trial.start.carried, text
        assert model.config.hidden_size == 32


def test_a_carried_optimizer_needs_one(comparison: Path, tokens: Tokens, tmp_path: Path) -> None:
    module.load_model(comparison / "narrow").save_pretrained(tmp_path / "narrow")
    given = replace(TRAINING, steps=4)
    with pytest.raises(GrowthError, match=r"no optimizer\.pt to carry; add optimizer=fresh"):
        compare(tmp_path / "narrow", tmp_path / "out", tokens, given, CONFIG)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("copy", "expected scratch or one of duplicate"),
        ("duplicate,noise=fresh:1", "does not go with the operator duplicate"),
        ("duplicate,sigma=1", "unknown option 'sigma'"),
        ("zero_pad,shrink=half", "shrink is 'half', expected a number"),
        ("zero_pad,optimizer=old", "optimizer is carried or fresh"),
        ("scratch,shrink=1", "scratch has no options"),
        ("duplicate,shrink=1", "shrink is for zero_pad"),
        ("stack", "makes a model deeper"),
    ],
)
def test_starts_are_read_with_care(text: str, message: str) -> None:
    with pytest.raises(GrowthError, match=message):
        Start.parse(text)


def test_a_narrow_model_that_was_grown_goes_by_its_first(comparison: Path, tmp_path: Path) -> None:
    grow_checkpoint(comparison / "narrow", tmp_path / "grown", width=2)
    narrow = module.load_model(tmp_path / "grown")
    plan = module.mupscale.plan(narrow.config, width=2)
    for text in ("scratch", "duplicate", "zero_pad"):
        trial = module.Trial(width=2, start=Start.parse(text), lr_factor=1.0, seed=0)
        _, optimizer = module.begin(tmp_path / "grown", narrow, plan, trial, TRAINING)
        assert min(group["lr_scale"] for group in optimizer.param_groups) == 1 / 4


def test_labels_tell_starts_apart() -> None:
    texts = [
        "zero_pad",
        "zero_pad,noise=none",
        "zero_pad,noise=fresh:0.5",
        "duplicate",
        "duplicate,noise=none",
        "net2net",
    ]
    assert len({str(Start.parse(text)) for text in texts}) == len(texts)
    assert Start.parse("duplicate") == Start.parse("duplicate,noise=balanced:1")
    with pytest.raises(GrowthError, match="the same one twice"):
        CompareConfig(starts=("duplicate", "duplicate,noise=balanced:1"))


def test_a_rate_that_diverges_is_not_chosen(comparison: Path, tokens: Tokens, tmp_path: Path) -> None:
    narrow = comparison / "narrow"
    config = CompareConfig(widths=(2,), starts=("scratch", "zero_pad"), lr_factors=(1e30, 1.0), seeds=1)
    found = compare(narrow, tmp_path, tokens, training(narrow), config)
    assert {run["lr_factor"] for run in found["runs"] if run["chosen"]} == {1.0}
    write_comparison(found, tmp_path)
    with pytest.raises(GrowthError, match="diverged at every rate; give lower ones"):
        compare(narrow, tmp_path / "b", tokens, training(narrow), replace(config, lr_factors=(1e30,)))


@pytest.mark.parametrize(
    "wrong",
    [{"widths": (1,)}, {"lr_factors": ()}, {"seeds": 0}, {"cooldown_fraction": 1.0}, {"starts": ("x",)}],
)
def test_bad_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(GrowthError):
        CompareConfig(**wrong)
