"""The answers say what the numbers are, whatever state the study is in."""

import copy
import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from made_up import (
    NOISES,
    RATES,
    Row,
    best_ends,
    check,
    comparison,
    demo,
    dynamics,
    growing,
    parametrizations,
    procedure,
    pruned,
    rates,
    read_back,
    row,
    study,
    sweep,
    valley,
)

from mupscale import GrowthError
from mupscale.study.page import Answer, Table
from mupscale.study.page.plots import Plot
from mupscale.study.questions import QUESTIONS, answers, ask
from mupscale.study.questions import check as check_question
from mupscale.study.questions.reading import first_below, steps_to_reach, sweep_of, tuning_of
from mupscale.study.questions.saving import compare
from mupscale.study.questions.tuned import edges, in_words, point_rows


@pytest.fixture(scope="module")
def finished() -> Row:
    return procedure({40: 1.75, 80: 1.62, 120: 1.55, 200: 1.46})


@pytest.fixture(scope="module")
def checked() -> Row:
    return check({32: (0.004, 1.0), 64: (0.004, 1.0), 128: (0.002, 1.0)})


def answer(results: Row, name: str) -> Answer:
    """To the question of that name that the study asks."""
    return ask(results, next(question for question in results["questions"] if question["ask"] == name))


def tables(found: Answer) -> list[Any]:
    return [part.rows for part in found.parts if isinstance(part, Table) and part.rows]


def plots(found: Answer) -> dict[str, Plot]:
    return {part.name: part for part in found.parts if isinstance(part, Plot)}


def text(found: Answer) -> str:
    return " ".join(part for part in found.parts if isinstance(part, str))


def cells(rows: Any, **where: str) -> dict[str, str]:
    """The one row with these cells."""
    (found,) = [row for row in rows if all(row[key] == value for key, value in where.items())]
    return found


# ---- questions are read with care --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"ask": "savings", "of": "a", "against": "b"}, "'savings': did you mean saving?"),
        ({}, "None: expected cost, equality"),
        ({"ask": "saving", "of": "a"}, "saving: against is missing"),
        ({"ask": "saving", "of": ["a"], "against": "b"}, "of is .*expected one name"),
        ({"ask": "tuned", "off": "a"}, "unknown key 'off'; did you mean of?"),
        ({"ask": "cost", "of": "a"}, "unknown key 'of'; expected none"),
        ({"ask": "tuned", "of": ["a", "growm"]}, "no sweep 'growm'; did you mean grown?"),
        ({"ask": "transfer", "of": [["a", "b"], ["grown", "x"]]}, "no sweep 'x'; expected a, b, grown"),
        ({"ask": "transfer", "of": [["a", "b"]], "names": ["one", "two"]}, "as many names as lists"),
        ({"ask": "points", "of": []}, "no sweep ''"),
    ],
)
def test_a_wrong_question_is_refused(question: Row, message: str) -> None:
    with pytest.raises(GrowthError, match=message):
        check_question(question, ["a", "b", "grown"])


def test_every_question_is_asked_somewhere_here(finished: Row, checked: Row) -> None:
    studies = [finished, checked, demo(), comparison(), dynamics(), growing()]
    assert {question["ask"] for results in studies for question in results["questions"]} == set(QUESTIONS)


# ---- tuned, points, cost -----------------------------------------------------------------------------------


def test_tuned_values(finished: Row) -> None:
    found = answer(finished, "tuned")
    (rows,) = tables(found)
    assert cells(rows, sweep="grow-32", knob="noise") == {
        "sweep": "grow-32", "knob": "noise", "best": "1", "tried": "0 … 2 (4 values)", "at the edge": "",
    }  # fmt: skip
    assert cells(rows, sweep="grow-32", knob="loss")["best"] == "1.8000 ± 0.0040"
    assert found.headline == "Best from scratch at 32: lr 0.004; grown at 32 → 64: lr 0.004, noise 1."
    assert ("1", "best noise, grown") in found.figures
    assert found.data["grow-32"]["point"] == {"lr": 0.004, "noise": 1.0}


def test_points_of_a_sweep(finished: Row) -> None:
    grow = sweep_of(finished, "grow-32")
    rows = point_rows(grow)
    assert len(rows) == len(RATES) * len(NOISES)
    assert cells(rows, **{"": "best"}) == {"lr": "0.004", "noise": "1", "loss": "1.8000 ± 0.0040", "": "best"}
    assert cells(rows, lr="0.016", noise="0") == {"lr": "0.016", "noise": "0", "loss": "–", "": "diverged"}
    # 0.02 · 0.5² is 0.005: beyond the spread of 0.004.
    assert in_words(grow) == ["4 of 20 points diverged."]


def test_points_within_the_spread_are_counted() -> None:
    losses = [(0.1, 2.0), (0.2, 2.01), (0.4, 2.1)]
    points = [row({"lr": lr}, [loss - 0.01, loss + 0.01], i) for i, (lr, loss) in enumerate(losses)]
    assert "1 other point lies within the spread of the best." in in_words(sweep("grow-32", points))


def test_a_pruned_point_has_no_loss() -> None:
    points = [pruned({"lr": 0.001}, 0), *rates(0.004, 2.0)[1:]]
    assert cells(point_rows(sweep("scratch-32", points)), lr="0.001") == {
        "lr": "0.001",
        "loss": "–",
        "": "pruned",
    }
    assert "1 of 5 points pruned." in in_words(sweep("scratch-32", points))


@pytest.mark.parametrize(("best_lr", "side"), [(0.016, "upper"), (0.001, "lower")])
def test_an_optimum_at_the_edge_is_said_to_be_there(best_lr: float, side: str) -> None:
    grow = sweep("grow-32", valley(best_lr, 0.0, 1.8), begin="grow", width=64, at_edge=["lr", "noise"])
    found = ask(study([grow]), {"ask": "tuned", "of": "grow-32"})
    assert f"{best_lr:g}, stands at the {side} edge of what was tried: a better one may lie beyond." in text(
        found
    )
    assert "The best noise is 0, the lowest there is." in text(found)
    assert cells(tables(found)[0], knob="lr")["at the edge"] == "yes"


def test_two_values_are_said_to_be_few() -> None:
    grow = sweep("grow-32", valley(0.004, 1.0, 1.8, rates=[0.002, 0.004]))
    assert edges(grow) == ["Of lr only two values were tried: the optimum may lie elsewhere."]


def test_what_tuning_cost(finished: Row) -> None:
    spent = 10 * 10 * 100 + 2 * 100 * 10 + 20 * 3 * 100 * 40  # scratch, base, grow: runs × steps × FLOPs
    found = answer(finished, "cost")
    (rows,) = tables(found)
    assert found.data["tuning_flops"] == spent == 252_000
    assert cells(rows, sweep="of these, for rates that others take")["FLOPs"] == "2.52e5"
    assert cells(rows, sweep="grow-32") == {
        "sweep": "grow-32", "trials": "20 of 20", "FLOPs": "2.40e5", "of the large run": f"{240_000 / 256_000:.1%}",
    }  # fmt: skip
    assert "98.4% of one run of the dearest sweep (2.56e5)" in text(found)
    assert "took 1.5 minutes" in text(found)


def test_a_run_that_was_needed_anyway_is_not_tuning() -> None:
    """Rates tried on the narrow model that grows: one of its runs would have been trained in any case."""
    narrow = sweep("narrow-64", rates(0.004, 2.0))
    grown = sweep("grown-128", rates(0.004, 1.5), begin="grow", source="narrow-64", takes={"lr": "narrow-64"})
    assert tuning_of(study([narrow, grown]), [grown]) == 40 * 100 * (2 * 5 - 1)


# ---- saving ------------------------------------------------------------------------------------------------


def test_what_growing_saves(finished: Row) -> None:
    # 1.5 lies at 5/9 of the way from 1.55 to 1.46, so at 120 · (200/120)^(5/9) steps of 400.
    share = 120 * (200 / 120) ** (5 / 9) / 400
    found = answer(finished, "saving")
    reach, lengths = tables(found)
    tuned = found.data["tuned"]
    assert tuned["ratio"] == pytest.approx(share, abs=1e-3)
    assert tuned["with_before"] == pytest.approx(share + 16_000 / 256_000, abs=1e-3)  # one base model
    assert tuned["with_tuning"] == pytest.approx(share + (16_000 + 252_000) / 256_000, abs=1e-3)
    assert cells(reach, rates="tuned") == {
        "rates": "tuned", "lr grown": "0.004", "lr from scratch": "0.008", "loss to reach": "1.5000 ± 0.0283",
        "FLOPs to reach it": "1.02e5", "of from scratch": "40%", "with the base model": "46%", "with tuning, too": "145%",
    }  # fmt: skip
    assert cells(reach, rates="transferred")["of from scratch"] == "22%"
    assert found.headline == (
        "The grown model ended at a loss of 1.460 ± 0.014 after 200 steps, the same one from scratch at 1.600 ± 0.028 "
        "after 400. To the same loss the grown model takes 22% of the FLOPs from scratch, 29% with what came before "
        "counted in (it pays), 127% with the tuning, too, counted in (it does not pay)."
    )
    assert "With the best of all tried here (lr 0.004 grown, 0.008 from scratch) it takes 40%" in text(found)
    assert [row["loss"] for row in lengths if row["model"] == "grown"] == [
        f"{loss:.4f} ± 0.0141" for loss in (1.75, 1.62, 1.55, 1.46)
    ]
    assert cells(lengths, model="from scratch", lr="0.008") == {
        "model": "from scratch", "lr": "0.008", "steps": "400", "FLOPs": "2.56e5", "loss": "1.5000 ± 0.0283", "": "best",
    }  # fmt: skip
    assert found.figures[0] == ("22%", "of the FLOPs from scratch to the same loss")


def test_compute_of_the_base_model_is_counted_before_the_grown_one(finished: Row) -> None:
    plot = plots(answer(finished, "saving"))["final_loss_over_flops"]
    last = {row["line"]: row for row in plot.rows}
    assert last["grown"]["flops"] == 200 * 640
    assert last["grown, with what came before"]["flops"] == 200 * 640 + 16_000
    assert last["from scratch"]["flops"] == 400 * 640
    assert last["from scratch"]["loss"] == pytest.approx(1.5)
    ends = [row for row in plot.rows if row["line"] == "grown, ends"]
    assert [row["flops"] / 640 for row in ends] == [40, 80, 120, 200]
    assert ends[0]["highest"] == 1.76


def test_bounds_are_called_bounds() -> None:
    short = answer(procedure({100: 1.45, 200: 1.4}, goal=1.5, transferred=1.5), "saving")
    assert cells(tables(short)[0], rates="tuned")["of from scratch"] == "≤ 25%"
    assert (
        "takes at most 25% of the FLOPs from scratch, at most 31% with what came before counted in (it pays)"
        in text(short)
    )
    assert "at most 130% with the tuning, too, counted in (whether it pays is not known)" in text(short)
    assert "since already the shortest run grown gets there" in text(short)

    never = answer(procedure({100: 1.8, 200: 1.7}, goal=1.5, transferred=1.5), "saving")
    assert cells(tables(never)[0], rates="tuned")["FLOPs to reach it"] == "> 1.28e5"
    assert "more than 56% with what came before counted in (whether it pays is not known)" in text(never)
    assert "more than 155% with the tuning, too, counted in (it does not pay)" in text(never)
    assert "since the longest run grown does not get there" in text(never)


def test_rates_that_were_best_anyway(finished: Row) -> None:
    results = copy.deepcopy(finished)
    sweep_of(results, "fresh-256")["best"] = {"point": {"lr": 0.004}, "loss": 1.6, "spread": 0.02}
    assert "Nothing else that was tried here did better, for either." in text(answer(results, "saving"))


def test_a_large_rate_at_the_edge_is_said_to_be_there(finished: Row) -> None:
    results = copy.deepcopy(finished)
    sweep_of(results, "fresh-256")["at_edge"] = ["lr"]
    assert "The best rate of fresh-256 stands at the edge of those tried there." in text(
        answer(results, "saving")
    )


def test_a_transferred_rate_that_diverged(finished: Row) -> None:
    results = copy.deepcopy(finished)
    sweep_of(results, "fresh-256")["points"][0] = row({"lr": 0.004}, [1.6, None], 0, steps=400)
    for form in (results, read_back(results)):
        found = answer(form, "saving")
        reach, lengths = tables(found)
        assert [cell["rates"] for cell in reach] == ["tuned"]
        assert found.headline == "With the values taken over a run diverged."
        assert cells(lengths, model="from scratch", lr="0.004")[""] == "diverged"


@pytest.mark.parametrize(
    ("points", "said"),
    [
        ([], "There is no comparison: fresh-256 is not finished."),
        (
            [row({"lr": 0.004}, [None])],
            "There is no comparison: fresh-256 has no run that ended with a loss.",
        ),
    ],
)
def test_without_runs_from_scratch_there_is_no_comparison(
    finished: Row, points: list[Row], said: str
) -> None:
    results = copy.deepcopy(finished)
    results["sweeps"][-1] = sweep("fresh-256", points)
    found = answer(results, "saving")
    assert found.headline == said
    assert not plots(found)
    assert len(tables(found)[0]) == 4 + len(points)


def test_from_scratch_at_several_lengths_against_one_grown_run() -> None:
    """The other way round: 3.0 lies at a third of the way from 200 steps (3.2) to 400 (2.6)."""
    found = answer(demo(), "saving")
    tuned = found.data["tuned"]
    steps = 200 * 2 ** (1 / 3)
    assert tuned["backwards"]
    assert tuned["steps"] == pytest.approx(steps, abs=0.1)
    assert tuned["ratio"] == pytest.approx(100 / steps, rel=1e-3)
    assert tuned["with_before"] == pytest.approx(200 / steps, rel=1e-3)  # 400 narrow steps cost 100 wide ones
    assert "with_tuning" not in tuned
    assert tuned["equal_steps"]["loss"] == 4.0
    assert tuned["equal_compute"]["steps"] == 200
    (row,) = tables(found)[0]
    assert row["of from scratch"] == "40%"
    assert "From scratch, as many steps lead to 4.000 (100 steps)." in text(found)
    assert "From scratch, the compute of both models leads to 3.200 (200 steps)." in text(found)


def test_growing_that_did_not_pay_shows_as_a_loss() -> None:
    worse = answer(demo(scratch={100: 2.9, 200: 2.8, 400: 2.6}), "saving")
    assert worse.data["tuned"]["bound"] == "at most"
    assert tables(worse)[0][0]["with the base model"] == "≥ 200%"
    assert "at least 200% with what came before counted in (it does not pay)" in text(worse)
    never = answer(demo(scratch={100: 4.0, 200: 3.9, 400: 3.8}), "saving")
    assert tables(never)[0][0]["of from scratch"] == "< 25%"


def test_unknown_cost_of_a_checkpoint_is_not_guessed() -> None:
    results = demo()
    sweep_of(results, "narrow-64")["run_flops"] = None
    found = answer(results, "saving")
    assert found.data["tuned"]["with_before"] is None
    assert found.data["tuned"]["equal_compute"] is None
    assert tables(found)[0][0]["with the base model"] == "not known"
    assert "what the training before cost is not known" in text(found)


losses = st.lists(st.floats(0.5, 5.0), min_size=1, max_size=6)


@given(losses, st.floats(0.5, 5.0))
def test_nothing_is_extrapolated(falling: list[float], goal: float) -> None:
    lengths = [(100 * 2**i, loss) for i, loss in enumerate(sorted(falling, reverse=True))]
    steps, bound = steps_to_reach(lengths, goal)
    assert 100 <= steps <= lengths[-1][0]
    assert (bound == "at most") == (goal >= lengths[0][1])
    assert (bound == "more than") == (goal < lengths[-1][1])


@given(st.floats(1.3, 1.9))
def test_a_share_is_below_one_exactly_if_the_loss_is_reached_earlier(goal: float) -> None:
    results = procedure({100: 1.9, 400: 1.6, 800: 1.3}, goal=goal, transferred=goal)
    ours, theirs = sweep_of(results, "grown-128"), sweep_of(results, "fresh-256")
    found = compare(results, ours, theirs, ours["points"][0], theirs["points"][0])
    assert found["bound"] in ("interpolated", "at most")
    assert (found["ratio"] < 1) == (found["steps"] < 400)
    assert found["ratio"] < found["with_before"] < found["with_tuning"]


# ---- transfer ----------------------------------------------------------------------------------------------


def test_transfer_table(checked: Row) -> None:
    found = answer(checked, "transfer")
    (rows,) = tables(found)
    assert [row["widths"] for row in rows] == ["32 → 64", "64 → 128", "128 → 256"]
    assert [row["best lr"] for row in rows] == ["0.004", "0.004", "0.002"]
    assert [row["moved"] for row in rows] == ["–", "no", "lr ÷2"]
    assert rows[2]["at the narrowest optimum"] == "1.8300"
    assert rows[2]["regret"] == f"{0.03 / 1.8:.2%}"
    assert found.passed is False
    assert found.headline == (
        "From 32 → 64 to 128 → 256, 4 times as wide, the optimum moved: lr from 0.004 to 0.002; it kept noise "
        "at 1. At 128 → 256 the narrowest optimum costs 1.67% of the best loss there, 1.8000 ± 0.0040. It does "
        "not transfer."
    )
    assert ("no", "does the optimum transfer?") in found.figures


def test_an_optimum_that_stays() -> None:
    found = answer(check({32: (0.004, 1.0), 64: (0.004, 1.0)}), "transfer")
    assert found.passed is True
    assert "2 times as wide, the optimum stayed where it was: lr at 0.004, noise at 1." in found.headline
    assert (
        "At 64 → 128 the narrowest optimum is the best point, too, with loss 2.0000 ± 0.0040."
        in found.headline
    )


def test_an_optimum_that_diverges_when_wide() -> None:
    results = check({32: (0.008, 1.0), 64: (0.002, 1.0)})
    for form in (results, read_back(results)):
        found = answer(form, "transfer")
        assert "At 64 → 128 the narrowest optimum diverged. It does not transfer." in found.headline
        assert tables(found)[0][1]["regret"] == "diverged"
        assert found.passed is False


def test_a_width_at_which_everything_diverges_does_not_pass() -> None:
    results = check({32: (0.004, 1.0), 64: (0.004, 1.0), 128: (0.004, 1.0)})
    results["sweeps"][-1] = sweep("grow-128", [row({"lr": 0.004}, [None])], begin="grow", width=256)
    found = answer(results, "transfer")
    assert "Every point diverged at 256." in found.headline
    assert found.passed is False


def test_an_optimum_that_was_not_tried_when_wide() -> None:
    narrow = [row({"lr": 0.0031, "noise": 0.9}, [1.5], 0), row({"lr": 0.0052, "noise": 0.4}, [1.6], 1)]
    wide = [row({"lr": 0.0044, "noise": 0.2}, [1.3], 0), row({"lr": 0.0012, "noise": 0.7}, [1.4], 1)]
    grows = [sweep("a", narrow, begin="grow", width=64), sweep("b", wide, begin="grow", width=128)]
    found = ask(study(grows), {"ask": "transfer", "of": ["a", "b"]})
    assert "At 64 → 128 the narrowest optimum was not tried, so that its cost is not known." in found.headline
    assert tables(found)[0][1]["at the narrowest optimum"] == "not tried"
    assert found.passed is None


def test_a_transfer_check_that_has_just_begun(checked: Row) -> None:
    results = copy.deepcopy(checked)
    for name in ("grow-64", "grow-128"):
        sweep_of(results, name)["finished"] = False
    found = answer(results, "transfer")
    assert found.headline == "Fewer than two widths are known yet."
    assert found.passed is None


def test_one_line_of_widths_against_another() -> None:
    found = answer(parametrizations(), "transfer")
    assert found.passed is True
    assert found.data["standard parametrization"]["factor"] == {"lr": pytest.approx(4)}
    assert found.data["μP"]["factor"] == {"lr": 1.0}
    assert (
        "standard parametrization: From 64 to 256, 4 times as wide, the optimum moved: lr from 0.008 to 0.002."
        in text(found)
    )
    (plot,) = plots(found).values()
    assert {row["panel"] for row in plot.rows} == {"standard parametrization", "μP"}
    left, right = plot.figure.axes
    assert left.get_ylim() == right.get_ylim()


def test_a_rate_at_the_edge_does_not_pass() -> None:
    found = answer(parametrizations(at_edge=["lr"]), "transfer")
    assert found.passed is False
    assert "stands at the edge of what was tried (lr at 64; lr at 256)" in text(found)


def test_a_rate_that_moves_as_much_as_the_other_does_not_pass() -> None:
    results = parametrizations()
    for width in (64, 256):
        sweep_of(results, f"standard-{width}")["best"] = {"point": {"lr": 0.004}, "loss": 3.0, "spread": None}
    assert answer(results, "transfer").passed is False


# ---- starts ------------------------------------------------------------------------------------------------


def test_which_start_is_best() -> None:
    found = answer(comparison(), "starts")
    narrow, wide = tables(found)
    assert [row["start"] for row in narrow] == ["duplicate", "zero_pad", "scratch"]
    assert cells(wide, start="zero_pad")["loss at step 0"] == "4.550"
    assert cells(narrow, start="duplicate") == {
        "start": "duplicate", "lr": "0.004", "loss at step 0": "3.400", "constant": "3.100 ± 0.012",
        "cooldown": "3.000 ± 0.014", "reaches scratch at": "0% (100%)",
    }  # fmt: skip
    assert cells(narrow, start="scratch")["reaches scratch at"] == "100%"
    rows = {(row["start"], row["width"]): row for row in found.data["starts"]}
    # 1.5 · (1 − step/100)³ falls to 0.35 at linear interpolation between steps 30 and 40.
    high, low = 1.5 * 0.7**3, 1.5 * 0.6**3
    assert rows["zero_pad", 128]["share"] == pytest.approx((30 + 10 * (high - 0.35) / (high - low)) / 100)
    assert rows["zero_pad", 256]["with_before"] - rows["zero_pad", 256]["share"] == pytest.approx(
        400 * 40 / (100 * 640)
    )
    assert "At d_model 256 duplicate is best: it ends at 2.900 ± 0.014 after the cooldown" in found.headline
    plot = plots(found)["starts"]
    diamonds = [row for row in plot.rows if row["line"] == "zero_pad, ends"]
    assert [row["loss"] for row in diamonds] == pytest.approx([3.05, 2.95])


def test_a_narrow_model_that_is_continued_is_compared_at_the_width_that_it_is_set_against() -> None:
    results = comparison()
    continued = sweep_of(results, "zero_pad-128") | {
        "name": "continued-256",
        "width": 64,
        "begin": "continue",
    }
    results["sweeps"].append(continued)
    results["questions"][0]["of"].append("continued-256")
    _, wide = tables(answer(results, "starts"))
    assert "continued" in [row["start"] for row in wide]
    assert cells(wide, start="continued")["reaches scratch at"] != "–"


def test_a_start_that_never_gets_there_and_one_at_the_edge() -> None:
    results = comparison()
    pad = sweep_of(results, "zero_pad-128")
    pad |= {"at_edge": ["lr"], "constant": False}
    for point in pad["points"]:
        point["curve"] = [[step, *(loss + 1 for loss in band)] for step, *band in point["curve"]]
    row = cells(tables(answer(results, "starts"))[0], start="zero_pad")
    assert row["reaches scratch at"] == "not reached"
    assert row["lr"] == "0.004*"
    assert row["constant"] == "–"


def test_starts_without_a_loss_are_named() -> None:
    results = comparison()
    place = results["sweeps"].index(sweep_of(results, "zero_pad-128"))
    results["sweeps"][place] = sweep(
        "zero_pad-128", [row({"lr": 0.004}, [None])], begin="grow", source="narrow-64"
    )
    found = answer(results, "starts")
    assert "Without a loss: zero_pad-128." in text(found)
    assert [row["start"] for row in tables(found)[0]] == ["duplicate", "scratch"]


@example([4.0, 2.3127175692223654, 1.0], 2.3127175692223654)  # where rounding would go beyond the point
@given(losses, st.floats(0.5, 5.0))
def test_a_curve_is_below_where_it_is_said_to_be(curve: list[float], goal: float) -> None:
    points = [(10 * i, loss) for i, loss in enumerate(curve)]
    step = first_below(points, goal)
    assert (step is None) == (min(curve) > goal)
    if step is not None:
        assert 0 <= step <= points[-1][0]
        assert all(loss > goal for at, loss in points if at < step)


# ---- norms, equality, line, plan ---------------------------------------------------------------------------


def test_sizes_over_width_and_time() -> None:
    found = answer(dynamics(), "norms")
    assert found.data["change"] == {"λ = 0": 1.0, "λ = 0.4": 1.0, "λ = 1": 2.0}
    assert found.data["over_time"].keys() == {"activation", "weight", "gradient"}
    assert found.data["lowest"] == {128: "λ = 0.4", 256: "λ = 0.4"}
    assert found.headline.startswith(
        "From d_model 128 to 256, mean activations at the end change by at most ×1 (λ = 0)"
    )
    assert tables(found)[0][0] == {"d_model": "128", "λ = 0": "3.400", "λ = 0.4": "3.000", "λ = 1": "3.600"}
    made = plots(found)
    assert list(made) == [
        "activations_over_width",
        "activations_over_time",
        "weights_over_time",
        "gradients_over_time",
    ]
    rows = [
        row for row in made["activations_over_width"].rows if row["line"] == "λ = 1" and row["panel"] == "mlp"
    ]
    assert [(row["width"], row["mean_absolute"]) for row in rows] == [(128, 4.0), (256, 8.0)]


def test_sizes_that_nobody_recorded() -> None:
    results = study([sweep("scratch-32", rates(0.004, 2.0))])
    assert text(ask(results, {"ask": "norms", "of": "scratch-32"})) == "No sizes are recorded yet."


def test_whether_anything_was_lost() -> None:
    results = demo()
    found = answer(results, "equality")
    assert found.passed is True
    assert tables(found)[0] == [
        {"sweep": "grown-128", "equal": "yes", "largest difference": "2.5e-15", "outputs vary by": "1.25"}
    ]
    sweep_of(results, "grown-128")["points"][0]["equality"]["equal"] = False
    assert answer(results, "equality").passed is False
    sweep_of(results, "grown-128")["points"][0]["equality"] = None
    assert answer(results, "equality").passed is None


def side_by_side(apart: float) -> Row:
    """A narrow model continued, and grown without noise; their losses are so far apart."""
    equality = {"equal": True, "max_abs_diff": 2.5e-7, "logits_std": 1.25, "text": "equal"}
    grown = row({"lr": 0.01}, [2.0 + apart, 2.2 + apart], equality=equality)
    return study(
        [
            sweep("narrow-32", [row({"lr": 0.01}, [3.0, 3.0])]),
            sweep("continued-32", [row({"lr": 0.01}, [2.0, 2.2])], begin="continue", source="narrow-32"),
            sweep("grown-64", [grown], begin="grow", source="narrow-32"),
        ],
        {"ask": "equality", "of": ["grown-64"], "against": ["continued-32"]},
    )


@pytest.mark.parametrize(
    ("apart", "passed", "way"), [(1e-6, True, "the same way"), (0.01, False, "different ways")]
)
def test_whether_anything_was_lost_on_the_way(apart: float, passed: bool, way: str) -> None:
    found = answer(side_by_side(apart), "equality")
    assert found.passed is passed
    assert found.data["grown-64"]["drift"] == pytest.approx(apart)
    assert f"Trained on with the same data, both went {way}" in text(found)
    assert {line["line"] for line in plots(found)["grown_and_continued"].rows} == {
        "grown",
        "the narrow one, continued",
    }


def test_one_history_through_all_stages() -> None:
    found = answer(demo(), "line")
    assert found.headline == "After 2 stages, 500 steps and 3.20e4 FLOPs the loss is 3.0000."
    rows = plots(found)["stages"].rows
    first, second = ([row for row in rows if row["line"] == f"stage {n}"] for n in (1, 2))
    assert first[-1]["flops"] == second[0]["flops"] == 400 * 40
    assert (second[-1]["step"], second[-1]["items"], second[-1]["flops"]) == (
        500,
        500_000,
        400 * 40 + 100 * 160,
    )


def test_what_became_of_every_parameter() -> None:
    (rows,) = tables(answer(demo(), "plan"))
    assert rows == [{"parameter": "model.embed_tokens.weight", "count": "1", "weight scale": "0.5"}]


# ---- pictures of what was tuned ----------------------------------------------------------------------------


def test_pictures_show_the_best_over_the_other_knobs(checked: Row) -> None:
    made = plots(answer(checked, "transfer"))
    over_lr = made["loss_over_lr"]
    rows = {(row["line"], row["lr"]): row for row in over_lr.rows}
    best = rows["grow-32", 0.004]
    assert [best[key] for key in ("loss", "lowest", "highest")] == pytest.approx([2.2, 2.196, 2.204])
    assert best["at"] == "noise 1"
    assert ("grow-32", 0.016) not in rows
    assert "4 in grow-32, 4 in grow-64, 8 in grow-128" in over_lr.caption
    above = [row["loss"] for row in made["loss_over_noise"].rows if row["line"] == "grow-64"]
    assert above == pytest.approx([0.02, 0.005, 0.0, 0.02])
    heat = made["loss_over_lr_and_noise"]
    assert len(heat.rows) == 3 * 20
    assert len(heat.figure.axes) == 3


def test_a_loss_near_divergence_does_not_flatten_the_valley() -> None:
    losses = zip(RATES, [1.6, 1.5, 1.52, 1.6, 9.0], strict=True)
    results = study(
        [sweep("scratch-32", [row({"lr": lr}, [loss], i) for i, (lr, loss) in enumerate(losses)])]
    )
    plot = plots(ask(results, {"ask": "tuned", "of": "scratch-32"}))["loss_over_lr"]
    low, high = plot.figure.axes[0].get_ylim()
    assert low < 1.5
    assert 1.6 < high < 2.5
    assert "cut off at the top" in plot.caption


def test_kinds_of_noise_are_lines_of_their_own() -> None:
    points = [
        point
        for kind, floor in (("balanced", 1.8), ("gaussian", 1.9))
        for point in valley(
            0.004, 1.0, floor, noise_kind=kind, operator="duplicate", optimizer_state="carried"
        )
    ]
    grow = sweep("grow-32", points, begin="grow", width=64)
    found = ask(study([grow]), {"ask": "tuned", "of": ["grow-32"]})
    assert {row["line"] for row in plots(found)["loss_over_noise"].rows} == {
        "grow-32 balanced",
        "grow-32 gaussian",
    }
    assert len(plots(found)["loss_over_lr_and_noise"].figure.axes) == 2
    assert cells(tables(found)[0], knob="noise_kind")["best"] == "balanced"
    assert cells(tables(found)[0], knob="noise_kind")["tried"] == "balanced, gaussian (2 values)"
    assert in_words(grow)[0] == "The same everywhere: operator duplicate, optimizer_state carried."


def test_random_points_make_no_line_and_no_grid() -> None:
    points = [
        row({"lr": 0.001 * 1.3**i, "noise": 0.1 + (7 * i % 13) / 10}, [2.0 + 0.01 * i], i) for i in range(12)
    ]
    made = plots(ask(study([sweep("grow-32", points)]), {"ask": "tuned", "of": "grow-32"}))
    assert "loss_over_lr_and_noise" not in made
    assert "Points without a line were sampled" in made["loss_over_lr"].caption
    assert len(made["loss_over_lr"].rows) == 12


# ---- any state ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["nothing", "all diverged", "all pruned", "one seed"])
@pytest.mark.parametrize("make", [lambda: procedure({40: 1.75, 200: 1.46}), lambda: check({32: (0.004, 1.0), 64: (0.004, 1.0)}), demo, comparison, dynamics, growing, parametrizations])  # fmt: skip
def test_every_question_has_an_answer_in_every_state(make: Any, state: str) -> None:
    results = make()
    for one in results["sweeps"]:
        points = one["points"]
        if state == "nothing":
            one |= {"points": [], "best": None, "done": 0, "finished": False, "flops": 0, "seeds": 0}
        elif state == "all diverged":
            one |= {"points": [row(p["point"], [None], i) for i, p in enumerate(points)], "best": None}
        elif state == "all pruned":
            one |= {"points": [pruned(p["point"], i) for i, p in enumerate(points)], "best": None}
        else:
            one["points"] = [
                row(p["point"], [p["loss"] if p["state"] == "complete" else None], i)
                for i, p in enumerate(points)
            ]
        one["best_ends"] = best_ends(one["points"], one["steps"])
    for form in (results, read_back(results)):
        for found in answers(form):
            assert found.title
            words = " ".join(
                [
                    found.headline,
                    text(found),
                    *(cell for table in tables(found) for r in table for cell in r.values()),
                ]
            )
            assert not any(word in words for word in ("None", "nan", "inf"))
            if state in ("nothing", "all diverged", "all pruned"):
                assert found.passed is not True
                assert not plots(found)


def test_the_same_results_give_the_same_answers(finished: Row) -> None:
    assert [a.headline for a in answers(finished)] == [a.headline for a in answers(read_back(finished))]
    assert all(math.isfinite(one["ratio"]) for one in answer(finished, "saving").data.values())
