"""The picture of a learning-rate sweep: loss over rate, a panel each parametrization, a line each width."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mupscale.study.lr_transfer import PARAMETRIZATIONS, Losses, mean_losses, optima


def save_picture(losses: Losses, d_model: int, path: Path) -> None:
    """Draw the mean loss of each width with a band from the best to the worst seed; a star marks the optimum.

    Args:
        losses: final loss of every trial.
        d_model: of the narrowest model, for the legend.
        path: the PNG to write.
    """
    curves, best = mean_losses(losses), optima(losses)
    widths = sorted({width for _, width in curves})
    colours = dict(
        zip(widths, matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(widths))), strict=True)
    )
    figure = Figure(figsize=(10, 4.6), dpi=130, layout="constrained", facecolor="white")
    panels = figure.subplots(1, len(PARAMETRIZATIONS), sharey=True)
    for axes, (parametrization, title) in zip(panels, PARAMETRIZATIONS.items(), strict=True):
        for width in widths:
            curve = curves[parametrization, width]
            seeds = {
                lr: [
                    x
                    for t, x in losses.items()
                    if (t.parametrization, t.width, t.lr) == (parametrization, width, lr)
                ]
                for lr in curve
            }
            axes.fill_between(
                list(curve),
                [min(s) for s in seeds.values()],
                [max(s) for s in seeds.values()],
                color=colours[width],
                alpha=0.15,
                linewidth=0,
            )
            axes.plot(list(curve), list(curve.values()), color=colours[width], label=str(d_model * width))
        for optimum in best:
            if optimum.parametrization == parametrization:
                axes.plot(
                    optimum.lr, optimum.loss, marker="*", markersize=13,
                    color=colours[optimum.width], markeredgecolor="white",
                )  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted({trial.lr for trial in losses}))
        axes.xaxis.set_major_formatter(lambda lr, _: f"{lr:g}")
        axes.tick_params("x", rotation=45)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("learning rate (of the narrowest model)")
        axes.grid(True, color="#e6e6e6", linewidth=0.6)
    lowest = min(optimum.loss for optimum in best)
    highest = max(loss for loss in losses.values() if math.isfinite(loss))
    # Rates near divergence would squeeze the valleys, which are what one looks for.
    panels[0].set_ylim(0.97 * lowest, min(1.02 * highest, 1.6 * lowest))
    panels[0].set_ylabel("held-out loss (nats per token)")
    panels[0].legend(title="d_model", frameon=False, fontsize=8)
    FigureCanvasAgg(figure).print_png(str(path))
