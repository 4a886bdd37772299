"""Pictures: lines with bands, or coloured cells, in panels side by side; and the numbers that each shows.

Knows matplotlib (its objects, never its global state); nothing of studies.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

# Okabe & Ito's palette: told apart by colour-blind readers and in grey print.
BLUE, ORANGE, GREEN, LIGHT_BLUE = "#0072B2", "#D55E00", "#009E73", "#56B4E9"
COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", LIGHT_BLUE, "#E69F00", "#7F7F7F", "#000000", "#882255", "#999933")
STYLES = ("-", "--", ":", "-.")
MOST_TICKS = 10
Curve = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Plot:
    """A figure, the rows that it shows, and what to read from it.

    Attributes:
        name: stem of the files it is saved under.
        caption: one or two sentences for a reader who sees it for the first time.
    """

    name: str
    figure: Figure
    rows: Sequence[Mapping[str, Any]]
    caption: str

    def save(self, folder: Path) -> Path:
        """Write `name.png` and `name.csv`; return the path of the picture."""
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{self.name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)
        path = folder / f"{self.name}.png"
        FigureCanvasAgg(self.figure).print_png(str(path))
        return path


@dataclass(frozen=True, kw_only=True)
class Line:
    """What is drawn in one colour.

    Attributes:
        name: in the CSV; and in the legend, unless ``label`` says otherwise (empty: not there).
        curve: its points: x, y, and where there is a band, its lowest and highest.
        ends: where training ends that is stopped early, likewise: diamonds with bars.
        colour: without one, all lines of a name get the same.
        style: of the line; without one, the points stand alone, with bars instead of a band.
        star: mark the lowest point.
        failed: values of x at which there is nothing but failure: a × at the top.
        more: further columns of the CSV, a value each point.
    """

    name: str
    curve: Curve
    ends: Curve = ()
    label: str | None = None
    colour: Any = None
    style: str = "-"
    marker: str = ""
    width: float = 1.6
    star: bool = False
    failed: Sequence[float] = ()
    more: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def draw(self, axes: Axes, colour: Any, place: int) -> None:
        """Put it on the axes, as the line of this number."""
        x, y, *band = np.transpose(self.curve)
        label = self.name if self.label is None else self.label
        look = {"color": colour, "marker": self.marker, "markersize": 4.5, "linewidth": self.width}
        if self.style:
            axes.plot(x, y, label=label or "_", linestyle=self.style, **look)
            if band:
                axes.fill_between(x, *band, color=colour, alpha=0.15, linewidth=0)
        else:
            _bars(axes, self.curve, label=label or "_", **look)
        if self.ends:
            _bars(axes, self.ends, **look | {"marker": "D"})
        if self.star:
            best = y.argmin()
            shape: dict[str, Any] = {"marker": "*", "markersize": 15, "markeredgecolor": "white", "zorder": 5}
            axes.plot(x[best], y[best], color=colour, **shape)
        if self.failed:  # an empty line would stretch the layout to the figure's corner
            top, at = [0.985 - 0.035 * place] * len(self.failed), axes.get_xaxis_transform()
            axes.plot(self.failed, top, color=colour, marker="x", linestyle="", transform=at)

    def rows(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Every point as a row of the CSV."""
        heads = ("line", *columns, "lowest", "highest")
        for i, point in enumerate(self.curve):
            row = dict(zip(heads, (self.name, *point, None, None), strict=False))
            yield row | {key: values[i] for key, values in self.more.items()}
        for point in self.ends:
            yield dict(zip(heads, (f"{self.name}, ends", *point), strict=False))


def _bars(axes: Axes, curve: Curve, **look: Any) -> None:
    """Points that stand alone."""
    x, y, *band = np.transpose(curve)
    bars = [y - band[0], band[1] - y] if band else None
    axes.errorbar(x, y, yerr=bars, elinewidth=1, capsize=2.5, linestyle="", **look)


Panels = Mapping[str, Sequence[Line]]


def draw(
    name: str,
    panels: Panels,
    *,
    columns: tuple[str, str],
    x: str,
    y: str,
    caption: str,
    colours: str = "",
    values: bool = False,
    log_y: bool = False,
    zoom: float | None = None,
    same_scale: bool = False,
    legend: str = "below",
    legend_title: str = "",
    panel_size: tuple[float, float] = (7.0, 4.6),
) -> Plot:
    """A picture of lines.

    Args:
        name: stem of its files.
        panels: lines by the title of their panel.
        columns: what x and y are called in the CSV.
        x, y: what they are called on the axes.
        caption: what to read; what the limits cut off is added.
        colours: a colormap for lines without a colour, in their order; default: `COLOURS`.
        values: x takes few values on a logarithmic scale; otherwise it is an amount, from 0.
        log_y: y is logarithmic.
        zoom: cut off what is that many times as far above a line's lowest point as its median is.
        same_scale: draw all panels over one range of y.
        legend: ``below`` each panel, or ``right`` of the last.
        panel_size: in inches.
    """
    names = dict.fromkeys(line.name for lines in panels.values() for line in lines)
    some = matplotlib.colormaps[colours](np.linspace(0, 0.9, len(names))) if colours else cycle(COLOURS)
    colour_of = dict(zip(names, some, strict=False))
    figure, all_axes = canvas(len(panels), width=panel_size[0] * len(panels), height=panel_size[1])
    for axes, (title, lines) in zip(all_axes, panels.items(), strict=True):
        for place, line in enumerate(lines):
            line.draw(axes, line.colour or colour_of[line.name], place)
        axes.set_title(title, fontsize=10)
        axes.set(xlabel=x, yscale="log" if log_y else "linear")
        if zoom is not None:
            axes.set_ylim(*_valley(lines, zoom))
        below = -0.15
        if values:
            tried = {at for line in lines for at in (*(point[0] for point in line.curve), *line.failed)}
            below = value_axis(axes, tried)
        else:
            axes.set_xlim(left=0)
            axes.ticklabel_format(axis="x", style="sci", scilimits=(-3, 5), useMathText=True)
        labels = axes.get_legend_handles_labels()[1]
        if labels and (legend == "below" or axes is all_axes[-1]):
            look: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1, 1)}
            if legend == "below":
                two = max(map(len, labels)) < 6 * panel_size[0]
                below *= 4.6 / panel_size[1]  # as far below a tall panel as below a usual one
                look = {"loc": "upper center", "bbox_to_anchor": (0.5, below), "ncols": 1 + two}
            axes.legend(frameon=False, fontsize=8.5, title=legend_title, title_fontsize=8.5, **look)
    all_axes[0].set_ylabel(y)
    if same_scale:
        low, high = zip(*(axes.get_ylim() for axes in all_axes), strict=True)
        for axes in all_axes:
            axes.set_ylim(min(low), max(high))
    shown = zip(all_axes, panels.values(), strict=True)
    if any(point[1] > axes.get_ylim()[1] for axes, lines in shown for line in lines for point in line.curve):
        caption += " What is far above the rest is cut off at the top."
    rows = [
        {"panel": title} | row
        for title, lines in panels.items()
        for line in lines
        for row in line.rows(columns)
    ]
    return Plot(name, figure, rows, caption)


def heat(
    axes: Axes,
    cells: Mapping[tuple[float, float], tuple[float | None, str]],
    x: Sequence[float],
    y: Sequence[float],
    *,
    colours: str,
    limits: tuple[float, float],
    framed: tuple[float, float] | None = None,
    border: float | None = None,
) -> None:
    """Cells on a grid, coloured by a value and with words in them.

    Args:
        cells: by their places, a value of x and one of y: the value (None: no colour) and the words.
        x, y: their values, from the lower left on; each takes as much room.
        colours: a colormap, whose ends stand for ``limits`` and all beyond.
        framed: the place of a cell that stands out.
        border: a value: a line runs between neighbours on either side of it.
    """
    values = np.full((len(y), len(x)), np.nan)
    for (at, above), (value, _) in cells.items():
        values[y.index(above), x.index(at)] = np.nan if value is None else value
    colourmap = matplotlib.colormaps[colours].with_extremes(bad="#dcdcdc")
    low, high = limits
    image = axes.imshow(values, cmap=colourmap, vmin=low, vmax=high, aspect="auto", origin="lower")
    shades = image.to_rgba(values)[..., :3] @ (0.299, 0.587, 0.114)
    for place, (_, words) in cells.items():
        row, column = y.index(place[1]), x.index(place[0])
        look: dict[str, Any] = {"color": "white" if shades[row, column] < 0.45 else "black", "fontsize": 8.5}
        if place == framed:
            look |= {"fontweight": "bold"}
            frame: dict[str, Any] = {"fill": False, "edgecolor": ORANGE, "linewidth": 2.5, "zorder": 3}
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, **frame))
        axes.text(column, row, words, ha="center", va="center", **look)
    if border is not None:
        _border(axes, values, border)
    axes.grid(False)
    axes.set_xticks(range(len(x)), [f"{value:.4g}" for value in x])
    axes.set_yticks(range(len(y)), [f"{value:.4g}" for value in y])


def _border(axes: Axes, values: np.ndarray, border: float) -> None:
    """The line between neighbours that have values on either side of the border."""
    side, known = values < border, ~np.isnan(values)
    look: dict[str, Any] = {"color": "black", "linewidth": 3, "solid_capstyle": "projecting"}
    for row, column in np.argwhere((side[:, 1:] != side[:, :-1]) & known[:, 1:] & known[:, :-1]):
        axes.plot([column + 0.5] * 2, [row - 0.5, row + 0.5], **look)
    for row, column in np.argwhere((side[1:] != side[:-1]) & known[1:] & known[:-1]):
        axes.plot([column - 0.5, column + 0.5], [row + 0.5] * 2, **look)


def canvas(
    count: int, *, width: float, height: float, columns: int | None = None
) -> tuple[Figure, list[Axes]]:
    """An empty figure with pairs of axes side by side, at most so many; its size is in inches."""
    figure = Figure(figsize=(width, height), dpi=140, layout="constrained", facecolor="white")
    columns = min(count, columns or count)
    all_axes = list(figure.subplots(-(-count // columns), columns, squeeze=False).flat)
    for empty in all_axes[count:]:
        empty.remove()
    all_axes = all_axes[:count]
    for axes in all_axes:
        axes.grid(True, color="#e6e6e6", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, all_axes


def value_axis(axes: Axes, values: Collection[float]) -> float:
    """Make x logarithmic with the values tried as ticks, 0 left of the others; return where a legend fits."""
    positive = [value for value in values if value > 0]
    if len(positive) < len(values):
        axes.set_xscale("symlog", base=2, linthresh=min(positive, default=1), linscale=0.5)
    else:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    if len(values) <= MOST_TICKS:
        axes.xaxis.set_major_locator(FixedLocator(sorted(values)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    if len(values) <= 4:
        return -0.15
    axes.tick_params("x", rotation=45)
    return -0.22


def _valley(lines: Sequence[Line], zoom: float) -> tuple[float, float]:
    """Limits of y, from the lowest to where one stops to care: divergence or chance would flatten it."""
    ends = []
    for line in lines:
        _, best, low, high = min(line.curve, key=lambda point: point[1])
        losses = [point[1] for point in line.curve]
        top = best + zoom * max(median(losses) - best, high - best)
        ends += [low, high, min(max(losses), top), *(loss for _, *losses in line.ends for loss in losses)]
    room = 0.08 * (max(ends) - min(ends)) or 0.05
    return min(ends) - room, max(ends) + room
