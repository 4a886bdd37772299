"""A comparison read: the table of starts, in Markdown and as plain data, and the picture of loss over FLOPs.

Knows the results of `mupscale.study.comparison`; runs nothing.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mupscale.study.comparison import SCRATCH, Start
from mupscale.study.runs.history import write_json

Row = dict[str, Any]


def comparison_table(results: dict[str, Any]) -> list[Row]:
    """One row for each width and start, at its best rate; losses are means over the seeds, ± one deviation.

    ``flops_to_reach`` is where the start's mean curve at a constant rate falls to the final loss of the best
    run from scratch, interpolated between evaluations; None where it never does. The shares compare with
    what that run from scratch cost: ``saved`` counts the wide training alone, ``saved_counting_narrow`` the
    narrow model's too. Below zero, growing cost more.
    """
    rows = []
    narrow = results["narrow"]
    for width, start in dict.fromkeys((run["width"], run["start"]) for run in results["runs"]):
        constant, cooldown = (
            _chosen(results, width, start, schedule) for schedule in ("constant", "cooldown")
        )
        factor = constant[0]["lr_factor"]
        grid = sorted(results["settings"]["compare"]["lr_factors"])
        row = {
            "width": width,
            "start": start,
            "lr_factor": factor,
            "lr_at_edge": len(grid) > 1 and factor in (grid[0], grid[-1]),
            "seeds": len(constant),
            "initial_loss": mean(run["initial_loss"] for run in constant),
            **_final("constant", constant),
            **_final("cooldown", cooldown),
            "flops": constant[0]["flops"],
            "tokens": constant[0]["tokens"],
        }
        scratch = _chosen(results, width, str(Start.parse(SCRATCH)), "constant")
        if scratch:
            goal, cost = mean(run["final_loss"] for run in scratch), scratch[0]["flops"]
            steps = steps_to_reach(mean_curve(constant), goal)
            share = None if steps is None else steps / constant[0]["steps"]
            row |= {
                "flops_to_reach": None if share is None else share * cost,
                "tokens_to_reach": None if share is None else share * constant[0]["tokens"],
                "saved": None if share is None else 1 - share,
                "saved_counting_narrow": None
                if share is None or narrow["flops"] is None or start == scratch[0]["start"]
                else 1 - share - narrow["flops"] / cost,
            }
        rows.append(row)
    return sorted(rows, key=lambda row: (row["width"], row["cooldown"]))


def _chosen(results: dict[str, Any], width: int, start: str, schedule: str) -> list[dict[str, Any]]:
    return [
        run
        for run in results["runs"]
        if run["chosen"] and (run["width"], run["start"], run["schedule"]) == (width, start, schedule)
    ]


def _final(schedule: str, runs: Sequence[dict[str, Any]]) -> Row:
    losses = [run["final_loss"] for run in runs]
    return {schedule: mean(losses), f"{schedule}_deviation": stdev(losses) if len(losses) > 1 else None}


def mean_curve(runs: Sequence[dict[str, Any]]) -> list[tuple[int, float]]:
    """(step, held-out loss), averaged over runs that were evaluated at the same steps."""
    return [
        (points[0]["step"], mean(point["held_out_loss"] for point in points))
        for points in zip(*(run["curve"] for run in runs), strict=True)
    ]


def steps_to_reach(curve: Sequence[tuple[int, float]], loss: float) -> float | None:
    """The first step at which a curve has fallen to a loss, linear between points; None if it never does.

    >>> steps_to_reach([(0, 4.0), (100, 3.0), (200, 2.5)], 2.75)
    150.0
    """
    if curve[0][1] <= loss:
        return float(curve[0][0])
    for (before, high), (after, low) in pairwise(curve):
        if low <= loss:
            return before + (after - before) * (high - loss) / (high - low)
    return None


def markdown(results: dict[str, Any]) -> str:
    """The table with what a reader has to know of how it was made."""
    rows, narrow = comparison_table(results), results["narrow"]
    settings, training = results["settings"]["compare"], results["settings"]["training"]
    grid = ", ".join(f"{factor:g}" for factor in settings["lr_factors"])
    lines = [
        f"Narrow model: {narrow['parameters']:,} parameters, d_model {narrow.get('hidden_size', '–')}, "
        f"held-out loss {_number(narrow['final_loss'])} after {narrow['steps']} steps. "
        f"Text: {results['data']}.",
        "",
        f"Every start: {training['steps']} steps of {training['batch_size']} × {training['block_size']} "
        f"tokens, the same blocks in the same order, {settings['seeds']} seeds (mean ± deviation). Learning "
        f"rate, times the narrow model's {training['lr']:g}, tuned over {grid} for each start with the first "
        "seed (by the loss after the cooldown); * marks the edge of that grid. *Constant*: constant rate; "
        f"*cooldown*: falling linearly over the last {settings['cooldown_fraction']:.0%} of the steps. "
        "*Reaches scratch at*: the share of the FLOPs, and tokens, of the run from scratch after which the "
        "start has that run's final loss, at a constant rate; in brackets with the narrow model's own "
        "training counted in.",
    ]
    for width in dict.fromkeys(row["width"] for row in rows):
        lines += [
            "",
            f"### Width × {width}",
            "",
            "| start | lr × | loss at step 0 | constant | cooldown | reaches scratch at |",
            "|---|---|---|---|---|---|",
        ]
        for row in rows:
            if row["width"] == width:
                cells = [
                    row["start"],
                    f"{row['lr_factor']:g}{'*' if row['lr_at_edge'] else ''}",
                    _number(row["initial_loss"]),
                    *(_spread(row[s], row[f"{s}_deviation"]) for s in ("constant", "cooldown")),
                    _reach(row),
                ]
                lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _number(loss: float | None) -> str:
    return "–" if loss is None else f"{loss:.3f}"


def _spread(loss: float, deviation: float | None) -> str:
    return _number(loss) + ("" if deviation is None else f" ± {deviation:.3f}")


def _reach(row: Row) -> str:
    if "saved" not in row:
        return "–"
    if row["saved"] is None:
        return "not reached"
    counting = row["saved_counting_narrow"]
    return f"{1 - row['saved']:.0%}" + ("" if counting is None else f" ({1 - counting:.0%})")


def save_picture(results: dict[str, Any], path: Path) -> None:
    """Loss over the FLOPs of the wide training at a constant rate, a panel each width, with bands over seeds.

    Diamonds at the right are the ends of the cooldown. The numbers go to a CSV beside the picture.
    """
    rows = comparison_table(results)
    widths = list(dict.fromkeys(row["width"] for row in rows))
    starts = list(dict.fromkeys(run["start"] for run in results["runs"]))
    colours = dict(zip(starts, matplotlib.colormaps["tab10"](np.arange(len(starts)) % 10), strict=True))
    figure = Figure(figsize=(6.4 * len(widths), 5.6), dpi=130, layout="constrained", facecolor="white")
    written: list[Row] = []
    for axes, width in zip(figure.subplots(1, len(widths), squeeze=False)[0], widths, strict=True):
        for row in (row for row in rows if row["width"] == width):
            runs = _chosen(results, width, row["start"], "constant")
            flops = [point["flops"] for point in runs[0]["curve"]]
            losses = np.array([[point["held_out_loss"] for point in run["curve"]] for run in runs])
            colour = colours[row["start"]]
            axes.fill_between(flops, losses.min(0), losses.max(0), color=colour, alpha=0.15, linewidth=0)
            axes.plot(flops, losses.mean(0), color=colour, label=f"{row['start']}: {row['cooldown']:.3f}")
            axes.plot(flops[-1], row["cooldown"], color=colour, marker="D", markersize=5, linestyle="")
            written += [
                {"width": width, "start": row["start"], "flops": x, "mean": m, "lowest": low, "highest": high}
                for x, m, low, high in zip(flops, losses.mean(0), losses.min(0), losses.max(0), strict=True)
            ]
        mine = [row for row in rows if row["width"] == width]
        ends = [row[key] for row in mine for key in ("cooldown", "constant") if math.isfinite(row[key])]
        lowest, highest = min(ends), max(*ends, min(row["initial_loss"] for row in mine))
        axes.set_ylim(lowest - 0.05, highest + 0.4 * (highest - lowest))
        axes.set_title(f"width × {width}", fontsize=10)
        axes.set_xlabel("FLOPs of the wide training")
        axes.grid(True, color="#e6e6e6", linewidth=0.6)
        axes.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, -0.1),
            ncols=2,
            frameon=False,
            fontsize=7.5,
            title="start: loss after cooldown (◆)",
            title_fontsize=7.5,
        )
        axes.set_ylabel("held-out loss (nats per token), constant rate")
    FigureCanvasAgg(figure).print_png(str(path))
    with path.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(written[0]))
        writer.writeheader()
        writer.writerows(written)


def write_comparison(results: dict[str, Any], out: Path) -> str:
    """Write `comparison.json`, `.md`, `.png` and `.csv` into a folder; return the Markdown."""
    text = markdown(results)
    write_json(out / "comparison.json", {**results, "table": comparison_table(results)})
    (out / "comparison.md").write_text(text, encoding="utf-8")
    save_picture(results, out / "comparison.png")
    return text
