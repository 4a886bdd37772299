"""Which way to begin is best, at one and the same budget?"""

from __future__ import annotations

from collections.abc import Collection

from mupscale.study.page.parts import Answer, Table, table_of
from mupscale.study.page.plots import Line, Plot
from mupscale.study.questions.reading import Names, Row, best_row, first_below, flops_before, sweeps_of
from mupscale.study.questions.words import loss_over_flops, several, show_loss
from mupscale.study.spec.space import show


def starts(results: Row, *, of: Names, against: Names) -> Answer:
    """Every start at its best rate, by width; and when its curve falls to where training from scratch ends.

    Args:
        results: of the study.
        of: sweeps, a start each; those of one start at several widths may end in ``-WIDTH``: of a narrow
            model that is continued, the width from scratch that it is set against.
        against: from scratch, one at each width.
    """
    scratch = {sweep["width"]: sweep for sweep in sweeps_of(results, against)}
    sweeps = list({s["name"]: s for s in (*sweeps_of(results, of), *scratch.values())}.values())
    places = [(sweep, _place(sweep, scratch)) for sweep in sweeps if sweep["best"]]
    rows = [start_row(results, sweep, scratch.get(width), width) for sweep, width in places]
    rows.sort(key=lambda row: (row["width"], row["cooldown"]))
    panels: dict[str, list[Row]] = {}
    for row in rows:
        panels.setdefault(f"{results['width_word']} {row['width']}", []).append(row)
    best = [
        f"At {place} {mine[0]['start']} is best: it ends at {_loss(mine[0], 'cooldown')} after the cooldown"
        + ("." if mine[0]["share"] is None else f", and reaches scratch at {_reach(mine[0])}.")
        for place, mine in panels.items()
    ]
    without = [sweep["name"] for sweep in sweeps if not sweep["best"]]
    return Answer(
        title="Which start is best?",
        parts=(
            " ".join(best) or "No start has a loss yet.",
            f"Without a loss: {several(without)}." if without else "",
            *(_table(mine, place) for place, mine in panels.items()),
            "*: at the edge of the rates tried. Constant: the end at a constant rate; cooldown: after one. "
            "Reaches scratch at: the share of the FLOPs of the run from scratch after which a start's curve "
            "is down where that one's ends; in brackets with what came before counted in.",
            *([_picture(results, panels)] if rows else []),
        ),
        headline=" ".join(best),
        data={"starts": [{key: value for key, value in row.items() if key != "curve"} for row in rows]},
    )


def _place(sweep: Row, widths: Collection[int]) -> int:
    """The width that a sweep is compared at."""
    told = sweep["name"].rpartition("-")[2]
    return int(told) if told.isdigit() and int(told) in widths else int(sweep["width"])


def start_row(results: Row, sweep: Row, scratch: Row | None, width: int) -> Row:
    """The numbers of one start at its best point, compared at a width.

    ``share`` is where its mean curve falls to the end of that from scratch, linear between evaluations, as a
    share of what the latter cost; None where it never does. ``with_before`` counts what it came of.
    """
    row, goal, before = best_row(sweep), scratch and best_row(scratch), flops_before(results, sweep)
    assert row is not None
    share = with_before = None
    if scratch and goal:
        steps, loss, *_ = goal["curve"][-1]
        reached, cost = first_below(row["curve"], loss), steps * scratch["flops_per_step"]
        share = None if reached is None else reached * sweep["flops_per_step"] / cost
        with_before = share + before / cost if share is not None and before else None
    constant = row["curve_end"] if sweep["constant"] else {}
    return {
        "start": sweep["name"].removesuffix(f"-{width}"),
        "width": width,
        "lr": row["point"].get("lr"),
        "at_edge": "lr" in sweep["at_edge"],
        "initial": row["curve"][0][1],
        "constant": constant.get("loss"),
        "constant_spread": constant.get("spread"),
        "cooldown": row["loss"],
        "cooldown_spread": row["spread"],
        "compared": goal is not None,
        "share": share,
        "with_before": with_before,
        "curve": [[step * sweep["flops_per_step"], *losses] for step, *losses in row["curve"]],
    }


def _table(rows: list[Row], title: str) -> Table:
    heads = ("start", "lr", "loss at step 0", "constant", "cooldown", "reaches scratch at")
    cells = [
        (
            row["start"],
            show(row["lr"]) + "*" * row["at_edge"],
            show_loss(row["initial"], digits=3),
            _loss(row, "constant"),
            _loss(row, "cooldown"),
            _reach(row),
        )
        for row in rows
    ]
    return table_of(heads, cells, title)


def _loss(row: Row, key: str) -> str:
    return show_loss(row[key], row[f"{key}_spread"], digits=3)


def _reach(row: Row) -> str:
    if row["share"] is None:
        return "not reached" if row["compared"] else "–"
    return f"{row['share']:.0%}" + ("" if row["with_before"] is None else f" ({row['with_before']:.0%})")


def _picture(results: Row, by_width: dict[str, list[Row]]) -> Plot:
    panels = {
        place: [
            Line(
                name=row["start"],
                curve=row["curve"],
                ends=[[row["curve"][-1][0], *[row["cooldown"]] * 3]],
                label=f"{row['start']}: {row['cooldown']:.3f}",
            )
            for row in rows
        ]
        for place, rows in by_width.items()
    }
    caption = "At a constant rate, where one was kept; diamonds: after the cooldown."
    look = {"legend_title": "start: loss after cooldown (◆)", "panel_size": (6.4, 5.4)}
    return loss_over_flops(results, "starts", panels, "FLOPs of the wide training", caption, **look)
