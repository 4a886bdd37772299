"""The picture of a coordinate check: one panel a parametrization, one line a kind of module, log-log."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from mupscale.study.coordinates import PARAMETRIZATIONS, Coordinate, Slope


def save_picture(coordinates: Sequence[Coordinate], found: Sequence[Slope], path: Path) -> None:
    """Draw mean absolute outputs after the last step over width; seeds are averaged.

    Lines that grow or vanish with width are drawn thick, the others thin; the legend says the slope.
    """
    panels = list(dict.fromkeys(c.parametrization for c in coordinates))
    modules = list(dict.fromkeys(c.module for c in coordinates))
    colours = matplotlib.colormaps["tab20"](np.linspace(0, 1, len(modules)))
    last = max(c.step for c in coordinates)
    figure = Figure(figsize=(5.2 * len(panels), 6.2), dpi=130, layout="constrained", facecolor="white")
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    by_name = {(s.parametrization, s.module): s for s in found}
    for axes, panel in zip(all_axes, panels, strict=True):
        values: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        for c in coordinates:
            if c.parametrization == panel and c.step == last:
                values[c.module][c.width].append(c.mean_abs)
        for module, colour in zip(modules, colours, strict=True):
            if module not in values:
                continue
            slope = by_name[panel, module]
            off = slope.verdict != "keeps its size"
            widths = sorted(values[module])
            axes.plot(
                widths,
                [float(np.mean(values[module][w])) for w in widths],
                color=colour,
                marker="o",
                markersize=4,
                linewidth=2.6 if off else 1.2,
                label=f"{module} ({slope.slope:+.2f})",
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(sorted({c.width for c in coordinates}))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_title(PARAMETRIZATIONS[panel].split(":")[0], fontsize=10)
        axes.set_xlabel("width, times the narrow model")
        axes.grid(True, color="#e6e6e6", linewidth=0.6)
        axes.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.12), fontsize=7, frameon=False, title="module (slope)"
        )
    all_axes[0].set_ylabel(f"mean absolute output after {last} steps")
    FigureCanvasAgg(figure).print_png(str(path))
