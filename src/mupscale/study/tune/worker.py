"""A worker: it takes whatever trial is free in any sweep whose needs are met. Workers may come and go.

Knows the board and the runs; nothing of tables and pictures.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean
from typing import Any

import optuna

from mupscale.errors import GrowthError
from mupscale.study.tune.procedure import Board, Sweep
from mupscale.study.sweeping.queue import Queue
from mupscale.study.tune.runs import Curve, Lab, Run
from mupscale.study.sweeping.space import Point
from mupscale.study.tune.spec import FieldError
from mupscale.study.tune.study_file import located

POLL_SECONDS = 1.0


class Worker:
    """Works off sweeps of a board, beside any number of others.

    Args:
        lab: models, data, and the folder for runs.
        board: what is to be done, and how far it is.
        sweeps: those of the board that are worked off.
        stack: how many runs of a sweep to train at once; at least all seeds of a trial, where above 1.
        say: told one line about every finished trial.
    """

    def __init__(
        self,
        lab: Lab,
        board: Board,
        sweeps: Sequence[Sweep],
        *,
        stack: int = 1,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.lab, self.board, self.sweeps, self.stack, self.say = lab, board, sweeps, stack, say

    def work(self) -> None:
        """Work until every sweep is finished; wait for others where they hold what is needed.

        Raises:
            GrowthError: what a sweep needs has not been run, and is not among the sweeps; or as `Lab`.
        """
        for sweep in self.sweeps:
            for need in sweep.needs:
                if need not in self.sweeps and not self.board.is_finished(need):
                    raise GrowthError(
                        f"{sweep.name} needs {need.name}: run that stage, too (--stages {need.stage})"
                    )
        while unfinished := [sweep for sweep in self.sweeps if not self.board.is_finished(sweep)]:
            ready = filter(self.board.is_open, unfinished)
            if not any(self._work_on(sweep) for sweep in ready):
                time.sleep(POLL_SECONDS)

    def _work_on(self, sweep: Sweep) -> bool:
        """Run a trial, or a stack of them; False where none is free."""
        queue, study = self.board.queue(sweep), self.lab.study
        stacked = self.stack > 1 and not sweep.by_seed
        count = max(1, self.stack // sweep.spec(study).seeds) if stacked else 1
        trials: list[optuna.Trial] = []
        while len(trials) < count and (trial := queue.claim()) is not None:
            trials.append(trial)
        if not trials:
            return False
        with queue.working_on(trials):
            if stacked:
                self._run_together(sweep, queue, trials)
            else:
                self._run(sweep, queue, trials[0])
        return True

    def _run(self, sweep: Sweep, queue: Queue, trial: optuna.Trial) -> None:
        """All seeds of a trial, one after another."""
        point, stage = queue.point(trial), sweep.spec(self.lab.study)
        folder = self.lab.out / "runs" / sweep.name / str(trial.number)
        seeds = [int(point["seed"])] if sweep.by_seed else range(stage.seeds)
        began, curves, more = time.perf_counter(), [], {}
        for seed in seeds:
            run, name = self._begin(sweep, point, seed), f"{sweep.name} {point} seed {seed}"
            if sweep.kind == "grown":
                found = self.lab.train_lengths(run, self.lab.study.final_lengths, folder, name)
                curves.append(found[max(found)])
                more = {"lengths": {str(steps): _finite(curve[-1].loss) for steps, curve in found.items()}}
            elif sweep.kind == "base":
                curves.append(self.lab.train(run, self.lab.base_folder(sweep.width, seed), name))
                if not math.isfinite(curves[-1][-1].loss):
                    error = FieldError("base", "lr", f"width {sweep.width} diverged at {point['lr']:g}")
                    raise located(self.lab.study.file, error)
            else:
                # Pruners look at the first seed; the others are not begun where it is given up.
                watch = partial(queue.report, trial) if seed == 0 and not sweep.by_seed else None
                curves.append(self.lab.train(run, folder / str(seed), name, watch=watch))
            if curves[-1][-1].step < self._length(sweep):
                break
        self._tell(sweep, queue, trial, curves, time.perf_counter() - began, **more)
        shutil.rmtree(folder, ignore_errors=True)  # all that counts is in the storage

    def _run_together(self, sweep: Sweep, queue: Queue, trials: Sequence[optuna.Trial]) -> None:
        """All seeds of several trials as one stack."""
        stage, began = sweep.spec(self.lab.study), time.perf_counter()
        members = [(trial, seed) for trial in trials for seed in range(stage.seeds)]
        runs = [self._begin(sweep, queue.point(trial), seed) for trial, seed in members]
        given_up: set[int] = set()

        def watch(index: int, step: int, loss: float) -> bool:
            trial, seed = members[index]
            if seed == 0 and queue.report(trial, step, loss):
                given_up.add(trial.number)
            return trial.number in given_up

        curves = self.lab.train_together(runs, watch)
        seconds = (time.perf_counter() - began) / len(trials)
        for trial in trials:
            mine = [curve for (owner, _), curve in zip(members, curves, strict=True) if owner is trial]
            self._tell(sweep, queue, trial, mine, seconds)

    def _begin(self, sweep: Sweep, point: Point, seed: int) -> Run:
        stage, lr = sweep.spec(self.lab.study), float(point["lr"])
        if sweep.kind in ("grow", "grown"):
            return self.lab.grown(stage, sweep.width, point, seed)
        return self.lab.scratch(stage, sweep.width, lr, seed, after_base=sweep.kind == "fresh")

    def _tell(
        self,
        sweep: Sweep,
        queue: Queue,
        trial: optuna.Trial,
        curves: Sequence[Curve],
        seconds: float,
        **more: Any,
    ) -> None:
        losses = [curve[-1].loss for curve in curves]
        diverged = not all(map(math.isfinite, losses))
        pruned = not diverged and any(curve[-1].step < self._length(sweep) for curve in curves)
        value = None if pruned else math.inf if diverged else fmean(losses)
        steps = sum(curve[-1].step for curve in curves)
        if sweep.kind == "grown" and not diverged:
            steps = self.lab.steps_of_lengths(self.lab.study.final_lengths)
        queue.tell(
            trial,
            value,
            losses=[*map(_finite, losses)],
            curves=[[[point.step, _finite(point.loss)] for point in curve] for curve in curves],
            steps=steps,
            seconds=round(seconds, 1),
            **more,
        )
        words = ", ".join(f"{name} {_short(x)}" for name, x in queue.point(trial).items())
        said = "pruned" if value is None else "diverged" if diverged else f"{value:.4f}"
        self.say(f"{sweep.name}: {words}: {said} ({len(queue.results())} of {queue.total})")

    def _length(self, sweep: Sweep) -> int:
        """Steps of a run that was not cut short."""
        return (
            max(self.lab.study.final_lengths) if sweep.kind == "grown" else sweep.spec(self.lab.study).steps
        )


def _finite(loss: float) -> float | None:
    """For JSON, which has no infinity."""
    return loss if math.isfinite(loss) else None


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
