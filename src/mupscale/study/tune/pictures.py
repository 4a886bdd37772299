"""All pictures of a study, and the one of the large width: grown against from scratch, over compute.

Knows the results of `mupscale.study.tune.results`, and matplotlib's objects (never its global state).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from mupscale.study.page.plots import BLUE, ORANGE, Plot, canvas
from mupscale.study.page.plots import Row as CsvRow
from mupscale.study.tune.knob_pictures import (
    loss_over_lr,
    loss_over_lr_and_noise,
    loss_over_noise,
    padded,
)
from mupscale.study.tune.reading import Row, lengths_of, loss_unit, point_at, sweep_of

LIGHT_BLUE = "#56B4E9"  # of the same palette


def all_pictures(results: Row) -> list[Plot]:
    """Every picture that the results have something for, in the order of the report."""
    made = (
        loss_over_lr(results),
        loss_over_noise(results),
        loss_over_lr_and_noise(results),
        final_loss_over_flops(results),
    )
    return [plot for plot in made if plot is not None]


def final_loss_over_flops(results: Row) -> Plot | None:
    """Mean held-out loss over compute at the large width, with and without the cost of the base model."""
    final = results["final"]
    found = final and (final["tuned"] or final["transferred"])
    if not found:
        return None
    large, growth = results["widths"]["large"], results["widths"]["growth"]
    grown, fresh = sweep_of(results, "grown", large), sweep_of(results, "fresh", large * growth)
    assert grown is not None
    assert fresh is not None
    ours, theirs = point_at(grown, grown["best"]["point"]), point_at(fresh, fresh["best"]["point"])
    assert ours is not None
    assert theirs is not None
    cost, base = grown["flops_per_step"], final["narrow_flops"]
    figure, axes = canvas("training compute (FLOPs)", f"held-out loss ({loss_unit(results)})")
    lengths = lengths_of(ours["lengths"])
    goal = found["scratch_loss"]
    axes.axhline(goal, color=ORANGE, linewidth=1, linestyle=":")
    counted = "grown, base model counted in"
    lines: tuple[tuple[str, Any, list[tuple[int, float]], int, str, str], ...] = (
        ("from scratch", theirs["curve"], [], 0, ORANGE, f"from scratch: {goal:.3f}"),
        (counted, ours["curve"], lengths, base, LIGHT_BLUE, counted),
        ("grown", ours["curve"], lengths, 0, BLUE, f"grown: {lengths[-1][1]:.3f}"),
    )
    written: list[CsvRow] = []
    for name, curve, ends, before, colour, label in lines:
        axes.plot([step * cost + before for step, _ in curve], [loss for _, loss in curve], color=colour,
                  linestyle="--" if before else "-", linewidth=1.8, label=label)  # fmt: skip
        axes.plot([steps * cost + before for steps, _ in ends], [loss for _, loss in ends], color=colour,
                  marker="D", linestyle="", markersize=5)  # fmt: skip
        for (short, high), (long, low) in pairwise(ends):
            # Between lengths the loss is taken as linear in the logarithm of the steps.
            steps_between, losses_between = np.geomspace(short, long, 20), np.linspace(high, low, 20)
            axes.plot(steps_between * cost + before, losses_between, color=colour, linewidth=0.8)
        written += [
            {"run": name, "part": part, "steps": steps, "flops": steps * cost + before, "loss": loss}
            for part, points in (("curve", curve), ("end of a length", ends))
            for steps, loss in points
        ]
    bound, share = found["steps_to_reach"]["bound"], f"{found['ratio']:.0%}"
    if bound == "interpolated":
        at = found["flops_to_reach"]
        axes.plot([at], [goal], marker="o", markersize=9, color=BLUE, markerfacecolor="none", zorder=5)
        axes.vlines(at, 0, goal, color=BLUE, linewidth=1, linestyle=":")
        axes.annotate(f" {share} of from scratch", (at, 0.02), xycoords=("data", "axes fraction"), color=BLUE,
                      fontsize=9)  # fmt: skip
    low = min(goal, *(loss for _, loss in lengths))
    axes.set_ylim(*padded(low, max(ours["curve"][0][1], lengths[0][1], goal)))
    axes.set_xlim(left=0)
    axes.ticklabel_format(axis="x", style="sci", scilimits=(0, 0), useMathText=True)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], frameon=False, fontsize=9, loc="upper right")
    reached = {
        "interpolated": f"growing reaches it with {share} of the FLOPs",
        "at most": f"growing reaches it with at most {share} of the FLOPs",
        "more than": f"growing did not reach it with {share} of the FLOPs",
    }[bound]
    caption = (
        "Means over the seeds, at the best rates tried at this width. Diamonds: where the grown model's "
        "training ends if stopped there, after a cooldown of its own; thin, the losses between. Dotted: the "
        f"loss with which training from scratch ends; {reached}. Dashed: the same grown model, the training "
        "of its base model counted before it."
    )
    return Plot("final_loss_over_flops", figure, written, caption)
