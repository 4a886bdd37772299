"""What a study found, as plain data: `results.json`, from which all questions are answered.

Knows the board and its queues; trains nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from statistics import fmean, stdev
from typing import Any

from optuna.trial import FrozenTrial

import mupscale
from mupscale.study.spec.space import Space, at_edge
from mupscale.study.spec.sweeps import Sweep
from mupscale.study.work.board import Board
from mupscale.study.work.queue import Queue
from mupscale.theory.tables import scaling_rows

Row = dict[str, Any]
SeedRuns = dict[str, Any]


def collect(board: Board) -> Row:
    """Everything that is known so far: the study, its sweeps with every point tried, and what is asked."""
    study, workload = board.study, board.budget.workload
    model = study.model
    sweeps = [_sweep(board, sweep) for sweep in study.sweeps.values() if sweep.extends is None]
    planned = [q["of"] for q in study.questions if q["ask"] == "plan"]
    return {
        "mupscale": mupscale.__version__,
        "study": study.name,
        "title": study.title,
        "data": workload.data.about,
        "unit": "nats per token" if model.reads_text else "nats per item",
        "model": {
            "family": model.file or model.family,
            # What comes in a file, and a ResNet-18, have a depth of their own.
            "layers": None if model.file or model.family == "resnet18" else model.layers,
        },
        "width_word": model.width_word,
        "narrow": workload.narrow,
        "training": dict(study.training),
        "sweeps": sweeps,
        "plans": {name: scaling_rows(_growth(board, study.sweeps[name]).params) for name in planned},
        "questions": [dict(question) for question in study.questions],
        "seconds": sum(_seconds(board, sweep) for sweep in study.sweeps.values()),
    }


def _seconds(board: Board, sweep: Sweep) -> float:
    """Spent by workers on what is finished."""
    if sweep.begin == "checkpoint" or not board.is_open(sweep):
        return 0.0
    return float(sum(trial.user_attrs["seconds"] for trial in board.queue(sweep).results()))


def _growth(board: Board, sweep: Sweep) -> mupscale.Plan:
    budget = board.budget
    before = budget.size(board.study.sweeps[str(sweep.source)])
    return budget.workload.plan(before, budget.size(sweep))


def _sweep(board: Board, sweep: Sweep) -> Row:
    budget, study = board.budget, board.study
    extension = study.extension(sweep)
    parts = [sweep] if extension is None else [sweep, extension]
    source = study.sweeps[sweep.source] if sweep.begin == "grow" and sweep.source else None
    size = budget.size(sweep)
    row: Row = {
        "name": sweep.name,
        "begin": sweep.begin,
        "source": sweep.source,
        "width": budget.width(sweep),
        "from_width": source and budget.width(source),
        "layers": budget.layers(sweep),
        "from_layers": source and budget.layers(source),
        "parameters": budget.workload.parameters(size),
        "takes": dict(sweep.take),
        "seeds": len(sweep.seeds),
        "steps": budget.steps(sweep),
        "lengths": budget.lengths(sweep) if sweep.branches else [],
        "constant": sweep.constant,
        "flops_per_step": budget.step_flops(sweep),
        "items_per_step": budget.items_per_step(sweep),
        "run_flops": budget.run_flops(sweep),
        "passes": budget.passes(sweep),
        "total": sum(board.trials(each) for each in parts),
        "done": 0,
        "finished": board.is_finished(sweep),
        "flops": 0,
        "knobs": [],
        "points": [],
        "best": None,
        "at_edge": [],
        "best_ends": [],
    }
    if sweep.begin == "checkpoint":
        return row | _checkpoint(board)
    if not board.is_open(sweep):
        return row
    queues = [board.queue(sweep)]
    if extension is not None:
        row["seeds"] += len(extension.seeds)
        row["finished"] = board.is_finished(extension)
        queues += [board.queue(extension)] if board.is_open(extension) else []
    points = points_of(queues, branches=sweep.branches)
    chosen = _best(_finite(points))
    knobs = {name: values for name, values in queues[0].space.items() if name != "seed"}
    return row | {
        "done": sum(len(queue.results()) for queue in queues),
        "flops": row["flops_per_step"] * sum(point["steps"] for point in points),
        "knobs": list(knobs),
        "points": points,
        "best": chosen and {key: chosen[key] for key in ("point", "loss", "spread")},
        "at_edge": at_edge(chosen["point"], knobs) if chosen else [],
        "best_ends": best_ends(points, row["steps"], knobs),
    }


def _best(rows: Iterable[Row]) -> Row | None:
    """The lowest mean, of those over the most seeds: one seed alone may have been lucky."""
    return min(rows, key=lambda row: (-len(row["losses"]), row["loss"]), default=None)


def best_ends(points: Sequence[Row], steps: int, knobs: Space) -> list[Row]:
    """The best point at each length, the shortest first: steps, point, loss, spread, losses, at_edge.

    Args:
        points: of a sweep, as `points_of` tells them.
        steps: of a run that ends in one place.
        knobs: what was tried.
    """
    ends: dict[int, list[Row]] = {}
    for row in points:  # what diverged may have done so after shorter ones had left it
        if row["loss"] is None:
            continue
        for end in row["lengths"] or [{"steps": steps, **{k: row[k] for k in ("loss", "spread", "losses")}}]:
            if math.isfinite(end["loss"]):
                edges = at_edge(row["point"], knobs)
                ends.setdefault(end["steps"], []).append(end | {"point": row["point"], "at_edge": edges})
    return [best for _, same in sorted(ends.items()) if (best := _best(same)) is not None]


def _checkpoint(board: Board) -> Row:
    """The row of a checkpoint that was there before: one run, as far as its history says."""
    history = board.budget.narrow_history
    if history is None:
        return {"steps": 0}
    curve = [[point.step, point.loss] for point in history.held_out]
    run = {
        "seed": 0,
        "loss": history.final_loss,
        "curve": curve,
        "ends": [],
        "steps": history.steps,
        "norms": None,
        "equality": None,
    }
    lr = history.settings["config"]["lr"]
    return {
        "flops_per_step": history.flops_per_step,
        "items_per_step": history.tokens_per_step,
        "flops": history.flops,
        "points": [point := _point({"lr": lr}, [0], [run])],
        "best": {key: point[key] for key in ("point", "loss", "spread")},
    }


def points_of(queues: Sequence[Queue], *, branches: bool = False) -> list[Row]:
    """One row for each point tried: its values, its loss averaged over seeds, their spread.

    A diverged point has the loss infinity, a pruned one None. ``steps`` is what was really trained, all seeds
    together.

    Args:
        queues: of a sweep, and of its further seeds.
        branches: whether runs end in several places.
    """
    trials = [trial for queue in queues for trial in queue.results()]
    order = {id(trial): place for place, trial in enumerate(trials)}
    trials.sort(key=lambda trial: (sorted(_values(trial).items(), key=str), order[id(trial)]))
    rows = []
    for values, same in groupby(trials, key=_values):
        group = list(same)
        runs = [run for trial in group for run in _runs(trial)]
        pruned = any(trial.value is None for trial in group)
        numbers = [order[id(trial)] for trial in group]
        rows.append(_point(values, numbers, runs, pruned=pruned, branches=branches))
    return sorted(rows, key=lambda row: row["trials"][0])


def _values(trial: FrozenTrial) -> dict[str, Any]:
    return {name: value for name, value in trial.params.items() if name != "seed"}


def _runs(trial: FrozenTrial) -> list[SeedRuns]:
    """The runs of a trial, one for each seed that was begun."""
    told = trial.user_attrs
    return [
        {
            "seed": told["seeds"][place] if "seeds" in told else trial.params.get("seed", 0) + place,
            "loss": loss,
            "curve": told["curves"][place],
            "ends": told["ends"][place],
            "steps": told["steps"] / len(told["losses"]),
            "norms": told["norms"][place] if "norms" in told else None,
            "equality": told.get("equality"),
        }
        for place, loss in enumerate(told["losses"])
    ]


def _point(
    values: Row, trials: list[int], runs: Sequence[SeedRuns], *, pruned: bool = False, branches: bool = False
) -> Row:
    losses = [run["loss"] for run in runs]
    diverged = None in losses
    lengths = [steps for steps, _ in runs[0]["ends"]] if branches else []
    return {
        "point": values,
        "trials": trials,
        "state": "diverged" if diverged else "pruned" if pruned else "complete",
        **({"loss": None, "spread": None} if pruned and not diverged else _mean(losses)),
        "losses": losses,
        "seeds": [run["seed"] for run in runs],
        "curve": _mean_curve([run["curve"] for run in runs]),
        "curve_end": _mean([run["curve"][-1][1] if run["curve"] else None for run in runs]),
        "lengths": [
            {"steps": steps, **_mean(ends := [dict(run["ends"])[steps] for run in runs]), "losses": ends}
            for steps in lengths
        ],
        "steps": round(sum(run["steps"] for run in runs)),
        "norms": _mean_norms([run["norms"] for run in runs if run["norms"]]),
        "equality": runs[0]["equality"],
    }


def _mean(losses: Sequence[float | None]) -> Row:
    """Over seeds, and one standard deviation; infinite where one diverged."""
    known = [loss for loss in losses if loss is not None]
    if len(known) < len(losses):
        return {"loss": math.inf, "spread": None}
    return {"loss": fmean(known), "spread": stdev(known) if len(known) > 1 else None}


def _mean_curve(curves: Iterable[Sequence[Sequence[Any]]]) -> list[list[float]]:
    """[step, mean, lowest, highest] wherever all seeds have a loss."""
    curves = list(curves)
    by_step: dict[int, list[float]] = {}
    for curve in curves:
        for step, loss in curve:
            if loss is not None:
                by_step.setdefault(int(step), []).append(loss)
    whole = {step: x for step, x in sorted(by_step.items()) if len(x) == len(curves)}
    return [[step, fmean(x), min(x), max(x)] for step, x in whole.items()]


def _mean_norms(tables: Sequence[Sequence[Sequence[Any]]]) -> list[list[Any]] | None:
    """[step, kind, name, l1, l2], averaged over seeds."""
    found: dict[tuple[Any, ...], list[tuple[float, float]]] = {}
    for table in tables:
        for *key, l1, l2 in table:
            found.setdefault(tuple(key), []).append((l1, l2))
    return [[*key, *map(fmean, zip(*sizes, strict=True))] for key, sizes in found.items()] or None


def _finite(points: Sequence[Row]) -> list[Row]:
    return [p for p in points if p["state"] == "complete" and math.isfinite(p["loss"])]
