"""What was tuned: the best value of each knob, every point, and what it all cost."""

from __future__ import annotations

from collections.abc import Sequence

from mupscale.study.page.parts import Answer, Cells, Part, Table, table_of
from mupscale.study.questions import reading
from mupscale.study.questions.knobs import knob_plots
from mupscale.study.questions.reading import (
    Names,
    Row,
    best_row,
    ends_of,
    sweeps_of,
    tried,
    varied,
    with_state,
)
from mupscale.study.questions.words import called, several, show_flops, show_loss, widths
from mupscale.study.spec.space import show, show_point


def tuned(results: Row, *, of: Names) -> Answer:
    """The best value of each knob, what was tried, and the pictures of the loss over it."""
    sweeps = sweeps_of(results, of)
    found = [sweep for sweep in sweeps if sweep["best"]]
    panels: dict[str, list[Row]] = {}
    for sweep in sweeps:
        panels.setdefault(called(sweep), []).append(sweep)
    best = [f"{called(s)} at {widths(s)}: {show_point(s['best']['point'])}" for s in found]
    nothing = [s["name"] for s in sweeps if s["points"] and not s["best"]]
    said = [f"No point of {several(nothing)} has ended with a loss."] if nothing else []
    said += [f"{sweep['name']}: {line}" for sweep in found for line in edges(sweep)]
    return Answer(
        title="Tuned values",
        parts=(
            table_of(
                ("sweep", "knob", "best", "tried", "at the edge"),
                [row for s in found for row in tuned_rows(s)],
            ),
            *said,
            *knob_plots(results, panels),
        ),
        headline=f"Best {'; '.join(best)}." if best else " ".join(said) or "No values are tuned yet.",
        figures=[
            (show(s["best"]["point"][k]), f"best {k}, {called(s)}") for s in found[-1:] for k in varied(s)
        ],
        data={
            sweep["name"]: {
                **sweep["best"],
                "at_edge": sweep["at_edge"],
                "level": [row["point"] for row in _level(sweep)],
            }
            for sweep in found
        },
    )


def tuned_rows(sweep: Row) -> list[tuple[str, ...]]:
    """The best value of each knob, with the loss that it gave: sweep, knob, best, tried, at the edge."""
    name, best, rows = sweep["name"], sweep["best"], []
    for knob, value in best["point"].items():
        among = tried(sweep, knob)
        ends = show(among[0]) if len(among) == 1 else f"{show(among[0])} … {show(among[-1])}"
        ends = ", ".join(among) if isinstance(value, str) else ends
        count = f"({len(among)} value{'s' if len(among) > 1 else ''})"
        rows.append((name, knob, show(value), f"{ends} {count}", "yes" if knob in sweep["at_edge"] else ""))
    return [*rows, (name, "loss", show_loss(best["loss"], best["spread"]), "", "")]


def edges(sweep: Row) -> list[str]:
    """Where the optimum stands at the end of what was tried, so that a better one may lie beyond."""
    lines = []
    for knob in sweep["at_edge"]:
        value, values = sweep["best"]["point"][knob], tried(sweep, knob)
        side = "upper" if values.index(value) >= len(values) / 2 else "lower"
        stands = f", {show(value)}, stands at the {side} edge of what was tried: a better one may lie beyond."
        lines.append(f"The best {knob}" + (" is 0, the lowest there is." if value == 0 else stands))
    values_of = {knob: tried(sweep, knob) for knob in varied(sweep)}
    if few := [k for k, values in values_of.items() if len(values) == 2 and not isinstance(values[0], str)]:
        lines.append(f"Of {several(few)} only two values were tried: the optimum may lie elsewhere.")
    return lines


def points(results: Row, *, of: Names) -> Answer:
    """Every point, a table each sweep."""
    parts: list[Part] = []
    for s in sweeps_of(results, of):
        title = f"{s['name']}: {called(s)}, {widths(s)}, {s['done']} of {s['total']} trials"
        parts += [Table(point_rows(s), title), " ".join(in_words(s))]
    return Answer(title="All points", parts=parts)


def point_rows(sweep: Row, knobs: Sequence[str] = (), *, lengths: bool = False) -> list[Cells]:
    """A row for each point, or for each of its lengths: what was varied, the loss, how it ended, the best."""
    knobs = knobs or varied(sweep) or [knob for knob in sweep["knobs"] if knob == "lr"]
    rows, best = [], best_row(sweep)
    for row in sorted(sweep["points"], key=lambda row: [row["point"].get(knob, 0) for knob in knobs]):
        ends = ends_of(sweep, row) if row["state"] == "complete" else []
        for end in (ends if lengths else ends[-1:]) or [{}]:
            cells = {knob: show(row["point"].get(knob)) for knob in knobs}
            if lengths:
                flops = show_flops(end["steps"] * sweep["flops_per_step"]) if end else "–"
                cells |= {"steps": str(end.get("steps", "–")), "FLOPs": flops}
            marked = "best" if row is best and end is ends[-1] else ""
            loss = show_loss(end.get("loss"), end.get("spread"))
            rows.append({**cells, "loss": loss, "": marked if end else row["state"]})
    return rows


def in_words(sweep: Row) -> list[str]:
    """What is the same at all points of a sweep, how sure the best is, and what did not work."""
    lines, best, points = [], sweep["best"], sweep["points"]
    fixed = {k: tried(sweep, k)[0] for k in sweep["knobs"] if k != "seed" and len(tried(sweep, k)) == 1}
    if fixed:
        lines.append(f"The same everywhere: {show_point(fixed)}.")
    if not best:
        return [*lines, "No point ended with a loss." if points else "No point has a loss yet."]
    if near := len(_level(sweep)) - 1:
        lines.append(f"{near} other point{' lies' if near == 1 else 's lie'} within the spread of the best.")
    failed = {state: len(with_state(sweep, state)) for state in ("diverged", "pruned")}
    lines += [f"{n} of {len(points)} points {state}." for state, n in failed.items() if n]
    return [*lines, *edges(sweep)]


def _level(sweep: Row) -> list[Row]:
    """The best point, and those within its spread."""
    best = sweep["best"]
    most = best["loss"] + (best["spread"] or 0.0)
    return [r for r in with_state(sweep, "complete") if r["point"] == best["point"] or r["loss"] <= most]


def cost(results: Row) -> Answer:
    """What each sweep cost in FLOPs, and as a share of one run of the dearest."""
    sweeps = results["sweeps"]
    large = max((sweep["run_flops"] or 0 for sweep in sweeps), default=0)
    used = {source["name"] for sweep in sweeps for source in reading.line_of(results, sweep)}
    used |= {name for sweep in sweeps for name in sweep["takes"].values()}
    tuning = reading.tuning_of(results, [sweep for sweep in sweeps if sweep["name"] not in used])
    spent = [(s["name"], f"{s['done']} of {s['total']}", s["flops"]) for s in sweeps if s["done"]]
    said = ""
    if tuning:
        spent.append(("of these, for rates that others take", "", tuning))
        said = f"Finding rates that other sweeps take cost {show_flops(tuning)} FLOPs"
        said += (
            f": {tuning / large:.1%} of one run of the dearest sweep ({show_flops(large)}). "
            if large
            else ". "
        )
    if seconds := results.get("seconds"):
        said += f"All runs together took {seconds / 60:.1f} minutes of their workers' time."
    rows = [(name, trials, show_flops(n), f"{n / large:.1%}" if large else "–") for name, trials, n in spent]
    table = table_of(("sweep", "trials", "FLOPs", "of the large run"), rows)
    data = {"flops": {s["name"]: s["flops"] for s in sweeps}, "tuning_flops": tuning, "run_flops": large}
    return Answer(title="What it cost", parts=(table, said.strip()), data=data)
