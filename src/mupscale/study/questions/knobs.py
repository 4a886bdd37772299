"""Pictures of what was tuned: loss over each knob with numbers, and over the grid of rate and noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from statistics import median
from typing import Any

from matplotlib.axes import Axes

from mupscale.study.page.plots import COLOURS, STYLES, Line, Plot, canvas, draw, heat
from mupscale.study.questions.reading import Row, band, tried, varied, with_state
from mupscale.study.questions.words import loss_axis, widths
from mupscale.study.spec.space import show_point

# A line of a picture: its sweep, the kind of noise where there are several, its points.
Group = tuple[Row, str, Sequence[Row]]


def knob_plots(results: Row, panels: Mapping[str, Sequence[Row]], *, same_scale: bool = False) -> list[Plot]:
    """Every picture that the sweeps have something for.

    Args:
        results: of the study.
        panels: the sweeps of each panel, a line each, by its title.
        same_scale: draw all panels over one range of losses.
    """
    sweeps = [sweep for mine in panels.values() for sweep in mine]
    knobs = [k for sweep in sweeps for k in varied(sweep) if _in_numbers(sweep["points"], k)]
    made = [_over(results, panels, knob, same_scale) for knob in dict.fromkeys(knobs)]
    return [plot for plot in (*made, _over_lr_and_noise(results, sweeps)) if plot is not None]


def _over(results: Row, by_panel: Mapping[str, Sequence[Row]], knob: str, same_scale: bool) -> Plot | None:
    """Loss over one knob: of the others, the best at each value counts."""
    panels: dict[str, list[Line]] = {}
    groups: list[Group] = []
    relative = False
    for panel, sweeps in by_panel.items():
        mine = [
            (sweep, kind, rows)
            for sweep in sweeps
            for kind, rows in (_by_noise_kind(sweep) if knob == "noise" else [("", sweep["points"])])
            if _in_numbers(rows, knob)
            and len({row["point"].get(knob) for row in rows}) > 1
            and _best_at(rows, knob)
        ]
        if mine:
            # Noise does less than width does, whose valleys would all look flat beside each other.
            relative = knob == "noise" and len({sweep["width"] for sweep, _, _ in mine}) > 1
            panels[panel] = _lines(mine, knob, relative)
            groups += mine
    if not panels:
        return None
    names = {"lr": f"learning rate (as that of width {results['narrow']})", "noise": "noise strength"}
    return draw(
        f"loss_over_{knob}",
        panels,
        columns=(knob, "loss"),
        x=names.get(knob, knob),
        y=f"loss above the width's lowest ({results['unit']})" if relative else loss_axis(results),
        caption=_caption(groups, knob),
        values=True,
        zoom=6,
        same_scale=same_scale,
        legend_title="lowest loss",
        panel_size=(7.0, 4.6) if len(panels) == 1 else (5.0, 4.6),
    )


def _lines(groups: Sequence[Group], knob: str, relative: bool) -> list[Line]:
    """Mean losses from the best to the worst seed, a line each group; a star at the lowest.

    A sweep goes by its width, or, where several have the same, by its name.
    """
    places = {sweep["name"]: widths(sweep) for sweep, _, _ in groups}
    if len({*places.values()}) < len(places):
        places = {name: name for name in places}
    colours = dict(zip(places, cycle(COLOURS), strict=False))
    styles = dict(zip(dict.fromkeys(kind for _, kind, _ in groups), cycle(STYLES), strict=False))
    lines = []
    for sweep, kind, rows in groups:
        best_at, base = _best_at(rows, knob), sweep["best"]["loss"] if relative else 0.0
        failed = {row["point"][knob] for row in rows if row["state"] == "diverged"} - best_at.keys()
        lowest = min(row["loss"] for row in best_at.values())
        lines.append(
            Line(
                name=f"{sweep['name']} {kind}".strip(),
                curve=[[at, *(loss - base for loss in band(row))] for at, row in best_at.items()],
                label=f"{', '.join(filter(None, (places[sweep['name']], kind)))}: {lowest:.3f}",
                colour=colours[sweep["name"]],
                style="" if _scattered(rows, knob) else styles[kind],
                marker="o",
                star=True,
                failed=sorted(failed),
                more={"at": [show_point(_without(row["point"], knob)) for row in best_at.values()]},
            )
        )
    return lines


def _place(sweep: Row, kind: str) -> str:
    return ", ".join(filter(None, (widths(sweep), kind)))


def _caption(groups: Sequence[Group], knob: str) -> str:
    sweeps = {sweep["name"]: sweep for sweep, _, _ in groups}.values()
    others = list(dict.fromkeys(k for sweep in sweeps for k in varied(sweep) if k != knob))
    text = "Lower is better; the star marks the optimum, bands go from the best to the worst seed."
    if any(_scattered(rows, knob) for _, _, rows in groups):
        text += " Points without a line were sampled, and differ in more than what the axis shows."
    elif others:
        text += f" At each value, the best of what was tried of {', '.join(others)}."
    for state, words in (("diverged", " (× at the top where all at a value did)"), ("pruned", "")):
        counts = [f"{len(with_state(s, state))} in {s['name']}" for s in sweeps if with_state(s, state)]
        if counts:
            text += f" Not drawn, since {state}{words}: {', '.join(counts)}."
    return text


def _in_numbers(rows: Sequence[Row], knob: str) -> bool:
    """Whether the values of a knob can be laid along an axis; those of noise may be ``fresh:2``."""
    return not any(isinstance(row["point"].get(knob), str) for row in rows)


def _best_at(rows: Sequence[Row], knob: str) -> dict[Any, Row]:
    """The best point at each value of a knob, ascending; values at which none has a loss are left out."""
    complete = [row for row in rows if row["state"] == "complete"]
    return {
        row["point"][knob]: row
        for row in sorted(complete, key=lambda row: (row["point"][knob], -row["loss"]))
    }


def _scattered(rows: Sequence[Row], knob: str) -> bool:
    """Whether points were sampled rather than laid out: a line through them would mean nothing."""
    others = {tuple(_without(row["point"], knob).values()) for row in rows}
    return len(others) > 1 and len({row["point"][knob] for row in rows}) == len(rows)


def _by_noise_kind(sweep: Row) -> list[tuple[str, Sequence[Row]]]:
    """Points by kind of noise, since strengths of two kinds do not compare; one kind goes without a name."""
    kinds = tried(sweep, "noise_kind")
    if len(kinds) < 2:
        return [("", sweep["points"])]
    return [(kind, [row for row in sweep["points"] if row["point"]["noise_kind"] == kind]) for kind in kinds]


def _without(point: Row, knob: str) -> Row:
    return {name: value for name, value in point.items() if name != knob}


def _over_lr_and_noise(results: Row, sweeps: Sequence[Row]) -> Plot | None:
    """A heat map of learning rate × noise for each sweep (and kind of noise) that tried a grid of both."""
    grids = [(s, kind, rows) for s in sweeps for kind, rows in _by_noise_kind(s) if _is_grid(rows)]
    if not grids:
        return None
    points = [row["point"] for _, _, rows in grids for row in rows]
    rates, noises = (sorted({point[knob] for point in points}) for knob in ("lr", "noise"))
    width = max(5.0, 0.5 + (0.5 + 0.56 * len(rates)) * len(grids))
    figure, all_axes = canvas(len(grids), width=width, height=1.4 + 0.45 * len(noises))
    written = []
    for (sweep, kind, rows), axes in zip(grids, all_axes, strict=True):
        # Of all points of a pair the best; one without a loss where all are.
        ordered = sorted(rows, key=lambda row: (row["state"] == "complete", -(row["loss"] or 0)))
        cells = {(row["point"]["lr"], row["point"]["noise"]): row for row in ordered}
        _heat(axes, cells, rates, noises)
        axes.set_title(_place(sweep, kind), fontsize=10)
        for (rate, noise), row in sorted(cells.items()):
            loss = row["loss"] if row["state"] == "complete" else None
            place = {"sweep": sweep["name"], "noise_kind": kind, "lr": rate, "noise": noise}
            written.append({**place, "loss": loss, "spread": row["spread"], "state": row["state"]})
    all_axes[0].set_ylabel("noise strength")
    caption = (
        f"H{loss_axis(results)[1:]} for every learning rate (as that of width {results['narrow']}) and noise "
        "strength; the frame marks the best of a panel, whose colours go by its own losses: brighter is "
        "better, and all that is far from the best looks alike. ×: diverged; empty: not tried."
    )
    return Plot("loss_over_lr_and_noise", figure, written, caption)


def _heat(
    axes: Axes,
    rows: Mapping[tuple[float, float], Row],
    rates: Sequence[float],
    noises: Sequence[float],
) -> None:
    """One panel, the best of it framed; all that is far from the best has one colour."""
    losses = {place: row["loss"] for place, row in rows.items() if row["state"] == "complete"}
    best = min(losses, key=losses.__getitem__)
    span = max(median(losses.values()) - losses[best], rows[best]["spread"] or 0.0)
    limits = losses[best], min(max(losses.values()), losses[best] + 6 * span)
    words = {"diverged": "×", "pruned": "pruned"}
    cells = {
        place: (losses.get(place), f"{losses[place]:.3f}" if place in losses else words[row["state"]])
        for place, row in rows.items()
    }
    heat(axes, cells, rates, noises, colours="viridis_r", limits=limits, framed=best)
    axes.tick_params("x", rotation=45)
    axes.set_xlabel("learning rate")


def _is_grid(rows: Sequence[Row]) -> bool:
    """Whether rates and strengths cross: at least two of each, and more than half of all pairs tried."""
    pairs = {(row["point"].get("lr"), row["point"].get("noise")) for row in rows}
    rates, noises = ({pair[i] for pair in pairs} for i in (0, 1))
    crossed = (
        _in_numbers(rows, "noise")
        and min(len(rates), len(noises)) > 1
        and len(pairs) > len(rates) * len(noises) / 2
    )
    return crossed and any(row["state"] == "complete" for row in rows)
