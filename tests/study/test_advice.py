"""Advice follows from compute and sources, says what it does not know, and refuses nonsense."""

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from made_up import growing

from mupscale import GrowthError
from mupscale.cli import main
from mupscale.cli.factors import parse_count
from mupscale.study.advice import (
    ALPHA,
    BETA,
    A,
    Advice,
    B,
    advise,
    count,
    head_start,
    staged_flops,
)
from mupscale.study.growing_pays import packaged
from mupscale.study.page import json_safe
from mupscale.study.questions import ask


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
            "from 70M to 5M parameters: give a larger target (--to)",
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
    assert parse_count("--tokens", "1.4b") == 1.4e9


# ---- what was measured -------------------------------------------------------------------------------------


def measured(start: str, narrow: float, wide: float, share: float, **more: Any) -> dict[str, Any]:
    """A cell at ×2; a narrow model with half of the parameters costs a quarter, times the ratio of the tokens."""
    return {
        "start": start,
        "begin": "grow",
        "recipe": f"--operator {start}",
        "narrow_tokens_per_parameter": narrow,
        "tokens_per_parameter": wide,
        "factor": 2.0,
        "share": share,
        "share_spread": None if more.get("sign") else 0.02,
        "with_narrow": share + narrow / wide / 4,
        "sign": "",
        "seeds": 3,
        "at_edge": [],
    } | more


TABLE = {
    "about": "A map that nobody measured.",
    "narrow": 64,
    "model": "models of 64 and 128 parameters",
    "command": "make nothing",
    "best": "expand",
    "cells": [
        measured("continued", 20, 5, 1.5, begin="continue", sign="> "),
        measured("default", 20, 5, 0.99),
        *(
            measured("expand", narrow, wide, share, sign="≤ " * (share == 0.5))
            for narrow, shares in {5: (0.9, 0.96, 1.05), 20: (0.7, 0.8, 0.92), 320: (0.5, 0.5, 0.64)}.items()
            for wide, share in zip((5, 10, 40), shares, strict=True)
        ),
        measured("expand", 20, 5, 0.6, factor=4.0, with_narrow=None, at_edge=["lr"]),
    ],
}


def advise_by(table: Any, narrow: float, wide: float, tokens: float, **more: Any) -> Advice:
    """Advice by another map than that of the package."""
    with patch("mupscale.study.advice.packaged", return_value=table):
        return advise(narrow, wide, tokens, **more)


def ask_map(
    factor: float, narrow_ratio: float, ratio: float, table: Any = TABLE, size: float = 1e6
) -> Advice:
    wide = factor * size
    return advise_by(table, size, wide, ratio * wide, narrow_tokens=narrow_ratio * size)


@pytest.mark.parametrize(
    ("factor", "narrow", "wide", "verdict", "share", "with_narrow", "said"),
    [
        # A cell; one of another factor, near enough; between two, four; where growing loses.
        (2, 20, 10, "grow", 0.8, 1.3, "takes 80% ± 2% of the FLOPs from scratch to the same loss: measured at ×2"),
        (1.7, 20, 40, "grow", 0.92, 1.045, "counted in, 104% ± 2%: that does not pay."),
        (2, 20, 20, "grow", (0.8 * 0.92) ** 0.5, (0.8 * 0.92) ** 0.5 + 0.25, "takes 86% ± 2%"),
        (2, 10, 20, "grow", (0.96 * 1.05 * 0.8 * 0.92) ** 0.25, (0.96 * 1.05 * 0.8 * 0.92) ** 0.25 + 0.125, "takes 93% ± 2%"),
        (2, 5, 40, "train from scratch", 1.05, 1.05 + 1 / 32, "takes 105% ± 2% of the FLOPs"),
        (2, 320, 7, "grow", 0.5, 0.5 + 80 / 7, "takes ≤ 50% of the FLOPs"),
        (4.5, 20, 5, "grow", 0.6, None, "measured at ×4 in parameters, 3 seeds, with models of 64 and 128 parameters. [map]"),
    ],
)  # fmt: skip
def test_where_the_map_holds_it_decides(
    factor: float,
    narrow: float,
    wide: float,
    verdict: str,
    share: float,
    with_narrow: float | None,
    said: str,
) -> None:
    advice = ask_map(factor, narrow, wide)
    assert (advice.went_by, advice.verdict) == ("map", verdict)
    assert advice.sizes == (1e6, factor * 1e6)
    first = advice.shares[0]
    assert first.start == "expand"
    assert first.share == pytest.approx(share)
    assert first.with_narrow == pytest.approx(with_narrow)
    assert said in str(advice)
    assert "[map] A map that nobody measured. make nothing" in str(advice)
    assert "measured with models of 64 and 128 parameters holds" in str(advice)
    assert "[law]" not in " ".join(advice.reasons)


@pytest.mark.parametrize(
    ("factor", "narrow", "wide", "said"),
    [
        (2.6, 20, 10, "the map does not reach to ×2.6 in parameters (×2, ×4)."),
        (2, 20, 60, "to 60 tokens per parameter of the wide model (5 to 40)."),
        (2, 2, 10, "to 2 tokens per parameter of the narrow model (5 to 320)."),
        (16, 1000, 2, "to ×16 in parameters (×2, ×4) or 1e+03 tokens per parameter of the narrow model (20 alone) or "
         "2 tokens per parameter of the wide model (5 alone)."),
        (2, 320, 20, "the map has a gap there."),
    ],
)  # fmt: skip
def test_where_it_does_not_the_law_does(factor: float, narrow: float, wide: float, said: str) -> None:
    cells = [cell for cell in TABLE["cells"] if cell["tokens_per_parameter"] < 40 or narrow < 320]  # type: ignore[index]
    cells += [measured("other", 20, 40, 0.9)]
    advice, by_law = (
        ask_map(factor, narrow, wide, {**TABLE, "cells": cells}),
        ask_map(factor, narrow, wide, {}),
    )
    assert advice.went_by == by_law.went_by == "law"
    assert said in advice.reasons[1]
    assert advice.reasons[1].startswith("This goes by the law alone: ")
    assert (advice.verdict, advice.reasons[2:]) == (by_law.verdict, by_law.reasons[2:])
    assert "[map]" not in str(advice)


def test_without_a_map_the_law_is_all_there_is() -> None:
    assert "no map of what was measured comes with this version" in str(ask_map(2, 20, 10, {}))


def test_what_the_map_says_besides() -> None:
    said = str(ask_map(2, 20, 5))
    assert "The narrow model, simply continued, takes > 150% of the FLOPs. [map]" in said
    assert [one.start for one in ask_map(2, 20, 5).shares] == ["expand", "continued", "default"]
    assert "Its best lr stood at the edge there" in str(ask_map(4, 20, 5))
    near = measured("expand", 20, 10, 0.99)
    assert "within a deviation" in str(ask_map(2, 20, 10, {**TABLE, "cells": [near]}))
    open_ended = measured("expand", 20, 10, 0.9, sign="≤ ")
    assert "whether that pays is not known" in str(ask_map(2, 20, 10, {**TABLE, "cells": [open_ended]}))
    level = measured("expand", 20, 10, 0.9, with_narrow=0.99)
    assert "counted in, 99% ± 2%: that is within a deviation of 100%, so whether it pays cannot" in str(
        ask_map(2, 20, 10, {**TABLE, "cells": [level]})
    )
    both = [measured("expand", 20, 5, 0.5, sign="≤ "), measured("expand", 20, 10, 1.0, sign="> ")]
    assert ask_map(2, 20, 7, {**TABLE, "cells": both}).went_by == "law"


@pytest.mark.parametrize(
    ("share", "sign", "instead"),
    [(0.7, "", True), (0.7, "≤ ", True), (0.7, "> ", False), (0.79, "", False), (0.9, "", False)],
)
def test_where_the_narrow_model_continued_takes_less_it_is_to_be_continued(
    share: float, sign: str, instead: bool
) -> None:
    cells = [
        measured("expand", 20, 10, 0.8),
        measured("continued", 20, 10, share, begin="continue", sign=sign),
    ]
    advice = ask_map(2, 20, 10, {**TABLE, "cells": cells})
    assert advice.verdict == "grow"  # than from scratch
    told = "less by more than a deviation: for so short a run, continue the narrow model. [map]"
    assert (told in str(advice)) == instead
    assert str(advice).splitlines()[0].endswith("continue the narrow model") == instead
    bound = [measured("expand", 20, 10, 0.8, sign="≤ "), cells[1]]
    assert told not in str(ask_map(2, 20, 10, {**TABLE, "cells": bound}))


def test_over_a_short_run_the_map_that_comes_with_the_package_says_to_continue() -> None:
    said = str(advise(195e3, 648e3, 3.2e6))
    assert said.startswith("grow: 195K → 648K; but for so short a run, continue the narrow model")
    assert "so whether it pays cannot be told" in said


def test_how_long_a_head_start_lasts_is_told_of_what_was_grown() -> None:
    said = str(advise(1e9, 1.8e9, 36e9, narrow_tokens=300e9, along="layers"))
    assert (
        "at 20 and 20 tokens per parameter, `mupscale grow --axes layers=2 --operator duplicate` took" in said
    )
    assert "tokens per parameter of the narrow model (20 alone)" in said


def test_a_start_that_is_clearly_better_at_this_place_is_named() -> None:
    best, other = measured("expand", 20, 10, 0.8), measured("padded", 20, 10, 0.75)
    said = str(ask_map(2, 20, 10, {**TABLE, "cells": [best, other]}))
    assert (
        "`mupscale grow --operator padded` takes 75% ± 2% here, less by more than a deviation. [map]" in said
    )
    other["share"] = 0.79
    assert "here, less" not in str(ask_map(2, 20, 10, {**TABLE, "cells": [best, other]}))


def test_of_two_maps_that_of_models_nearest_in_size_decides() -> None:
    larger = {
        "about": "Another.",
        "narrow": 2e6,
        "model": "models of 256",
        "command": "make as little",
        "best": "padded",
        "cells": [measured("padded", 20, 10, 0.97, sign="> ")],
    }
    both = {**TABLE, "larger": larger}
    advice = ask_map(2, 20, 10, both)
    assert advice.verdict == "train from scratch"
    assert "with models of 256" in advice.reasons[1]
    told = "With models of 64 and 128 parameters `mupscale grow --operator expand` took 80% (130% with the narrow"
    assert told in str(advice)
    smaller = advise_by(both, 100, 200, 2000, narrow_tokens=2000)
    assert smaller.verdict == "grow"
    assert "With models of 256 `mupscale grow --operator padded` took > 97% (> 147%" in str(smaller)
    assert "models of 256" not in str(ask_map(2, 20, 40, both))  # which only one of them holds


def test_growing_by_another_factor_may_have_a_map_of_its_own() -> None:
    steep = {
        **TABLE,
        "model": "models of 64 and 640",
        "cells": [measured("padded", 20, 10, 0.9, factor=10.0)],
    }
    both = {**TABLE, "by4": steep}
    assert "takes 90% ± 2% of the FLOPs" in str(ask_map(9, 20, 10, both))
    assert "with models of 64 and 640" in str(ask_map(9, 20, 10, both))
    assert "models of 64 and 640" not in str(ask_map(2, 20, 10, both))
    # What neither holds is said of the one that comes nearest.
    assert "reach to 40 tokens per parameter of the wide model (10 alone)" in str(ask_map(10, 20, 40, both))
    assert "reach to ×20 in parameters (×10)" in str(ask_map(20, 20, 10, both))
    assert "reach to ×1.2 in parameters (×2, ×4)" in str(ask_map(1.2, 20, 10, both))


def test_a_budget_that_is_next_to_a_cell_s_is_not_mixed_with_the_bound_of_another() -> None:
    cells = [measured("padded", 20, 10, 0.95, sign="> "), measured("padded", 320, 10, 0.6)]
    advice = ask_map(2, 318, 10.1, {**TABLE, "best": "padded", "cells": cells})
    assert advice.verdict == "grow"
    assert "takes 60% ± 2% of the FLOPs" in str(advice)


def test_a_narrow_model_that_is_as_good_as_the_target_is_told() -> None:
    said = str(advise_by({}, 1e9, 1.8e9, 36e9, narrow_tokens=300e9))
    assert "after 100.0% of its tokens" in said
    assert "So the narrow model is as good already" in said
    assert "as good already" not in str(advise_by({}, 100e6, 200e6, 1e9))


def test_the_map_of_a_study_can_be_asked() -> None:
    results = growing()
    data = ask(results, results["questions"][0]).data
    table = {"about": "Made up.", "narrow": 64, "model": "toys", "command": "make nothing", **json_safe(data)}
    advice = ask_map(2, 20, 10, json.loads(json.dumps(table, allow_nan=False)))
    assert advice.shares[0].start == data["best"] == "expand"
    assert advice.shares[0].share == pytest.approx(0.5)
    assert json.loads(json.dumps(advice.to_dict()))["shares"][0]["with_narrow"] == pytest.approx(0.75)


def test_the_map_that_comes_with_the_package_is_whole() -> None:
    table = packaged()
    assert not table or {"about", "narrow", "model", "command", "best", "cells"} <= table.keys()
    for cell in table.get("cells", ()):
        place = cell["factor"], cell["narrow_tokens_per_parameter"], cell["tokens_per_parameter"]
        found = {one.start: one for one in ask_map(*place, table, size=table["narrow"]).shares}
        if cell["share"] is not None and cell["begin"] == "grow":
            assert found[cell["start"]].share == pytest.approx(cell["share"])


def test_layers_have_a_map_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    table = packaged("layers")
    assert table["cells"] != packaged()["cells"]
    grown = [cell for cell in table["cells"] if cell["begin"] == "grow"]
    starts = {cell["start"] for cell in grown}
    assert starts == {
        "stacked",
        "identity",
        *(f"repeated{how}" for how in ("", "_fresh", "_noise", "_half_noise")),
    }
    for cell in grown:
        assert cell["recipe"].startswith("--axes layers=2 ")
        asked = ["--params", "1M", "--to", f"{cell['factor']}M", "--along", "layers"]
        ratios = cell["narrow_tokens_per_parameter"], cell["tokens_per_parameter"]
        tokens = ["--narrow-tokens", f"{ratios[0]}M", "--tokens", f"{ratios[1] * cell['factor']}M"]
        assert main(["advise", *asked, *tokens, "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert said["went_by"] == "map"
        shares = {one["start"]: one["share"] for one in said["shares"]}
        assert shares[cell["start"]] == pytest.approx(cell["share"])
    assert main(["advise", "--params", "1M", "--to", "2M", "--tokens", "9M", "--along", "heads"]) == 2
    assert capsys.readouterr().err == "mupscale: along 'heads': expected width or layers\n"


def packaged_case(narrow: float, wide: float, factor: float = 1.0) -> tuple[dict[str, Any], Advice]:
    """The cell of the map's best start at a place, and what is advised there, at so much more in parameters."""
    table = packaged()
    cells = [cell for cell in table["cells"] if cell["start"] == table["best"]]
    asked = cells[0]["factor"] * factor
    places = {(cell["narrow_tokens_per_parameter"], cell["tokens_per_parameter"]): cell for cell in cells}
    return places.get((narrow, wide), {}), ask_map(asked, narrow, wide, table, size=table["narrow"])


@pytest.mark.parametrize(("narrow", "wide"), [(20, 5), (20, 10), (20, 20), (320, 5), (320, 20)])
def test_advice_agrees_with_the_map_that_comes_with_the_package(narrow: float, wide: float) -> None:
    cell, advice = packaged_case(narrow, wide)
    assert advice.went_by == "map"
    assert advice.shares[0].start == cell["start"]
    said = " ".join(advice.reasons)
    spread = "" if cell["share_spread"] is None else f" ± {cell['share_spread']:.0%}"
    assert (
        f"mupscale grow {cell['recipe']}`, the target takes {cell['sign']}{cell['share']:.0%}{spread} of"
        in said
    )
    assert f"counted in, {cell['sign']}{cell['with_narrow']:.0%}" in said
    assert (": that pays" in said) == (cell["with_narrow"] < 1 and cell["sign"] != "> ")
    assert advice.verdict == ("grow" if cell["share"] < 1 and cell["sign"] != "> " else "train from scratch")


@pytest.mark.parametrize(
    ("narrow", "wide", "factor", "said"),
    [
        (20, 100, 1, "100 tokens per parameter of the wide model"),
        (20, 1, 1, "1 tokens per parameter of the wide model"),
        (1000, 10, 1, "1e+03 tokens per parameter of the narrow model"),
        (2, 10, 1, "2 tokens per parameter of the narrow model"),
        (20, 10, 6, "×17.9 in parameters (×9.93)"),
    ],
)
def test_advice_says_where_it_leaves_the_map(narrow: float, wide: float, factor: float, said: str) -> None:
    advice = packaged_case(narrow, wide, factor)[1]
    assert advice.went_by == "law"
    assert advice.reasons[1].startswith("This goes by the law alone: the map does not reach to ")
    assert said in advice.reasons[1]
