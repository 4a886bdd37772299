"""Pictures of what was tuned: loss over learning rate, over noise strength, and over the grid of both.

Knows the results of `mupscale.study.tune.results`, and matplotlib's objects (never its global state). A
picture for which the results have nothing is None.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle
from statistics import median
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from mupscale.study.page.plots import BLUE, GREEN, ORANGE, Plot, panels
from mupscale.study.page.plots import Row as CsvRow
from mupscale.study.tune.reading import (
    Row,
    loss_unit,
    show,
    show_point,
    sweeps_of,
    trials_done,
    tried,
    varied,
    widths,
    with_state,
)

# The rest of Okabe & Ito's palette, for more widths than three.
COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#E69F00")
STYLES = ("-", "--", ":", "-.")
MOST_TICKS = 10
# A line of a picture: its sweep, the kind of noise where there are several, its points.
Line = tuple[Row, str, list[Row]]


# ---- curves over one knob ----------------------------------------------------------------------------------


def loss_over_lr(results: Row) -> Plot | None:
    """Loss over learning rate, a panel each for training from scratch and for growth; a line each width.

    Of the other knobs, the best at each rate counts.
    """
    kinds = {
        kind: [(sweep, "", sweep["points"]) for sweep in sweeps_of(results, kind) if "lr" in varied(sweep)]
        for kind in ("scratch", "grow")
    }
    titles = {"scratch": "from scratch", "grow": "after growing"}
    return _curves(results, "lr", {titles[kind]: lines for kind, lines in kinds.items() if lines})


def loss_over_noise(results: Row) -> Plot | None:
    """Loss over noise strength, a line each width and kind of noise; the best at each strength counts."""
    lines = [
        (sweep, kind, rows)
        for sweep in sweeps_of(results, "grow")
        for kind, rows in _by_noise_kind(sweep)
        if len({row["point"].get("noise") for row in rows}) > 1
    ]
    return _curves(results, "noise", {"after growing": lines} if lines else {})


def _curves(results: Row, knob: str, by_panel: dict[str, list[Line]]) -> Plot | None:
    shown = {
        title: kept
        for title, lines in by_panel.items()
        if (kept := [line for line in lines if any(row["state"] == "complete" for row in line[2])])
    }
    if not shown:
        return None
    figure, all_axes = panels(len(shown), width=7.0 if len(shown) == 1 else 10.0, height=4.6)
    clipped = []
    for (title, lines), axes in zip(shown.items(), all_axes, strict=True):
        relative = _is_relative(knob, lines)
        clipped.append(_panel(axes, lines, knob, relative=relative))
        axes.set_xlabel(_axis_name(results, knob))
        if len(lines) == 1:
            axes.set_title(f"{title}, width {widths(lines[0][0])}", fontsize=10)
        else:
            axes.set_title(title, fontsize=10)
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=min(3, len(lines)),
                        frameon=False, fontsize=9, title="width: lowest loss", title_fontsize=9)  # fmt: skip
        what = "loss above the width's lowest" if relative else "held-out loss"
        axes.set_ylabel(f"{what} ({loss_unit(results)})")
    everything = [line for lines in shown.values() for line in lines]
    written = [row for sweep, kind, rows in everything for row in _written(sweep, kind, rows, knob)]
    return Plot(f"loss_over_{knob}", figure, written, _caption(knob, everything, clipped=any(clipped)))


def _is_relative(knob: str, lines: Sequence[Line]) -> bool:
    """Whether losses are drawn above each width's lowest: noise does less than width; valleys look flat."""
    return knob == "noise" and len({sweep["width"] for sweep, _, _ in lines}) > 1


def _panel(axes: Axes, lines: Sequence[Line], knob: str, *, relative: bool) -> bool:
    """Mean losses with their spread over seeds; a star at the lowest, a × at the top where all diverged.

    Returns:
        Whether losses are cut off at the top.
    """
    colours = dict(zip(_distinct(sweep["width"] for sweep, _, _ in lines), cycle(COLOURS), strict=False))
    styles = dict(zip(_distinct(kind for _, kind, _ in lines), cycle(STYLES), strict=False))
    limits, highest = [], -math.inf
    for place, (sweep, kind, rows) in enumerate(lines):
        best_at, colour = _best_at(rows, knob), colours[sweep["width"]]
        base = sweep["best"]["loss"] if relative else 0.0
        losses = [row["loss"] - base for row in best_at.values()]
        optimum, lowest = min(best_at.items(), key=lambda item: item[1]["loss"])
        spreads = [row["spread"] or 0.0 for row in best_at.values()]
        axes.errorbar(list(best_at), losses, yerr=spreads if any(spreads) else None, color=colour,
                      label=f"{widths(sweep)}{f', {kind}' if kind else ''}: {lowest['loss']:.3f}",
                      linestyle="" if _scattered(rows, knob) else styles[kind], marker="o", markersize=4,
                      linewidth=1.6, elinewidth=1, capsize=2.5)  # fmt: skip
        axes.plot([optimum], [lowest["loss"] - base], marker="*", markersize=15, color=colour,
                  markeredgecolor="white", zorder=5)  # fmt: skip
        failed = {row["point"][knob] for row in rows if row["state"] == "diverged"} - set(best_at)
        if failed:  # an empty line would stretch the layout to the figure's corner
            axes.plot(sorted(failed), [0.985 - 0.035 * place] * len(failed), color=colour, marker="x",
                      linestyle="", transform=axes.get_xaxis_transform())  # fmt: skip
        highest = max(highest, *losses)
        low, high = _valley(list(best_at.values()))
        limits.append((low - (lowest["spread"] or 0.0) - base, high - base))
    axes.set_ylim(*padded(min(low for low, _ in limits), max(high for _, high in limits)))
    _scale(axes, knob, [row["point"][knob] for _, _, rows in lines for row in rows])
    return highest > axes.get_ylim()[1]


def _written(sweep: Row, kind: str, rows: Sequence[Row], knob: str) -> list[CsvRow]:
    return [
        {
            "sweep": sweep["name"],
            "noise_kind": kind,
            knob: value,
            "loss": row["loss"],
            "spread": row["spread"],
            "at": show_point({k: v for k, v in row["point"].items() if k != knob}),
        }
        for value, row in _best_at(rows, knob).items()
    ]


def _best_at(rows: Sequence[Row], knob: str) -> dict[Any, Row]:
    """The best point at each value of a knob, ascending; values at which none has a loss are left out."""
    best: dict[Any, Row] = {}
    for row in sorted(rows, key=lambda row: row["point"][knob]):
        value = row["point"][knob]
        if row["state"] == "complete" and (value not in best or row["loss"] < best[value]["loss"]):
            best[value] = row
    return best


def _scattered(rows: Sequence[Row], knob: str) -> bool:
    """Whether points were sampled rather than laid out: a line through them would mean nothing."""
    others = {tuple(v for k, v in row["point"].items() if k != knob) for row in rows}
    return len(others) > 1 and len({row["point"][knob] for row in rows}) == len(rows)


def _by_noise_kind(sweep: Row) -> list[tuple[str, list[Row]]]:
    """Points by kind of noise, since strengths of two kinds do not compare; one kind goes without a name."""
    kinds = tried(sweep, "noise_kind")
    if len(kinds) < 2:
        return [("", sweep["points"])]
    return [(kind, [row for row in sweep["points"] if row["point"]["noise_kind"] == kind]) for kind in kinds]


def _caption(knob: str, lines: Sequence[Line], *, clipped: bool) -> str:
    sweeps = list({sweep["name"]: sweep for sweep, _, _ in lines}.values())
    others = _distinct(k for sweep in sweeps for k in varied(sweep) if k != knob)
    text = "Lower is better; the star marks the optimum"
    if any((row["spread"] or 0) > 0 for sweep in sweeps for row in sweep["points"]):
        text += ", bars one standard deviation over the seeds"
    text += ". "
    if _is_relative(knob, lines):
        text += "Losses are drawn above the lowest of the same width, which the legend says. "
    scattered = any(_scattered(rows, knob) for _, _, rows in lines)
    if others and not scattered:
        text += f"At each value, the best of what was tried of {', '.join(others)}. "
    if scattered:
        text += "Points without a line were sampled, and differ in more than what the axis shows. "
    for state, words in (
        ("diverged", "they diverged (× at the top where all at a value did)"),
        ("pruned", "they were pruned"),
    ):
        counts = [f"{len(with_state(s, state))} in {s['name']}" for s in sweeps if with_state(s, state)]
        if counts:
            text += f"Not drawn, since {words}: {', '.join(counts)}. "
    left = [f"{s['name']} ({trials_done(s)} of {s['total']} trials)" for s in sweeps if not s["finished"]]
    if left:
        text += f"Not finished: {', '.join(left)}. "
    if clipped:
        text += "What is far above the optimum is cut off at the top. "
    return text.rstrip()


# ---- the grid ----------------------------------------------------------------------------------------------


def loss_over_lr_and_noise(results: Row) -> Plot | None:
    """A heat map of learning rate × noise for each growth (and kind of noise) that tried a grid of both."""
    grids = [
        (sweep, kind, rows)
        for sweep in sweeps_of(results, "grow")
        for kind, rows in _by_noise_kind(sweep)
        if _is_grid(rows)
    ]
    if not grids:
        return None
    rates, noises = (
        sorted({row["point"][knob] for _, _, rows in grids for row in rows}) for knob in ("lr", "noise")
    )
    width = max(5.0, 0.5 + (0.5 + 0.56 * len(rates)) * len(grids))
    figure, all_axes = panels(len(grids), width=width, height=1.4 + 0.45 * len(noises))
    written: list[CsvRow] = []
    for (sweep, kind, rows), axes in zip(grids, all_axes, strict=True):
        cells = {(rate, noise): _cell(rows, rate, noise) for rate in rates for noise in noises}
        _heat(axes, cells, rates, noises)
        axes.set_title(f"{widths(sweep)}{f', {kind}' if kind else ''}", fontsize=10)
        axes.set_xlabel("learning rate")
        axes.tick_params("x", rotation=45)
        written += [
            {
                "sweep": sweep["name"],
                "noise_kind": kind,
                "lr": rate,
                "noise": noise,
                "loss": row["loss"] if row["state"] == "complete" else None,
                "spread": row["spread"],
                "state": row["state"],
            }
            for (rate, noise), row in cells.items()
            if row
        ]
    all_axes[0].set_ylabel("noise strength")
    caption = (
        f"Held-out loss ({loss_unit(results)}) for every learning rate (as that of width "
        f"{results['widths']['narrow']}) and noise strength; the frame marks the best of a "
        "panel. Brighter is better; the colours of each panel go by its own losses, and all that is far from "
        "the best looks alike. ×: diverged; empty: not tried."
    )
    return Plot("loss_over_lr_and_noise", figure, written, caption)


def _heat(axes: Axes, cells: dict[Any, Row | None], rates: Sequence[Any], noises: Sequence[Any]) -> None:
    losses = {place: row["loss"] for place, row in cells.items() if row and row["state"] == "complete"}
    low, high = _valley([row for row in cells.values() if row and row["state"] == "complete"])
    colours = matplotlib.colormaps["viridis_r"].with_extremes(bad="#f0f0f0")
    image = np.array([[losses.get((rate, noise), np.nan) for rate in rates] for noise in noises])
    axes.imshow(image, cmap=colours, vmin=low, vmax=high, aspect="auto", origin="lower")
    best = min(losses, key=lambda place: losses[place])
    for y, noise in enumerate(noises):
        for x, rate in enumerate(rates):
            row = cells[rate, noise]
            words = {"complete": "", "diverged": "×", "pruned": "pruned"}[row["state"]] if row else ""
            loss = losses.get((rate, noise))
            # White on the dark end of the colours, which is the high one.
            dark = loss is not None and (loss - low) / ((high - low) or 1) > 0.5
            axes.text(x, y, words if loss is None else f"{loss:.3f}", ha="center", va="center", fontsize=8.5,
                      color="white" if dark else "black",
                      fontweight="bold" if (rate, noise) == best else "normal")  # fmt: skip
            if (rate, noise) == best:
                axes.add_patch(
                    Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor=ORANGE, linewidth=2.5, zorder=3)
                )
    axes.grid(False)
    axes.set_xticks(range(len(rates)), [show(rate) for rate in rates])
    axes.set_yticks(range(len(noises)), [show(noise) for noise in noises])


def _is_grid(rows: Sequence[Row]) -> bool:
    """Whether rates and strengths cross: at least two of each, and more than half of all pairs tried."""
    pairs = {(row["point"]["lr"], row["point"]["noise"]) for row in rows if "noise" in row["point"]}
    rates, noises = {lr for lr, _ in pairs}, {noise for _, noise in pairs}
    if len(rates) < 2 or len(noises) < 2 or not any(row["state"] == "complete" for row in rows):
        return False
    return len(pairs) > len(rates) * len(noises) / 2


def _cell(rows: Sequence[Row], rate: Any, noise: Any) -> Row | None:
    """The best point of a pair; one without a loss where all are."""
    here = [row for row in rows if (row["point"]["lr"], row["point"]["noise"]) == (rate, noise)]
    complete = [row for row in here if row["state"] == "complete"]
    return min(complete, key=lambda row: row["loss"], default=here[0] if here else None)


# ---- shared ------------------------------------------------------------------------------------------------


def _valley(rows: Sequence[Row]) -> tuple[float, float]:
    """From the lowest loss to where one stops to care: points near divergence would flatten the valley."""
    best = min(rows, key=lambda row: row["loss"])
    losses = sorted(row["loss"] for row in rows)
    low, span = losses[0], max(median(losses) - losses[0], best["spread"] or 0.0)
    return low, min(losses[-1], low + 6 * span)


def padded(low: float, high: float) -> tuple[float, float]:
    """Limits of an axis, with room beyond the values."""
    room = 0.08 * (high - low) or 0.05 * abs(high) or 0.05
    return low - room, high + room


def _scale(axes: Axes, knob: str, values: Sequence[float]) -> None:
    """A logarithmic axis with the values tried as ticks; noise may be 0, which stands left of the others."""
    distinct = _distinct(sorted(values))
    positive = [value for value in distinct if value > 0]
    if len(positive) < len(distinct):
        axes.set_xscale("symlog", base=2, linthresh=positive[0], linscale=0.5)
    else:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    if len(distinct) <= MOST_TICKS:
        axes.xaxis.set_major_locator(FixedLocator(distinct))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    if knob == "lr":
        axes.tick_params("x", rotation=45)


def _axis_name(results: Row, knob: str) -> str:
    if knob == "noise":
        return "noise strength"
    return f"learning rate (as that of width {results['widths']['narrow']})"


def _distinct(values: Any) -> list[Any]:
    return list(dict.fromkeys(values))
