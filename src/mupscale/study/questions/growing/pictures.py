"""The map, a panel each start; and the losses behind it, over the budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from mupscale.study.page.plots import Line, Plot, canvas, draw, heat
from mupscale.study.questions.growing.cells import Cell
from mupscale.study.questions.reading import Row

IN_A_ROW = 4
# What colours a cell, None where nothing is known for sure, and its words.
Number = tuple[float | None, str]


def share_map(cells: Sequence[Cell]) -> Plot:
    """What each start takes of the FLOPs from scratch, the narrow model's training counted in."""
    caption = (
        "The share of the FLOPs from scratch in which a start comes down to the loss that these end at, the "
        "narrow model's training counted in. Below 100% (blue) it pays; the thick line is where gain turns "
        "into loss."
    )
    numbers = []
    for cell in cells:
        share, sign = cell.with_narrow, cell.share.sign
        # A narrow model that costs as much does not pay, whatever the bound.
        told = share if (cell.narrow or 0.0) >= 1 else _told(share, sign)
        numbers.append((told, _words(cell, share, sign, ".0%")))
    return _map("growing_pays", cells, numbers, "RdBu_r", caption)


def times_map(cells: Sequence[Cell]) -> Plot:
    """What training from scratch takes of the FLOPs of each start, these of the wide training alone."""
    caption = (
        "How many times a start's FLOPs, those of the wide training alone, training from scratch takes to "
        "come down to the loss at which the start ends. Above 1 (blue) the start is ahead; at the thick line "
        "training from scratch has caught up."
    )
    numbers = []
    for cell in cells:
        times, sign = cell.times.mean, cell.times.sign
        numbers.append((_told(times, sign), _words(cell, times, sign, ".2f")))
    return _map("ahead_of_scratch", cells, numbers, "RdBu", caption)


def _told(number: float | None, sign: str) -> float | None:
    """A number; None where it is a bound that leaves open on which side of 1 it is."""
    if number is None or (sign == "≤ " and number > 1) or (sign == "> " and number < 1):
        return None
    return number


def _words(cell: Cell, number: float | None, sign: str, form: str) -> str:
    """With its sign, and a mark where a knob is at an edge."""
    return "?" if number is None else f"{sign.strip()}{number:{form}}" + "†" * bool(cell.at_edge)


def _map(name: str, cells: Sequence[Cell], numbers: Sequence[Number], colours: str, caption: str) -> Plot:
    """A panel each start, all on one scale of colours around 1, whose ends are ½ and 2."""
    starts = [*dict.fromkeys(cell.start for cell in cells)]
    ratios, narrows = (sorted({cell.place[i] for cell in cells}) for i in (1, 0))
    columns, rows = min(IN_A_ROW, len(starts)), math.ceil(len(starts) / IN_A_ROW)
    width, height = 0.6 + (0.4 + 0.62 * len(ratios)) * columns, 0.4 + (0.65 + 0.4 * len(narrows)) * rows
    figure, all_axes = canvas(len(starts), width=width, height=height, columns=columns)
    for start, axes in zip(starts, all_axes, strict=True):
        known = {
            (cell.ratio, cell.narrow_ratio): (number and math.log2(number), words)
            for cell, (number, words) in zip(cells, numbers, strict=True)
            if cell.start == start
        }
        heat(axes, known, ratios, narrows, colours=colours, limits=(-1.0, 1.0), border=0.0)
        axes.set_title(start, fontsize=10)
    figure.supxlabel("tokens per parameter of the wide model", fontsize=10)
    figure.supylabel("of the narrow model", fontsize=10)
    if any(words[0] in "≤>" for _, words in numbers):
        caption += " ≤ and >: bounds, since no run was shorter, or longer; grey where they leave it open."
    if any(cell.at_edge for cell in cells):
        caption += " †: goes by a value at the edge of what was tried."
    written = [{**cell.to_row(), "at_edge": " ".join(cell.at_edge)} for cell in cells]
    return Plot(name, figure, written, caption)


def lead_plot(results: Row, cells: Sequence[Cell]) -> Plot:
    """The loss above that from scratch over the budget, a panel for each narrow model."""
    by_panel: dict[float, dict[str, list[Cell]]] = {}
    for cell in sorted(cells, key=lambda cell: cell.narrow_ratio):
        by_panel.setdefault(cell.narrow_ratio, {}).setdefault(cell.start, []).append(cell)
    panels = {
        f"narrow model at {ratio:g} tokens per parameter": [
            Line(name=start, curve=[_above(cell) for cell in mine], marker="o")
            for start, mine in starts.items()
        ]
        for ratio, starts in by_panel.items()
    }
    caption = (
        "Where a start ends with a budget, each after a cooldown of its own, less where training from "
        "scratch ends with the same FLOPs: below zero the start is ahead. Means over the seeds, with bands "
        "from the best to the worst."
    )
    return draw(
        "loss_above_scratch",
        panels,
        columns=("tokens_per_parameter", "loss_above_scratch"),
        x="tokens per parameter, wide model",
        y=f"loss above that from scratch ({results['unit']})",
        caption=caption,
        values=True,
        same_scale=True,
        legend="right",
        panel_size=(4.2, 4.6),
    )


def _above(cell: Cell) -> list[float]:
    """The budget; the loss above that from scratch, the best seed's and the worst one's."""
    seeds = cell.loss.minus(cell.scratch).by_seed.values()
    return [cell.ratio, fmean(seeds), min(seeds), max(seeds)]
