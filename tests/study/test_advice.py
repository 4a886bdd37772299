"""Advice follows from compute and sources, says what it does not know, and refuses nonsense."""

import json
from pathlib import Path
from typing import Any

import pytest

from mupscale import GrowthError
from mupscale.cli import main
from mupscale.study.advice import ALPHA, BETA, A, B, advise, count, head_start, parse_count, staged_flops


def loss(parameters: float, tokens: float) -> float:
    return 1.69 + A / parameters**ALPHA + B / tokens**BETA


def test_head_start_is_where_the_wide_model_has_the_narrow_loss() -> None:
    tokens = head_start(35e6, 7e8, 70e6)
    assert loss(70e6, tokens) == pytest.approx(loss(35e6, 7e8))


def test_five_to_seventy_million_goes_in_stages_of_about_two() -> None:
    advice = advise(5e6, 70e6, 20 * 70e6)
    assert advice.verdict == "grow in stages"
    assert len(advice.sizes) == 5
    assert all(
        wide / narrow == pytest.approx(14**0.25)
        for narrow, wide in zip(advice.sizes, advice.sizes[1:], strict=False)
    )
    assert advice.head_start < 0.02
    assert "arXiv 2411.07340" in str(advice)


def test_doubling_at_a_small_budget_is_one_growth() -> None:
    advice = advise(100e6, 200e6, 5 * 200e6)
    assert (advice.verdict, advice.sizes) == ("grow", (100e6, 200e6))
    assert 0.3 < advice.head_start < 0.4
    assert advice.narrow_flops / advice.scratch_flops == pytest.approx(0.25)
    assert "arXiv 2605.13405" in str(advice)


def test_one_to_seventy_billion_is_from_scratch() -> None:
    advice = advise(1e9, 70e9, 20 * 70e9)
    assert advice.verdict == "train from scratch"
    assert "17.5B" in str(advice)


def test_far_beyond_the_known_budgets_nothing_is_promised() -> None:
    assert advise(1e8, 2e8, 1000 * 2e8).verdict == "train from scratch"
    assert "gains shrink beyond 20" in str(advise(1e8, 2e8, 60 * 2e8))


def test_stages_cost_less_than_from_scratch_and_more_than_the_last_alone() -> None:
    chain, last = staged_flops((5e6, 1e7, 2e7), 20, 1e8), staged_flops((1e7, 2e7), 20, 2e8)
    assert last < chain < 6 * 2e7 * 4e8


def test_what_is_assumed_is_said() -> None:
    assert any("100M tokens are assumed" in sentence for sentence in advise(5e6, 10e6, 2e8).unknown)
    assert not any("assumed" in sentence for sentence in advise(5e6, 10e6, 2e8, narrow_tokens=1e9).unknown)
    assert advise(5e6, 10e6, 2e8, narrow_tokens=1e9).head_start > advise(5e6, 10e6, 2e8).head_start


def sweep(name: str, width: int, parameters: int, curve: list[list[float]], **more: Any) -> dict[str, Any]:
    point = {"point": {"lr": 0.01}, "state": "complete", "loss": curve[-1][1], "spread": None}
    return {
        "name": name,
        "source": None,
        "width": width,
        "parameters": parameters,
        "flops_per_step": 100,
        "run_flops": 1000,
        "points": [{**point, "lengths": [], "curve": curve}],
        "best": point,
        "at_edge": [],
        "constant": False,
        **more,
    }


def test_own_studies_are_quoted(tmp_path: Path) -> None:
    narrow = sweep("narrow", 16, 270_000, [[0, 5.0, 5.0, 5.0], [10, 4.0, 4.0, 4.0]])
    scratch = sweep("scratch-32", 32, 1_000_000, [[0, 5.0, 5.0, 5.0], [10, 3.0, 3.0, 3.0]])
    grown = sweep("duplicate-32", 32, 1_000_000, [[0, 4.0, 4.0, 4.0], [10, 2.0, 2.0, 2.0]], source="narrow")
    asked = {"ask": "starts", "of": ["duplicate-32", "scratch-32"], "against": ["scratch-32"]}
    results = {
        "sweeps": [narrow, scratch, grown],
        "questions": [asked, {"ask": "cost"}],
        "width_word": "d_model",
        "unit": "nats per token",
    }
    file = tmp_path / "results.json"
    file.write_text(json.dumps(results))
    said = str(advise(5e6, 10e6, 2e8, comparison=file))
    assert "At d_model 32 duplicate is best: it ends at 2.000" in said
    assert "reaches scratch at 50% (150%)" in said
    assert "There the narrow model had 270K parameters" in said
    file.write_text("{}")
    with pytest.raises(GrowthError, match=r"results\.json: not the results\.json"):
        advise(5e6, 10e6, 2e8, comparison=file)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--params", "70M", "--to", "5M", "--tokens", "1B"],
            "from 70M to 5M parameters: growing needs a larger",
        ),
        (["--params", "5M", "--to", "70M", "--tokens", "0"], "--tokens '0': expected a number above 0"),
        (["--params", "many", "--to", "70M", "--tokens", "1B"], "--params 'many': expected a number above 0"),
    ],
)
def test_nonsense_is_refused_in_one_line(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["advise", *argv]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise", "--params", "5M", "--to", "70M", "--tokens", "1.4B", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "grow in stages"


def test_counts() -> None:
    assert [count(x) for x in (999, 1e3, 9.67e6, 70e9, 1.4e12)] == ["999", "1K", "9.67M", "70B", "1.4T"]
    assert parse_count("1.4b") == 1.4e9
