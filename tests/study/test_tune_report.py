"""A study's tables, pictures and page say what the numbers are, whatever state the study is in."""

import copy
import csv
import json
import math
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest

from mupscale.study.savings import steps_to_reach
from mupscale.study.tune import outcome, words
from mupscale.study.tune.knob_pictures import loss_over_lr, loss_over_lr_and_noise, loss_over_noise
from mupscale.study.tune.page import json_safe, write_report
from mupscale.study.tune.pictures import all_pictures, final_loss_over_flops
from mupscale.study.tune.results import best_point, transfer
from mupscale.study.tune.tables import (
    cost_rows,
    length_rows,
    markdown_table,
    point_rows,
    reach_rows,
    tables,
    transfer_rows,
    tuned_rows,
)

RATES = [0.001, 0.002, 0.004, 0.008, 0.016]
NOISES = [0.0, 0.5, 1.0, 2.0]
STEP_FLOPS = {32: 10, 64: 40, 128: 160, 256: 640}

Row = dict[str, Any]


# ---- made-up results ---------------------------------------------------------------------------------------


def row(
    point: Row,
    losses: list[float | None],
    number: int,
    steps: int = 100,
    state: str = "complete",
    drop: float = 2.0,
    **more: Any,
) -> Row:
    diverged = None in losses
    known = [loss for loss in losses if loss is not None]
    state = "diverged" if diverged else state
    return {
        "trials": [number],
        "point": point,
        "state": state,
        "loss": math.inf if diverged else None if state == "pruned" else fmean(known),
        "spread": stdev(known) if len(known) > 1 and state == "complete" else None,
        "losses": losses,
        "curve": []
        if diverged
        else [[s, fmean(known) + drop * (1 - s / steps) ** 3] for s in range(0, steps + 1, steps // 10)],
        "steps": steps * len(losses),
        "lengths": {},
        **more,
    }


def sweep(
    kind: str,
    width: int,
    points: list[Row],
    *,
    to: int | None = None,
    total: int | None = None,
    at_edge: Any = (),
) -> Row:
    best = best_point(points)
    flops = STEP_FLOPS[to or width]
    done = sum(len(point["trials"]) for point in points)
    return {
        "name": f"{kind}-{width}",
        "kind": kind,
        "width": width,
        "to": to or width,
        "total": total or done,
        "finished": (total or done) == done,
        "flops_per_step": flops,
        "flops": flops * sum(point["steps"] for point in points),
        "knobs": list(points[0]["point"]) if points else ["lr"],
        "points": points,
        "best": best and {key: best[key] for key in ("point", "loss", "spread")},
        "at_edge": list(at_edge),
    }


def valley(
    best_lr: float, best_noise: float, floor: float, *, rates: Any = RATES, noises: Any = NOISES, **fixed: Any
) -> list[Row]:
    """A grid whose lowest loss is at a known place; twice the rate of the highest but one diverges."""
    points = []
    for number, (lr, noise) in enumerate(product(rates, noises)):
        loss = floor + 0.03 * math.log2(lr / best_lr) ** 2 + 0.02 * (noise - best_noise) ** 2
        losses: list[float | None] = [loss - 0.004, loss, loss + 0.004]
        if lr >= 4 * best_lr:
            losses = [loss, None, None]
        points.append(row({"lr": lr, "noise": noise, **fixed}, losses, number))
    return points


def scratch(best_lr: float = 0.004, width: int = 32, floor: float = 2.0) -> Row:
    points = [
        row({"lr": lr}, [floor + 0.05 * math.log2(lr / best_lr) ** 2 + d for d in (-0.01, 0.01)], i)
        for i, lr in enumerate(RATES)
    ]
    return sweep("scratch", width, points)


def study(sweeps: list[Row], **more: Any) -> Row:
    by_name = {s["name"]: s for s in sweeps}
    narrow = [by_name.get(f"{kind}-32") for kind in ("scratch", "grow", "base")]
    return {
        "mupscale": "0.1.0",
        "study": "toy",
        "data": "made-up text",
        "model": {"family": "llama", "layers": 3},
        "widths": {"narrow": 32, "large": 128, "growth": 2},
        "parameters": {32: 30_000, 64: 80_000, 128: 250_000, 256: 900_000},
        "passes_of_base": 0.5,
        "seeds": 3,
        "sweeps": sweeps,
        "flops": {s["name"]: s["flops"] for s in sweeps},
        "tuned": {
            "scratch": narrow[0] and narrow[0]["best"],
            "grow": narrow[1] and narrow[1]["best"],
            "flops": sum(s["flops"] for s in narrow if s),
            "large_run_flops": None,
            "share_of_large_run": None,
        },
        "final": None,
        "transfer": transfer([s for s in sweeps if s["kind"] == "grow" and s["finished"]]),
        **more,
    }


def procedure(grown_losses: dict[int, float], *, goal: float = 1.5, transferred: float = 1.6) -> Row:
    """A finished procedure: 400 steps from scratch end at `goal` with lr 0.008, at `transferred` with 0.004."""
    grow = sweep("grow", 32, valley(0.004, 1.0, 1.8), to=64)
    lengths = {"lengths": grown_losses}
    longest = max(grown_losses)
    ours = row(
        {"lr": 0.004, "noise": 1.0}, [grown_losses[longest] + d for d in (-0.01, 0.01)], 0, longest, **lengths
    )
    grown = sweep("grown", 128, [ours], to=256)
    fresh = sweep("fresh", 256, [
        row({"lr": lr}, [loss - 0.02, loss + 0.02], i, 400) for i, (lr, loss) in enumerate([(0.004, transferred), (0.008, goal)])
    ])  # fmt: skip
    bases = [sweep("base", width, [row({"lr": 0.004}, [2.0, 2.1], 0)]) for width in (32, 128)]
    results = study([scratch(), *bases, grow, grown, fresh])
    results["transfer"] = None
    tuning, base, large = results["tuned"]["flops"], 200 * 160, 400 * 640
    results["tuned"] |= {"large_run_flops": large, "share_of_large_run": tuning / large}

    def against(lr: float, loss: float) -> Row:
        reach = steps_to_reach(sorted(grown_losses.items()), loss)
        needed = reach["steps"] * 640
        return {
            "grown_lr": 0.004, "scratch_lr": lr, "scratch_loss": loss, "scratch_spread": 0.02, "scratch_flops": large,
            "grown_losses": grown_losses, "grown_spread": 0.01, "steps_to_reach": reach, "flops_to_reach": needed,
            "ratio": needed / large, "ratio_with_narrow": (needed + base) / large,
            "ratio_with_narrow_and_tuning": (needed + base + tuning) / large,
        }  # fmt: skip

    results["final"] = {
        "narrow_flops": base,
        "tuning_flops": tuning,
        "tuned": against(0.008, goal),
        "transferred": against(0.004, transferred),
    }
    return results


def check(best: dict[int, tuple[float, float]], **more: Any) -> Row:
    """A transfer check whose optimum is known at each width."""
    grows = [sweep("grow", w, valley(*at, 2.2 - 0.2 * math.log2(w / 32)), to=2 * w) for w, at in best.items()]
    bases = [sweep("base", width, [row({"lr": 0.004}, [2.0], 0)]) for width in best]
    return study([scratch(), *bases, *grows], **more)


@pytest.fixture(scope="module")
def finished() -> Row:
    return procedure({40: 1.75, 80: 1.62, 120: 1.55, 200: 1.46})


@pytest.fixture(scope="module")
def checked() -> Row:
    return check({32: (0.004, 1.0), 64: (0.004, 1.0), 128: (0.002, 1.0)})


def cells(rows: list[dict[str, str]], **where: str) -> dict[str, str]:
    """The one row with these cells."""
    (found,) = [row for row in rows if all(row[key] == value for key, value in where.items())]
    return found


# ---- tables and sentences ----------------------------------------------------------------------------------


def test_points_of_a_sweep(finished: Row) -> None:
    grow = finished["sweeps"][3]
    rows = point_rows(grow)
    assert len(rows) == len(RATES) * len(NOISES)
    assert cells(rows, **{"": "best"}) == {"lr": "0.004", "noise": "1", "loss": "1.8000 ± 0.0040", "": "best"}
    assert cells(rows, lr="0.016", noise="0")[""] == "diverged"
    text = " ".join(words.sweep(grow))
    assert "Best: lr 0.004, noise 1, with loss 1.8000 ± 0.0040." in text
    assert "4 of 20 points diverged." in text
    # 0.02 · 0.5² is 0.005: beyond the spread of 0.004.
    assert "within that spread" not in text


def test_points_within_the_spread_are_counted() -> None:
    points = [row({"lr": lr}, [loss - 0.01, loss + 0.01], i) for i, (lr, loss) in enumerate([(0.1, 2.0), (0.2, 2.01), (0.4, 2.1)])]  # fmt: skip
    assert "1 other point lies within that spread." in words.sweep(sweep("grow", 32, points, to=64))


@pytest.mark.parametrize(
    ("best_lr", "said"),
    [
        (0.016, "0.016, stands at the upper edge of what was tried: a better one may lie beyond."),
        (0.001, "0.001, stands at the lower edge of what was tried: a better one may lie beyond."),
    ],
)
def test_an_optimum_at_the_edge_is_said_to_be_there(best_lr: float, said: str) -> None:
    grow = sweep("grow", 32, valley(best_lr, 0.0, 1.8), to=64, at_edge=["lr", "noise"])
    results = study([scratch(), grow])
    for text in (" ".join(words.sweep(grow)), tables(results)):
        assert said in text
        assert "The best noise is 0, the lowest there is." in text
    assert cells(tuned_rows(results), sweep="grow-32", knob="lr")["at the edge"] == "yes"


def test_two_values_are_said_to_be_few() -> None:
    grow = sweep("grow", 32, valley(0.004, 1.0, 1.8, rates=[0.002, 0.004]), to=64)
    assert "Of lr only two values were tried: the optimum may lie elsewhere." in words.sweep(grow)


def test_what_tuning_cost(finished: Row) -> None:
    spent = 10 * 10 * 100 + 2 * 100 * 10 + 20 * 3 * 100 * 40  # scratch, base, grow: runs × steps × FLOPs
    assert finished["tuned"]["flops"] == spent == 252_000
    assert cells(cost_rows(finished), sweep="of these, tuning")["FLOPs"] == "2.52e5"
    assert cells(cost_rows(finished), sweep="grow-32")["of the large run"] == f"{240_000 / 256_000:.1%}"
    assert words.cost(finished) == [
        "Tuning at the narrow widths cost 2.52e5 FLOPs, all points and seeds together: 98.4% of one run of the "
        "large model from scratch (2.56e5)."
    ]


def test_final_comparison(finished: Row) -> None:
    # 1.5 lies at 5/9 of the way from 1.55 to 1.46, so at 120 · (200/120)^(5/9) steps of 400.
    share = 120 * (200 / 120) ** (5 / 9) / 400
    tuned = cells(reach_rows(finished), rates="tuned")
    assert tuned["of from scratch"] == f"{share:.0%}" == "40%"
    assert tuned["with the base model"] == f"{share + 32_000 / 256_000:.0%}"
    assert tuned["with tuning, too"] == f"{share + (32_000 + 252_000) / 256_000:.0%}"
    assert [r["loss"][:6] for r in length_rows(finished) if r["model"] == "grown"] == [
        "1.7500",
        "1.6200",
        "1.5500",
        "1.4600",
    ]
    assert cells(length_rows(finished), model="from scratch", lr="0.008")[""] == "best"
    text = " ".join(outcome.final(finished))
    assert "To end at the loss from scratch, growing takes 40% of the FLOPs." in text
    assert "52% with the base model's training counted in (it pays)" in text
    assert "151% with the tuning, too, counted in (it does not pay)" in text
    assert "the same one from scratch at 1.600 ± 0.020 after 400" in text
    assert words.headline(finished).endswith(
        "growing takes 22% of the FLOPs. With the best rates tried there for both, it takes 40%."
    )


def test_bounds_are_called_bounds() -> None:
    short = procedure({100: 1.45, 200: 1.4}, goal=1.5, transferred=1.5)
    assert cells(reach_rows(short), rates="tuned")["of from scratch"] == "≤ 25%"
    text = " ".join(outcome.final(short))
    assert (
        "the grown model's shortest run, 100 steps, reached the loss from scratch: it takes at most 25%"
        in text
    )
    assert "at most 136% with the tuning, too, counted in (whether it pays is not known)" in text

    never = procedure({100: 1.8, 200: 1.7}, goal=1.5, transferred=1.5)
    assert cells(reach_rows(never), rates="tuned")["of from scratch"] == "> 50%"
    text = " ".join(outcome.final(never))
    assert "Growing did not reach the loss from scratch, with 50% of its FLOPs spent" in text
    assert "more than 62% with the base model's training counted in (whether it pays is not known)" in text
    assert "more than 161% with the tuning, too, counted in (it does not pay)" in text
    plot = final_loss_over_flops(never)
    assert plot is not None
    assert "growing did not reach it with 50%" in plot.caption


def test_rates_that_were_best_anyway(finished: Row) -> None:
    same = copy.deepcopy(finished)
    same["final"]["transferred"] = same["final"]["tuned"]
    assert (
        outcome.final(same)[-1] == "No other rate that was tried at the large width did better, for either."
    )
    for points in (s["points"] for s in same["sweeps"] if s["kind"] in ("grown", "fresh")):
        del points[1:]
    assert outcome.final(same)[-1] == "No other rates were tried at the large width."


def test_a_large_rate_at_the_edge_is_said_to_be_there(finished: Row) -> None:
    results = copy.deepcopy(finished)
    results["sweeps"][-1]["at_edge"] = ["lr"]
    assert outcome.final(results)[-1] == "The best rate of fresh-256 stands at the edge of those tried there."


def test_a_transferred_rate_that_diverged(finished: Row, tmp_path: Path) -> None:
    results = copy.deepcopy(finished)
    fresh = results["sweeps"][-1]
    fresh["points"][0] = row({"lr": 0.004}, [1.6, None], 0, 400)
    results["final"]["transferred"] = None
    said = "With the transferred rates there is no comparison: fresh-256 at lr 0.004 diverged."
    assert outcome.final(results)[0] == said
    assert said in words.headline(results)
    assert [row["rates"] for row in reach_rows(results)] == ["tuned"]
    assert cells(length_rows(results), model="from scratch", lr="0.004")[""] == "diverged"
    assert "fresh-256 at lr 0.004 diverged" in write_report(results, tmp_path).read_text()


def test_transfer_table(checked: Row) -> None:
    rows = transfer_rows(checked)
    assert [row["widths"] for row in rows] == ["32 → 64", "64 → 128", "128 → 256"]
    assert [row["best lr"] for row in rows] == ["0.004", "0.004", "0.002"]
    assert [row["moved"] for row in rows] == ["–", "no", "lr ÷2"]
    assert rows[2]["at the narrowest optimum"] == "1.8300"
    assert rows[2]["regret"] == f"{0.03 / 1.8:.2%}"
    text = " ".join(outcome.transfer(checked))
    assert (
        "From 32 → 64 to 128 → 256, 4 times as wide, the optimum moved: lr from 0.004 to 0.002 (÷2); it kept noise at 1."
        in text
    )
    assert "1.67% more, more than the spread over seeds (± 0.0040)" in text
    assert "This one does not." in text


def test_an_optimum_that_stays() -> None:
    text = " ".join(outcome.transfer(check({32: (0.004, 1.0), 64: (0.004, 1.0)})))
    assert "2 times as wide, the optimum stayed where it was: lr at 0.004, noise at 1." in text
    assert "It is the best point at 64 → 128, too, with loss 2.0000 ± 0.0040." in text
    assert "This one does." in text


def test_an_optimum_that_diverges_when_wide() -> None:
    results = check({32: (0.008, 1.0), 64: (0.002, 1.0)})
    for form in (results, json_read_back(results)):
        text = " ".join(outcome.transfer(form))
        assert "At 64 → 128 the narrowest optimum diverged: it does not transfer." in text
        assert "This one does not." in text
        assert transfer_rows(form)[1]["regret"] == "diverged"


def test_an_optimum_that_was_not_tried_when_wide() -> None:
    sampled = [row({"lr": 0.0031, "noise": 0.9}, [1.5], 0), row({"lr": 0.0052, "noise": 0.4}, [1.6], 1)]
    wide = [row({"lr": 0.0044, "noise": 0.2}, [1.3], 0), row({"lr": 0.0012, "noise": 0.7}, [1.4], 1)]
    results = study([sweep("grow", 32, sampled, to=64), sweep("grow", 64, wide, to=128)])
    text = " ".join(outcome.transfer(results))
    assert "was not tried at 64 → 128; what it costs there is not known." in text
    assert "Whether this one does is not known." in text
    assert transfer_rows(results)[1]["at the narrowest optimum"] == "not tried"


def test_a_markdown_table_lines_up() -> None:
    lines = markdown_table([{"lr": "0.1", "": "best"}, {"lr": "0.25", "": ""}]).splitlines()
    assert lines == ["|   lr |      |", "| ---: | ---- |", "|  0.1 | best |", "| 0.25 |      |"]


def test_the_same_results_give_the_same_text(finished: Row) -> None:
    assert tables(finished) == tables(json_read_back(finished))


# ---- pictures ----------------------------------------------------------------------------------------------


def test_pictures_show_the_best_over_the_other_knobs(checked: Row) -> None:
    plot = loss_over_lr(checked)
    assert plot is not None
    rows = {(row["sweep"], row["lr"]): row for row in plot.rows}
    assert rows["grow-32", 0.004]["loss"] == pytest.approx(2.2)
    assert rows["grow-32", 0.004]["at"] == "noise 1"
    assert ("grow-32", 0.016) not in rows
    assert "4 in grow-32, 4 in grow-64, 8 in grow-128" in plot.caption
    noise = loss_over_noise(checked)
    assert noise is not None
    assert [row["loss"] for row in noise.rows if row["sweep"] == "grow-64"] == pytest.approx(
        [2.02, 2.005, 2.0, 2.02]
    )
    heat = loss_over_lr_and_noise(checked)
    assert heat is not None
    assert len(heat.rows) == 3 * 20
    assert len(heat.figure.axes) == 3


def test_a_loss_near_divergence_does_not_flatten_the_valley() -> None:
    points = [
        row({"lr": lr}, [loss], i)
        for i, (lr, loss) in enumerate(zip(RATES, [1.6, 1.5, 1.52, 1.6, 9.0], strict=True))
    ]
    plot = loss_over_lr(study([sweep("scratch", 32, points)]))
    assert plot is not None
    low, high = plot.figure.axes[0].get_ylim()
    assert low < 1.5
    assert 1.6 < high < 2.5
    assert "cut off at the top" in plot.caption


def test_compute_of_the_base_model_is_counted_before_the_grown_one(finished: Row) -> None:
    plot = final_loss_over_flops(finished)
    assert plot is not None
    last = {row["run"]: row for row in plot.rows}
    assert last["grown"]["flops"] == 200 * 640
    assert last["grown, base model counted in"]["flops"] == 200 * 640 + 32_000
    assert last["from scratch"]["flops"] == 400 * 640
    assert last["from scratch"]["loss"] == pytest.approx(1.5)


def test_kinds_of_noise_are_lines_of_their_own(tmp_path: Path) -> None:
    points = [
        point
        for kind, floor in (("balanced", 1.8), ("gaussian", 1.9))
        for point in valley(
            0.004, 1.0, floor, noise_kind=kind, operator="duplicate", optimizer_state="carried"
        )
    ]
    for number, point in enumerate(points):
        point["trials"] = [number]
    results = study([scratch(), sweep("grow", 32, points, to=64)])
    plot = loss_over_noise(results)
    assert plot is not None
    assert {row["noise_kind"] for row in plot.rows} == {"balanced", "gaussian"}
    heat = loss_over_lr_and_noise(results)
    assert heat is not None
    assert len(heat.figure.axes) == 2
    html = write_report(results, tmp_path).read_text()
    assert "The same everywhere: operator duplicate, optimizer_state carried." in html
    assert cells(tuned_rows(results), sweep="grow-32", knob="noise_kind")["best"] == "balanced"


def test_random_points_make_no_line_and_no_grid() -> None:
    points = [
        row({"lr": 0.001 * 1.3**i, "noise": 0.1 + (7 * i % 13) / 10}, [2.0 + 0.01 * i], i) for i in range(12)
    ]
    results = study([sweep("grow", 32, points, to=64)])
    assert loss_over_lr_and_noise(results) is None
    plot = loss_over_lr(results)
    assert plot is not None
    assert "Points without a line were sampled" in plot.caption
    assert len(plot.rows) == 12


# ---- the page ----------------------------------------------------------------------------------------------


class Page(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def json_read_back(results: Row) -> Row:
    return json.loads(json.dumps(json_safe(results), allow_nan=False))


def assert_stands_alone(html: str, pictures: int) -> None:
    page = Page(html)
    assert page.open == []
    assert len(page.links) == pictures
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert "http" not in html.split("base64,")[0]
    for word in ("None", "nan", ">inf"):
        assert word not in "".join(part.split('"', 1)[-1] for part in html.split("base64,"))


def test_files_of_a_procedure(finished: Row, tmp_path: Path) -> None:
    path = write_report(finished, tmp_path)
    html = path.read_text()
    assert path == tmp_path / "report.html"
    assert_stands_alone(html, 4)
    assert words.headline(finished).split(". ")[-1] in html
    for plot in all_pictures(finished):
        assert (tmp_path / f"{plot.name}.png").read_bytes().startswith(b"\x89PNG")
        rows = list(csv.DictReader((tmp_path / f"{plot.name}.csv").open()))
        assert len(rows) == len(plot.rows)
    assert (tmp_path / "tables.md").read_text() == tables(finished)
    text = (tmp_path / "results.json").read_text()
    assert "Infinity" not in text
    read = json.loads(text)
    assert [point["loss"] for point in read["sweeps"][3]["points"] if point["state"] == "diverged"] == [
        None
    ] * 4


def test_every_point_and_seed_is_a_row(finished: Row, tmp_path: Path) -> None:
    write_report(finished, tmp_path)
    rows = list(csv.DictReader((tmp_path / "trials.csv").open()))
    assert len(rows) == sum(len(point["losses"]) for s in finished["sweeps"] for point in s["points"])
    grow = [row for row in rows if row["sweep"] == "grow-32"]
    assert grow[1] == {
        "sweep": "grow-32", "width": "32", "to": "64", "lr": "0.001", "noise": "0.0", "seed": "1", "loss": "1.94", "state": "complete",
    }  # fmt: skip
    burst = [row for row in grow if row["lr"] == "0.016" and row["noise"] == "0.0"]
    assert [row["state"] for row in burst] == ["complete", "diverged", "diverged"]
    assert [bool(row["loss"]) for row in burst] == [True, False, False]


def test_page_of_a_transfer_check(checked: Row, tmp_path: Path) -> None:
    html = write_report(checked, tmp_path).read_text()
    assert_stands_alone(html, 3)
    assert "does what is tuned at 32 → 64 hold at 128 → 256?" in html
    assert "Grown against from scratch" not in html
    again = write_report(json_read_back(checked), tmp_path / "again").read_text()
    assert again == html


def test_an_unfinished_study_with_pruned_points(tmp_path: Path) -> None:
    points = valley(0.004, 1.0, 1.8)[:12]
    points[0] = row(points[0]["point"], [3.1], 0, 40, state="pruned")
    results = study([scratch(), sweep("grow", 32, points, to=64, total=20)])
    html = write_report(results, tmp_path).read_text()
    assert_stands_alone(html, 3)
    assert "Not finished: grow-32 (12 of 20 trials)." in html
    assert "1 of 12 points pruned: given up before the end." in html
    assert "There is no comparison yet: the runs at the large width are not finished." in html
    assert cells(point_rows(results["sweeps"][1]), lr="0.001", noise="0")["loss"] == "–"


def test_a_study_in_which_everything_diverged(tmp_path: Path) -> None:
    burst = [row({"lr": lr, "noise": 1.0}, [None, None], i) for i, lr in enumerate(RATES)]
    results = study([scratch(), sweep("grow", 32, burst, to=64)])
    html = write_report(results, tmp_path).read_text()
    assert_stands_alone(html, 1)
    assert words.headline(results) == "grow-32: no point has ended with a loss; there is nothing to transfer."
    assert "No point ended with a loss." in html


def test_a_study_of_one_rate_that_has_just_begun(tmp_path: Path) -> None:
    results = study(
        [sweep("scratch", 32, [row({"lr": 0.004}, [2.0], 0)]), sweep("grow", 32, [], to=64, total=3)]
    )
    html = write_report(results, tmp_path).read_text()
    assert_stands_alone(html, 0)
    assert "No values of growth are tuned yet." in html
    assert "The same everywhere: lr 0.004." in html
    assert "grow-32 (0 of 3 trials)" in html


def test_large_runs_that_all_diverged(finished: Row) -> None:
    results = copy.deepcopy(finished)
    results["final"] = None
    fresh = results["sweeps"][-1]
    fresh["points"] = [row({"lr": 0.004}, [None], 0), row({"lr": 0.008}, [None], 1)]
    fresh["best"] = None
    assert outcome.final(results) == ["There is no comparison: fresh-256 has no run that ended with a loss."]
    assert final_loss_over_flops(results) is None
