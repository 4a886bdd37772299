"""The map says what its made-up lines are: in each, the final loss is linear in the logarithm of the budget."""

import copy
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import RATIOS, Row, best_ends, growing, read_back, row, sweep

from mupscale.study.page import Answer, Table
from mupscale.study.page.plots import Plot
from mupscale.study.questions import ask
from mupscale.study.questions.growing.cells import Estimate, cells_of, is_below
from mupscale.study.questions.reading import sweep_of


def answer(results: Row) -> Answer:
    return ask(results, results["questions"][0])


def cell(found: Answer, start: str, narrow: float, wide: float) -> Row:
    """The one cell at a place."""
    (one,) = [
        cell
        for cell in found.data["cells"]
        if (cell["start"], cell["narrow_tokens_per_parameter"], cell["tokens_per_parameter"])
        == (start, narrow, wide)
    ]
    return one


def tables(found: Answer) -> dict[str, Any]:
    return {part.title: part.rows for part in found.parts if isinstance(part, Table)}


def text(found: Answer) -> str:
    return " ".join(part for part in found.parts if isinstance(part, str))


def words(found: Answer) -> str:
    """All that it says, in sentences and tables."""
    return " ".join([text(found), *(str(rows) for rows in tables(found).values())])


# ---- the numbers of a cell ---------------------------------------------------------------------------------


def test_what_a_start_takes_to_the_loss_from_scratch() -> None:
    """After 20 tokens per parameter `default` has lost more than its lead: 0.05 of loss, half a doubling."""
    one = cell(answer(growing()), "default", 20, 20)
    assert (one["loss"], one["scratch_loss"]) == pytest.approx((2.45, 2.4))
    assert one["share"] == pytest.approx(math.sqrt(2), rel=1e-3)
    assert one["sign"] == ""
    # The narrow model's 640 steps cost as much as 160 of the 1280 wide ones.
    assert one["with_narrow"] == pytest.approx(math.sqrt(2) + 1 / 8, rel=1e-3)
    assert one["factor"] == 2
    assert (one["begin"], one["seeds"], one["at_edge"]) == ("grow", 3, [])


def test_the_other_way_round_the_middle_of_the_map_has_no_bounds() -> None:
    found = answer(growing())
    times = {wide: cell(found, "expand", 20, wide)["scratch_times"] for wide in RATIOS}
    # From 0.3 the lead falls by 0.1 a doubling, and 0.2 of loss are a doubling from scratch.
    assert times == pytest.approx({2.5: 2**1.5, 5: 2, 10: 2**0.5, 20: 1, 40: 2**-0.5}, rel=1e-3)
    assert {cell(found, "expand", 20, wide)["scratch_times_sign"] for wide in RATIOS} == {""}
    assert [cell(found, "expand", 20, wide)["sign"] for wide in RATIOS] == ["≤ ", "≤ ", "", "", "> "]
    assert cell(found, "expand", 20, 5)["share"] == 0.5
    assert cell(found, "expand", 20, 40)["share"] == 1.0


def test_gain_at_equal_flops_in_total() -> None:
    """At 5 tokens per parameter, `expand` and the narrow model together cost as much as 7.5 from scratch."""
    found = answer(growing())
    one = cell(found, "expand", 20, 5)
    assert one["gain_at_equal_total"] == pytest.approx(3 - 0.2 * math.log2(3) - 2.6, abs=1e-4)
    assert one["gain_sign"] == ""
    longest = cell(found, "expand", 20, 40)
    assert longest["gain_at_equal_total"] == pytest.approx(2.2 - 2.3)
    assert longest["gain_sign"] == "< "


def test_what_is_counted_as_tuning() -> None:
    """All runs of the sweep but those of its best point; those of the sweeps whose values it takes."""
    results = growing()
    rates = sweep("rates-32", [row({"lr": 0.004}, [3.0, 3.0]), row({"lr": 0.008}, [3.1, 3.1], 1)])
    results["sweeps"].append(rates)
    sweep_of(results, "default-20")["takes"] = {"lr": "rates-32"}
    found = answer(results)
    own, taken, budget = 2560 * 40, 2 * 2 * 100 * 10, 1280 * 40
    one = cell(found, "default", 20, 20)
    assert one["with_tuning"] - one["with_narrow"] == pytest.approx((own + taken) / budget)
    other = cell(found, "expand", 20, 20)
    assert other["with_tuning"] - other["with_narrow"] == pytest.approx(own / budget)


def test_the_narrow_model_continued_counts_by_flops() -> None:
    found = answer(growing())
    one = cell(found, "continued", 20, 10)
    assert one["begin"] == "continue"
    assert one["loss"] == pytest.approx(2.6 - 0.35 + 0.36)
    assert one["factor"] == 2
    assert one["scratch_times"] == pytest.approx(2**-0.05, rel=1e-3)


def test_between_lengths_it_is_interpolated_and_never_beyond() -> None:
    found = answer(growing(ratios={"continued-20": [2.4, 7, 30]}))
    assert [c["tokens_per_parameter"] for c in found.data["cells"] if c["start"] == "continued"][
        :4
    ] == RATIOS[:4]
    assert cell(found, "continued", 20, 20)["loss"] == pytest.approx(2.4 - 0.35 + 3 * 0.18, abs=1e-3)


def test_budgets_are_said_without_what_whole_steps_put_to_them() -> None:
    results = growing(starts={"expand": {20: (0.3, 0.1)}})
    sweep_of(results, "narrow-20")["steps"] += 3
    for one in sweep_of(results, "scratch"), sweep_of(results, "expand-20"):
        for end in one["best_ends"]:
            end["steps"] += 1
    found = answer(results)
    assert [one["tokens_per_parameter"] for one in found.data["cells"]] == RATIOS
    assert {one["narrow_tokens_per_parameter"] for one in found.data["cells"]} == {20}


def test_a_narrow_model_that_was_continued_has_seen_all_of_it() -> None:
    results = growing(starts={"expand": {20: (0.3, 0.1)}})
    more = sweep("narrow-60", [row({"lr": 0.004}, [3.1] * 3, steps=1280)], width=32, begin="continue")
    results["sweeps"].insert(1, more | {"source": "narrow-20"})
    sweep_of(results, "expand-20")["source"] = "narrow-60"
    one = cell(answer(results), "expand", 60, 20)
    assert one["with_narrow"] - one["share"] == pytest.approx(3 / 8)


def test_numbers_are_found_seed_by_seed() -> None:
    """Seeds that end 0.01 apart are a twentieth of a doubling from scratch, a tenth of `default`'s, apart."""
    one = cell(answer(growing(offsets={"default": (0.0, 0.0, 0.0)})), "default", 20, 20)
    shares = [2 ** (0.5 + off) for off in (-0.1, 0.0, 0.1)]
    assert one["share"] == pytest.approx(sum(shares) / 3, rel=1e-3)
    assert one["share_spread"] == pytest.approx((shares[2] - shares[0]) / 2, rel=2e-2)
    assert one["gain_spread"] == pytest.approx(0.01)


def test_only_seeds_count_that_ran_at_every_length() -> None:
    results = growing()
    one = sweep_of(results, "expand-20")
    one["points"].append(row({"lr": 0.002}, [2.4], 2, steps=2560))
    one["best_ends"][2] |= {"point": {"lr": 0.002}, "losses": [2.49], "loss": 2.49, "spread": None}
    found = answer(results)
    assert {c["seeds"] for c in found.data["cells"] if c["start"] == "expand"} == {1, 3}
    assert (cell(found, "expand", 20, 20)["seeds"], cell(found, "expand", 20, 20)["share_spread"]) == (
        1,
        None,
    )
    assert cell(found, "expand", 320, 20)["seeds"] == 3


def test_seeds_are_held_against_their_own() -> None:
    results = growing(starts={"expand": {20: (0.3, 0.1)}})
    one = sweep_of(results, "expand-20")
    one["points"][0]["seeds"].reverse()
    for end in one["best_ends"]:
        end["losses"].reverse()
    assert answer(results).data["cells"] == answer(growing(starts={"expand": {20: (0.3, 0.1)}})).data["cells"]


def test_where_bounds_are_of_both_kinds_nothing_is_known() -> None:
    estimate = Estimate.of({0: (0.5, "≤ "), 1: (1.0, "> ")})
    assert (estimate.mean, estimate.spread) == (None, None)
    assert Estimate.of({0: (0.5, "≤ "), 1: (0.7, "")}) == Estimate({0: 0.5, 1: 0.7}, "≤ ")


def test_unknown_cost_of_the_narrow_model_is_not_guessed() -> None:
    results = growing(starts={"expand": {20: (0.3, 0.1)}})
    sweep_of(results, "narrow-20")["run_flops"] = None
    found = answer(results)
    one = cell(found, "expand", 20, 20)
    assert (one["with_narrow"], one["with_tuning"], one["gain_at_equal_total"]) == (None, None, None)
    assert "not known with the narrow model's training counted in" in found.headline
    assert "None" not in words(found)


falling = st.lists(st.floats(0.01, 0.5), min_size=5, max_size=5).map(
    lambda steps: [4.0 - sum(steps[: i + 1]) for i in range(5)]
)


@given(falling, falling)
def test_whoever_is_ahead_needs_less(ours: list[float], theirs: list[float]) -> None:
    results = growing(starts={"expand": {20: (0.3, 0.1)}})
    for name, losses in (("expand-20", ours), ("scratch", theirs)):
        for end, loss in zip(sweep_of(results, name)["best_ends"], losses, strict=True):
            end |= {"loss": loss, "losses": [loss] * 3, "spread": 0.0}
    cells = cells_of(results, [sweep_of(results, "expand-20")], sweep_of(results, "scratch"))
    for one, mine, other in zip([found.to_row() for found in cells], ours, theirs, strict=True):
        assert 2.5 / 40 <= one["share"] <= 40 / 2.5
        assert (one["share"] <= 1) == (mine <= other) or one["sign"] == "> " or abs(one["share"] - 1) < 1e-3
        assert (one["scratch_times"] >= 1) == (mine <= other) or abs(one["scratch_times"] - 1) < 1e-3
        assert one["gain_at_equal_total"] <= other - mine + 1e-9
        assert one["share"] < one["with_narrow"] < one["with_tuning"]


# ---- which is best -----------------------------------------------------------------------------------------


def test_the_best_start_by_the_rule() -> None:
    found = answer(growing())
    assert found.data["best"] == "expand"
    assert found.data["mean_ranks"] == {"expand": 1.125, "continued": 2.375, "default": 2.5}
    assert found.headline == (
        "By the mean rank over 8 cells with 5 tokens per parameter or more expand is the best start (mean rank 1.12; "
        "continued 2.38, default 2.50). With a narrow model at 20 and the wide one at 20 tokens per parameter, expand "
        "takes 100% ± 0% of the FLOPs from scratch to the same loss, 112% with the narrow model's training counted in; "
        "it is ahead of continued and default by more than a deviation. With a narrow model at 320 and the wide one at 5 "
        "tokens per parameter, expand takes ≤ 50% of the FLOPs from scratch to the same loss, ≤ 850% with the narrow "
        "model's training counted in; to its own loss training from scratch takes 4.00 ± 0.00 times its FLOPs; it is "
        "ahead of default by more than a deviation, not ahead of continued by more than one."
    )
    assert found.figures[0][0] == "100% ± 0%"
    rows = tables(found)[
        "Every start against expand, with a narrow model at 20 and the wide one at 20 tokens per parameter"
    ]
    assert rows[1] == {
        "start": "default", "share": "141% ± 0%", "with the narrow model": "154%", "scratch needs ×": "0.84 ± 0.00",
        "behind by more than a deviation": "yes",
    }  # fmt: skip


def test_within_a_deviation_the_simpler_start_is_ahead() -> None:
    leads = {"default": {20: (0.295, 0.1)}, "expand": {20: (0.3, 0.1)}}
    assert answer(growing(leads)).data["best"] == "expand"
    apart = {"expand": (-0.02, 0.0, 0.02)}  # of their difference, seed by seed, 0.01 is a deviation
    assert answer(growing(leads, offsets=apart)).data["best"] == "default"
    assert answer(growing(dict(reversed(leads.items())), offsets=apart)).data["best"] == "expand"


def test_one_seed_has_no_deviation() -> None:
    assert is_below(Estimate({0: 1.0}), Estimate({0: 1.001}))
    assert not is_below(Estimate({0: 1.0}), Estimate({0: 1.0}))


def test_only_cells_count_that_all_starts_have() -> None:
    leads = {"default": {5: (9.0, 0.0), 20: (0.25, 0.1)}, "expand": {20: (0.3, 0.1)}}
    found = answer(growing(leads, ratios={"default-20": [2.5, 5, 10]}))
    assert found.data["mean_ranks"] == {"expand": 1.0, "default": 2.0}
    assert "over 2 cells with 5 tokens" in found.headline
    found = answer(growing({"default": {5: (0.2, 0.1)}, "expand": {20: (0.3, 0.1)}}))
    assert found.data["best"] is None
    assert found.headline == (
        "No start is called best: none of the cells from 5 tokens per parameter has all."
    )


def test_where_training_from_scratch_catches_up() -> None:
    found = answer(growing(ratios={"default-320": [2.5, 5]}))
    title = "Tokens per parameter at which training from scratch catches up"
    rows = {row["start"]: row for row in tables(found)[title]}
    assert rows["default"] == {
        "start": "default", "narrow model at 20": "14.1 ± 0.0", "narrow model at 320": "> 5.0",
    }  # fmt: skip
    assert rows["expand"]["narrow model at 320"] == f"{2.5 * 2 ** (0.55 / 0.15):.1f} ± 0.0"
    never = answer(growing({"late": {20: (-0.1, 0.1)}}))
    assert never.data["caught_up"] == [
        {"start": "late", "narrow_tokens_per_parameter": 20, "tokens_per_parameter": 2.5, "spread": None, "sign": "≤ ", "seeds": 3}
    ]  # fmt: skip


def test_a_start_without_a_loss_is_named() -> None:
    results = growing()
    for name in ("default-20", "default-320"):
        sweep_of(results, name)["best_ends"] = []
    found = answer(results)
    assert "Without a cell: default." in text(found)
    assert found.data["mean_ranks"].keys() == {"continued", "expand"}
    sweep_of(results, "scratch")["best_ends"] = []
    assert answer(results).headline == "There is no map yet: scratch has no run that ended with a loss."


# ---- edges -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "marked"),
    [
        ({"default-20": {10: ["lr"]}}, {10}),
        ({"default-20": {5: ["lr"]}}, {5, 10}),  # the loss from scratch at 10 is reached between 5 and 10
        ({"scratch": {40: ["lr"]}}, {20, 40}),  # 20 and the narrow model cost as much as 22.5
    ],
)
def test_a_number_that_goes_by_a_knob_at_the_edge_is_marked(where: Any, marked: set[float]) -> None:
    results = growing(starts={"default": {20: (0.25, 0.1)}}, at_edge=where)
    for form in (results, read_back(results)):
        found = answer(form)
        cells = found.data["cells"]
        assert {one["tokens_per_parameter"] for one in cells if one["at_edge"] == ["lr"]} == marked
        assert "†: the best lr, where this number goes by it, stands at the edge" in text(found)
        (rows,) = [
            rows for title, rows in tables(found).items() if title.startswith("The narrow model at 20")
        ]
        for key in ("share", "with the narrow model", "with tuning, too", "scratch needs ×"):
            assert {float(row["tokens per parameter"]) for row in rows if "†" in row[key]} == marked
    assert "†" not in words(answer(growing()))


# ---- the pictures ------------------------------------------------------------------------------------------


def test_the_map_shows_every_cell_and_where_gain_turns_into_loss() -> None:
    found = answer(growing(starts={"expand": {20: (0.3, 0.1), 320: (0.55, 0.15)}}))
    share, times, lead = [part for part in found.parts if isinstance(part, Plot)]
    assert [plot.name for plot in (share, times, lead)] == [
        "growing_pays",
        "ahead_of_scratch",
        "loss_above_scratch",
    ]
    (axes,) = times.figure.axes
    said = [label.get_text() for label in axes.texts]
    assert said[:5] == ["2.83", "2.00", "1.41", "1.00", "0.71"]
    assert len(times.rows) == len(said) == 10
    # Both lines of narrow models are ahead up to 20; at 40 neither is.
    ends = sorted((tuple(line.get_xdata()), tuple(line.get_ydata())) for line in axes.lines)
    assert ends == [((3.5, 3.5), (-0.5, 0.5)), ((3.5, 3.5), (0.5, 1.5))]
    (axes,) = share.figure.axes
    assert [label.get_text() for label in axes.texts][:5] == ["≤200%", "≤100%", "75%", "112%", ">106%"]
    assert {row["line"] for row in lead.rows} == {"expand"}


def test_a_bound_that_leaves_it_open_has_no_colour() -> None:
    found = answer(growing(starts={"expand": {20: (0.3, 0.1)}}, ratios={"scratch": [3, 5, 10, 20, 40]}))
    (share, *_) = [part for part in found.parts if isinstance(part, Plot)]
    assert "grey where they leave it open" in share.caption
    (image,) = share.figure.axes[0].images
    # At 3, with at most 2.5/3 and the narrow model's 2.5/3, it may pay.
    assert [bool(masked) for masked in image.get_array().mask[0]] == [True, False, False, False, False]
    # Of three seeds that end where scratch does, 0.05 lower and 0.05 higher, at either end one goes by a bound.
    found = answer(growing({"level": {20: (0.0, 0.0)}}, offsets={"level": (-0.06, 0.0, 0.06)}))
    (_, times, *_) = [part for part in found.parts if isinstance(part, Plot)]
    (image,) = times.figure.axes[0].images
    assert [bool(masked) for masked in image.get_array().mask[0]] == [True, False, False, False, True]
    assert times.figure.axes[0].texts[4].get_text() == f">{(2 + 2**-0.25) / 3:.2f}"


def test_many_starts_stand_in_rows() -> None:
    found = answer(growing({f"start{i}": {20: (0.3, 0.1 + 0.01 * i)} for i in range(6)}))
    (share, *_) = [part for part in found.parts if isinstance(part, Plot)]
    assert [axes.get_title() for axes in share.figure.axes] == [f"start{i}" for i in range(6)]


def test_it_can_be_asked_of_what_was_read_back() -> None:
    results = growing()
    assert copy.deepcopy(answer(results).data) == answer(read_back(results)).data
    assert best_ends([], 1) == []
