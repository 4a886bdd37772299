"""What growing saved, in steps and FLOPs, from the runs of a comparison. Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any


def steps_to_reach(lengths: Sequence[tuple[int, float]], loss: float) -> dict[str, Any]:
    """How long training from scratch must be to end at a loss.

    Between two lengths that were run, the final loss is taken as linear in the logarithm of the steps.
    Outside of what was run only a bound is given: nothing is extrapolated.

    Args:
        lengths: steps and final loss of every length, shortest first.
        loss: the loss to reach.

    Returns:
        `steps`, and `bound`: "interpolated", "at most" (the shortest run did) or "more than" (none did).

    Example:
        >>> steps_to_reach([(100, 4.0), (400, 2.0)], 3.0)
        {'steps': 200.0, 'bound': 'interpolated'}
        >>> steps_to_reach([(100, 4.0), (400, 2.0)], 1.0)
        {'steps': 400.0, 'bound': 'more than'}
    """
    if lengths[0][1] <= loss:
        return {"steps": float(lengths[0][0]), "bound": "at most"}
    for (short, high), (long, low) in pairwise(lengths):
        if low <= loss:
            share = (high - loss) / (high - low)
            steps = math.exp(math.log(short) + share * math.log(long / short))
            return {"steps": round(steps, 1), "bound": "interpolated"}
    return {"steps": float(lengths[-1][0]), "bound": "more than"}


def savings(runs: Sequence[dict[str, Any]], narrow_flops: int | None) -> dict[str, Any]:
    """Compare the grown run with the best run from scratch of every length.

    Args:
        runs: the runs of `results.json`.
        narrow_flops: what the narrow model's own training cost, None if not known.

    Returns:
        Losses at equal steps, the steps and FLOPs from scratch that reach the grown model's final loss, and
        the shares saved: one counts the grown training alone (the narrow model was there anyway), the other
        the narrow training too. A share is a fraction of the FLOPs from scratch; below zero, growing cost
        more.
        Under the bound "more than" a share is a lower bound, under "at most" an upper one.
    """
    grown = next(run for run in runs if run["kind"] == "grown")
    best = sorted((r for r in runs if r["kind"] == "scratch" and r["best"]), key=lambda r: r["steps"])
    flops_per_step = grown["flops"] / grown["steps"]
    reach = steps_to_reach([(r["steps"], r["final_loss"]) for r in best], grown["final_loss"])
    scratch_flops = reach["steps"] * flops_per_step
    with_narrow = None if narrow_flops is None else grown["flops"] + narrow_flops
    equal = next((r for r in best if r["steps"] == grown["steps"]), None)
    matched = None
    if with_narrow is not None:
        matched = next((r for r in best if abs(r["flops"] - with_narrow) <= 0.51 * flops_per_step), None)
    return {
        "grown_final_loss": grown["final_loss"],
        "scratch_final_loss_at_equal_steps": equal and equal["final_loss"],
        "scratch_final_loss_at_equal_compute": matched and matched["final_loss"],
        "scratch_steps_at_equal_compute": matched and matched["steps"],
        "scratch_steps_to_reach_grown": reach,
        "scratch_flops_to_reach_grown": {"flops": scratch_flops, "bound": reach["bound"]},
        "grown_flops": grown["flops"],
        "narrow_flops": narrow_flops,
        "grown_and_narrow_flops": with_narrow,
        "flops_saved": 1 - grown["flops"] / scratch_flops,
        "flops_saved_counting_narrow": None if with_narrow is None else 1 - with_narrow / scratch_flops,
    }
