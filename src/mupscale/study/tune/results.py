"""What a study found, as plain data: `results.json`, from which tables, pictures and the page are made.

Knows the board and its queues; trains nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from statistics import fmean, stdev
from typing import Any

from optuna.trial import FrozenTrial

import mupscale
from mupscale.study.savings import steps_to_reach
from mupscale.study.spec.space import at_edge
from mupscale.study.tune.procedure import Board, Sweep
from mupscale.study.work.queue import Queue

Row = dict[str, Any]
LARGEST_FACTOR = 2.0
LARGEST_REGRET = 0.005


def points(queue: Queue) -> list[Row]:
    """One row for each point tried: its values, its loss averaged over seeds, their spread.

    A diverged point has the loss infinity, a pruned one None. ``lengths`` are the losses of shorter runs,
    ``steps`` what was really trained, all seeds together.
    """
    rows = []
    trials = sorted(
        queue.results(), key=lambda trial: (sorted(_values(trial).items(), key=str), trial.number)
    )
    for values, same in groupby(trials, key=_values):
        group = sorted(same, key=lambda trial: trial.number)
        seeds = [loss for trial in group for loss in trial.user_attrs["losses"]]
        curves = [curve for trial in group for curve in trial.user_attrs["curves"]]
        pruned = any(trial.value is None for trial in group)
        diverged = any(loss is None for loss in seeds)
        rows.append(
            {
                "trials": [trial.number for trial in group],
                "point": values,
                "state": "diverged" if diverged else "pruned" if pruned else "complete",
                "loss": math.inf if diverged else None if pruned else fmean(seeds),
                "spread": stdev(seeds) if len(seeds) > 1 and not diverged and not pruned else None,
                "losses": seeds,
                "curve": _mean_curve(curves),
                "steps": sum(trial.user_attrs["steps"] for trial in group),
                "lengths": {}
                if diverged
                else {
                    int(steps): _mean([trial.user_attrs["lengths"][steps] for trial in group])
                    for steps in group[0].user_attrs.get("lengths", ())
                },
            }
        )
    return sorted(rows, key=lambda row: row["trials"][0])


def best_point(rows: Sequence[Row]) -> Row | None:
    """The row with the lowest loss; None where all diverged."""
    finite = [row for row in rows if row["loss"] is not None and math.isfinite(row["loss"])]
    return min(finite, key=lambda row: row["loss"], default=None)


def collect(
    board: Board, *, flops: Mapping[str, int], parameters: Mapping[int, int], passes: float
) -> dict[str, Any]:
    """Everything that is known so far.

    Args:
        board: the sweeps, finished or not.
        flops: of one step, by name of the sweep.
        parameters: of a model, by width.
        passes: of a base model through the training data.
    """
    study = board.study
    sweeps = [_sweep(board, sweep, flops[sweep.name]) for sweep in board.sweeps if board.is_open(sweep)]
    results: dict[str, Any] = {
        "mupscale": mupscale.__version__,
        "study": study.name,
        "data": board.about,
        "model": {
            "family": study.model.config or study.model.family,
            # A config.json and a ResNet-18 have a depth of their own.
            "layers": None if study.model.config or study.model.family == "resnet18" else study.model.layers,
        },
        "widths": {"narrow": study.widths.narrow, "large": study.widths.large, "growth": study.widths.growth},
        "parameters": dict(parameters),
        "seeds": study.seeds,
        "training": dict(study.training),
        "passes_of_base": passes,
        "sweeps": sweeps,
        "flops": {sweep["name"]: sweep["flops"] for sweep in sweeps},
    }
    by_name = {sweep["name"]: sweep for sweep in sweeps}
    results["tuned"] = _tuned(board, by_name)
    results["final"] = _final(board, by_name)
    results["transfer"] = transfer([s for s in sweeps if s["kind"] == "grow" and s["finished"]])
    return results


def _sweep(board: Board, sweep: Sweep, flops: int) -> Row:
    queue = board.queue(sweep)
    rows = points(queue)
    best = best_point(rows)
    return {
        "name": sweep.name,
        "kind": sweep.kind,
        "width": sweep.width,
        "to": sweep.width * board.study.widths.growth if sweep.kind in ("grow", "grown") else sweep.width,
        "total": queue.total,
        "finished": queue.finished,
        "flops_per_step": flops,
        "flops": flops * sum(row["steps"] for row in rows),
        "knobs": list(queue.space),
        "points": rows,
        "best": best and {key: best[key] for key in ("point", "loss", "spread")},
        "at_edge": at_edge(best["point"], {k: v for k, v in queue.space.items() if k != "seed"})
        if best
        else [],
    }


def _tuned(board: Board, sweeps: Mapping[str, Row]) -> dict[str, Any]:
    """The values that transfer, and what finding them cost."""
    narrow, large = board.study.widths.narrow, board.study.widths.large
    scratch, grow = sweeps.get(f"scratch-{narrow}"), sweeps.get(f"grow-{narrow}")
    fresh = sweeps.get(f"fresh-{large * board.study.widths.growth}")
    spent = sum(
        sweep["flops"]
        for sweep in (scratch, grow, sweeps.get(f"base-{narrow}") if narrow != large else None)
        if sweep
    )
    large_run = fresh["flops_per_step"] * board.study.final.steps if fresh else None
    return {
        "scratch": scratch and scratch["best"],
        "grow": grow and grow["best"],
        "flops": spent,
        "large_run_flops": large_run,
        "share_of_large_run": spent / large_run if large_run else None,
    }


def _final(board: Board, sweeps: Mapping[str, Row]) -> dict[str, Any] | None:
    """The grown model against the same one from scratch.

    ``flops_to_reach`` is what the grown model needs to end, after a cooldown, at the loss with which training
    from scratch ends after its own, interpolated between the lengths that were run.
    """
    study = board.study
    large = study.widths.large
    grown, fresh = sweeps.get(f"grown-{large}"), sweeps.get(f"fresh-{large * study.widths.growth}")
    if not (grown and fresh and grown["finished"] and fresh["finished"] and grown["best"] and fresh["best"]):
        return None
    base = sweeps[f"base-{large}"]
    # One base model is needed, however many seeds were trained to see the spread.
    narrow_flops = base["flops"] // base["total"]
    tuning = _tuned(board, sweeps)["flops"]
    rates = {
        "tuned": (_row(grown, grown["best"]["point"]["lr"]), _row(fresh, fresh["best"]["point"]["lr"])),
        "transferred": (
            _row(grown, sweeps[f"grow-{study.widths.narrow}"]["best"]["point"]["lr"]),
            _row(fresh, sweeps[f"scratch-{study.widths.narrow}"]["best"]["point"]["lr"]),
        ),
    }
    found: dict[str, Any] = {"narrow_flops": narrow_flops, "tuning_flops": tuning}
    for name, (ours, theirs) in rates.items():
        if not ours["lengths"] or not math.isfinite(theirs["loss"]):
            found[name] = None
            continue
        lengths = sorted((steps, loss) for steps, loss in ours["lengths"].items() if math.isfinite(loss))
        reach = steps_to_reach(lengths, theirs["loss"])
        needed = reach["steps"] * grown["flops_per_step"]
        scratch_flops = fresh["flops_per_step"] * study.final.steps
        found[name] = {
            "grown_lr": ours["point"]["lr"],
            "scratch_lr": theirs["point"]["lr"],
            "scratch_loss": theirs["loss"],
            "scratch_spread": theirs["spread"],
            "scratch_flops": scratch_flops,
            "grown_losses": dict(lengths),
            "grown_spread": ours["spread"],
            "steps_to_reach": reach,
            "flops_to_reach": needed,
            "ratio": needed / scratch_flops,
            "ratio_with_narrow": (needed + narrow_flops) / scratch_flops,
            "ratio_with_narrow_and_tuning": (needed + narrow_flops + tuning) / scratch_flops,
        }
    return found


def transfer(sweeps: Sequence[Row]) -> dict[str, Any] | None:
    """How far the optimum of growth moves with width, and what the narrowest one's costs at the widest.

    Args:
        sweeps: of one grid at several widths, ascending in width or not; None for fewer than two.

    Returns:
        ``factor``: by knob with numbers, the ratio of the optima at the narrowest and the widest; ``regret``:
        the loss at the widest with the narrowest's optimum over the best one there, less 1; ``transfers``:
        whether the former are at most `LARGEST_FACTOR` and the latter at most `LARGEST_REGRET`, and no width
        diverged at every point.
    """
    diverged = [sweep["width"] for sweep in sweeps if not sweep["best"]]
    sweeps = sorted((s for s in sweeps if s["best"]), key=lambda sweep: sweep["width"])
    if len(sweeps) < 2:
        return None
    narrowest, widest = sweeps[0], sweeps[-1]
    chosen = narrowest["best"]["point"]
    rows = []
    for sweep in sweeps:
        not_tried = {"state": "not tried", "loss": None}
        there = next((row for row in sweep["points"] if row["point"] == chosen), not_tried)
        rows.append(
            {
                "from": sweep["width"],
                "to": sweep["to"],
                **sweep["best"],
                "at_edge": sweep["at_edge"],
                "narrowest_optimum": {key: there[key] for key in not_tried},
                "regret": there["loss"] / sweep["best"]["loss"] - 1 if there["loss"] else None,
            }
        )
    pairs = {
        name: (value, widest["best"]["point"][name])
        for name, value in chosen.items()
        if isinstance(value, int | float)
    }
    factor, regret = {name: _ratio(*pair) for name, pair in pairs.items()}, rows[-1]["regret"]
    return {
        "rows": rows,
        "width_ratio": widest["width"] / narrowest["width"],
        "factor": factor,
        "regret": regret,
        "diverged": diverged,
        "transfers": not diverged
        and regret is not None
        and regret <= LARGEST_REGRET
        and all(moved <= LARGEST_FACTOR for moved in factor.values()),
    }


def _ratio(a: float, b: float) -> float:
    return 1.0 if a == b else max(a, b) / min(a, b) if min(a, b) > 0 else math.inf


def _values(trial: FrozenTrial) -> dict[str, Any]:
    return {name: value for name, value in trial.params.items() if name != "seed"}


def _row(sweep: Row, lr: float) -> Row:
    row: Row = next(row for row in sweep["points"] if row["point"]["lr"] == lr)
    return row


def _mean(losses: Sequence[float | None]) -> float:
    """Over seeds; infinite where one diverged."""
    finite = [loss for loss in losses if loss is not None]
    return fmean(finite) if len(finite) == len(losses) else math.inf


def _mean_curve(curves: Sequence[Sequence[Sequence[Any]]]) -> list[list[float]]:
    """[step, mean loss] wherever all seeds have one."""
    by_step: dict[int, list[float]] = {}
    for curve in curves:
        for step, loss in curve:
            if loss is not None:
                by_step.setdefault(int(step), []).append(loss)
    return [[step, fmean(x)] for step, x in sorted(by_step.items()) if len(x) == len(curves)]
