"""Pictures of a comparison, and the numbers behind each beside it.

Knows matplotlib (its objects, never its global state) and the results of `mupscale.study.warmstart`.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatterSciNotation, LogLocator, NullFormatter, ScalarFormatter

# Okabe & Ito's palette: told apart by colour-blind readers and in grey print.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#7F7F7F"

Row = dict[str, float | int | str | None]


@dataclass(frozen=True)
class Plot:
    """A figure, the rows that it shows, and what to read from it.

    Attributes:
        name: stem of the files it is saved under.
        caption: one or two sentences for a reader who sees it for the first time.
    """

    name: str
    figure: Figure
    rows: Sequence[Row]
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


def all_plots(results: dict[str, Any]) -> list[Plot]:
    """Every picture of a comparison, in the order of the report."""
    return [loss_over_steps(results), loss_over_flops(results), loss_by_length(results)]


def loss_over_steps(results: dict[str, Any]) -> Plot:
    """Held-out loss over optimizer steps: the grown model, and from scratch for every length tried."""
    figure, axes = canvas("optimizer steps of the wide model", "held-out loss (nats per token)")
    rows: list[Row] = []
    for run in _by_prominence(results):
        curve = _measured(run["curve"])
        rows += [{"run": run["name"], "step": p["step"], "held_out_loss": p["held_out_loss"]} for p in curve]
        _line(axes, [p["step"] for p in curve], [p["held_out_loss"] for p in curve], run)
    narrow = results["narrow"]["final_loss"]
    if narrow is not None:
        axes.axhline(narrow, color=GREY, linewidth=1, linestyle=":")
        axes.annotate("narrow model, end of its training", (0.32, narrow), xycoords=("axes fraction", "data"),
                      xytext=(0, -3), textcoords="offset points", ha="left", va="top",
                      color=GREY, fontsize=8)  # fmt: skip
    _loss_scale(axes, results)
    axes.set_xlim(left=0)
    _legend(axes)
    caption = (
        "Lower is better. The grown model starts where the narrow one stopped; the same architecture from "
        "scratch starts at chance. The drop at the end of each run is the learning rate's cooldown, which "
        "all runs have."
    )
    return Plot("loss_over_steps", figure, rows, caption)


def loss_over_flops(results: dict[str, Any]) -> Plot:
    """Held-out loss over compute, the narrow model's training counted in before the grown one's."""
    figure, axes = canvas("training compute (FLOPs)", "held-out loss (nats per token)")
    rows: list[Row] = []
    spent = results["narrow"]["flops"] or 0
    lines = [(run, spent if run["kind"] == "grown" else 0) for run in _by_prominence(results)]
    if results["narrow"]["curve"]:
        narrow = {
            **results["narrow"],
            "kind": "narrow",
            "name": "narrow model",
            "label": "narrow model",
            "curve": results["narrow"]["curve"],
        }
        lines.insert(0, (narrow, 0))
    for run, before in lines:
        curve = [p for p in _measured(run["curve"]) if p["flops"] + before > 0]
        flops = [p["flops"] + before for p in curve]
        rows += [
            {"run": run["name"], "flops": x, "of_which_narrow": before, "held_out_loss": p["held_out_loss"]}
            for p, x in zip(curve, flops, strict=True)
        ]
        _line(axes, flops, [p["held_out_loss"] for p in curve], run)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(LogFormatterSciNotation(minor_thresholds=(9.0, 9.0)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    _loss_scale(axes, results)
    _legend(axes)
    caption = "The same losses over the compute spent. "
    if results["narrow"]["flops"]:
        caption += (
            "The grown model pays for the narrow one's training first: its curve starts where that one ends."
        )
    else:
        caption += "What the narrow model's training cost is not known, and not counted."
    return Plot("loss_over_flops", figure, rows, caption)


def loss_by_length(results: dict[str, Any]) -> Plot:
    """Final loss against the length of training from scratch, and the grown model's as the mark to reach."""
    figure, axes = canvas("steps of the whole run, cooldown included", "final held-out loss (nats per token)")
    grown = next(run for run in results["runs"] if run["kind"] == "grown")
    best = [run for run in results["runs"] if run["kind"] == "scratch" and run["best"]]
    best.sort(key=lambda run: run["steps"])
    others = [run for run in results["runs"] if run["kind"] == "scratch" and not run["best"]]
    axes.plot([r["steps"] for r in best], [r["final_loss"] for r in best],
              color=ORANGE, marker="o", label="from scratch, better learning rate")  # fmt: skip
    if others:
        axes.plot([r["steps"] for r in others], [r["final_loss"] for r in others],
                  color=ORANGE, marker="x", linestyle="", alpha=0.5, label="the other rates")  # fmt: skip
    axes.plot([grown["steps"]], [grown["final_loss"]], color=BLUE, marker="D", linestyle="", label="grown")
    axes.axhline(grown["final_loss"], color=BLUE, linewidth=1, linestyle="--")
    axes.set_xscale("log")  # as the crossing is interpolated
    axes.set_xticks(sorted({run["steps"] for run in results["runs"]}))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    reach = results["savings"]["scratch_steps_to_reach_grown"]
    if reach["bound"] == "interpolated":
        axes.plot(
            [reach["steps"]] * 2,
            [grown["final_loss"], axes.get_ylim()[0]],
            color=GREY,
            linewidth=1,
            linestyle=":",
        )
        axes.annotate(f"{reach['steps']:.0f} steps", (reach["steps"], grown["final_loss"]),
                      xytext=(5, 5), textcoords="offset points", color=GREY, fontsize=9)  # fmt: skip
    axes.legend(frameon=False, fontsize=9)
    rows: list[Row] = [
        {"run": r["name"], "steps": r["steps"], "flops": r["flops"], "final_loss": r["final_loss"]}
        for r in [grown, *best, *others]
    ]
    caption = (
        "Each point is a whole run with its own cooldown. Where the line of the runs from scratch crosses "
        "the dashed line, training from scratch has caught up with the grown model."
    )
    return Plot("loss_by_length", figure, rows, caption)


# ---- shared ------------------------------------------------------------------------------------------------


def canvas(x: str, y: str) -> tuple[Figure, Axes]:
    """An empty figure with one pair of axes, named."""
    figure, (axes,) = panels(1)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def panels(count: int, *, width: float = 7.0, height: float = 4.3) -> tuple[Figure, list[Axes]]:
    """An empty figure with pairs of axes side by side. Width and height are the whole figure's, in inches."""
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")
    all_axes = list(figure.subplots(1, count, squeeze=False)[0])
    for axes in all_axes:
        axes.grid(True, color="#e6e6e6", linewidth=0.6)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return figure, all_axes


def _by_prominence(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Faint lines first, so that the ones that matter lie on top."""
    return sorted(results["runs"], key=lambda run: (run["kind"] == "grown", run["best"], -run["steps"]))


def _line(axes: Axes, x: Sequence[float], y: Sequence[float], run: dict[str, Any]) -> None:
    if run["kind"] == "grown":
        axes.plot(x, y, color=BLUE, linewidth=2.4, label=_label(run))
    elif run["kind"] == "narrow":
        axes.plot(x, y, color=GREEN, linewidth=1.6, label=_label(run))
    elif run["best"]:
        styles = ["-", "--", "-.", ":"]
        axes.plot(x, y, color=ORANGE, linewidth=1.8, linestyle=styles[run["length"] % 4], label=_label(run))
    else:
        axes.plot(x, y, color=ORANGE, linewidth=0.8, alpha=0.35)


def _measured(curve: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [p for p in curve if p["held_out_loss"] is not None]


def _loss_scale(axes: Axes, results: dict[str, Any]) -> None:
    """From below the best loss to somewhat above the grown model's start; chance level would flatten it."""
    losses = sorted(p["held_out_loss"] for run in results["runs"] for p in _measured(run["curve"]))
    grown = next(run for run in results["runs"] if run["kind"] == "grown")
    best, start = losses[0], _measured(grown["curve"])[0]["held_out_loss"]
    axes.set_ylim(best - 0.05 * start, min(losses[-1] + 0.05 * start, 1.6 * start))


def _legend(axes: Axes) -> None:
    """The most prominent line, drawn last, is named first."""
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], frameon=False, fontsize=9)


def _label(run: dict[str, Any]) -> str:
    return f"{run['label']}: {run['final_loss']:.3f}"
