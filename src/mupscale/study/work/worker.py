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

import optuna

from mupscale.errors import GrowthError
from mupscale.study.runs.lab import Lab, Outcome
from mupscale.study.spec.space import show_point
from mupscale.study.spec.sweeps import Sweep
from mupscale.study.work.board import Board
from mupscale.study.work.queue import Queue

POLL_SECONDS = 1.0


class Worker:
    """Works off the sweeps of a board, beside any number of others.

    Args:
        lab: where runs are made.
        board: what is to be done, and how far it is.
        stack: how many runs of a sweep to train at once; at least all seeds of a trial, where above 1.
        say: told one line about every finished trial.
    """

    def __init__(
        self, lab: Lab, board: Board, *, stack: int = 1, say: Callable[[str], None] = lambda line: None
    ) -> None:
        self.lab, self.board, self.stack, self.say = lab, board, stack, say

    def work(self) -> None:
        """Work until every sweep is finished; wait for others where they hold what is needed.

        Raises:
            GrowthError: what a sweep needs has not been run, and is not among those to be worked off; or as
                `Lab`.
        """
        board = self.board
        for sweep in board.selected:
            for need in board.needs(sweep):
                if need not in board.selected and not board.is_finished(need):
                    raise GrowthError(f"{sweep.name} needs {need.name}, which is not finished; run that, too")
        while unfinished := [sweep for sweep in board.selected if not board.is_finished(sweep)]:
            if not any(self._work_on(sweep) for sweep in filter(board.is_open, unfinished)):
                time.sleep(POLL_SECONDS)

    def _work_on(self, sweep: Sweep) -> bool:
        """Run a trial, or a stack of them; False where none is free."""
        queue = self.board.queue(sweep)
        if queue.finished and (more := self.board.beyond(sweep)):
            queue.widen(more)
        stacked = self.stack > 1 and not self.lab.study.trains_alone(sweep)
        count = max(1, self.stack // len(sweep.seeds)) if stacked else 1
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
        point, kept = queue.point(trial), self.lab.study.is_kept(sweep)
        seeds = [int(point["seed"])] if "seed" in point else sweep.seeds
        began, outcomes, folders = time.perf_counter(), [], []
        for seed in seeds:
            folders.append(folder := self.board.folder(sweep, point, seed))
            if not kept:  # another point of a sampler's may bear the same name
                folders[-1] = folder = folder.with_name(f"{folder.name}-{trial.number}")
            name = ", ".join(filter(None, [sweep.name, show_point(self._varied(queue, trial))]))
            if len(sweep.seeds) > 1 and "seed" not in point:
                name += f", seed {seed}"
            # Pruners look at the first seed; the others are not begun where it is given up.
            watch = partial(queue.report, trial) if seed == sweep.seeds[0] else None
            outcomes.append(
                self.lab.train(sweep, self.lab.begin(sweep, point, seed), folder, name, watch=watch)
            )
            if outcomes[-1].curve[-1].step < self._length(sweep):
                break
        self._tell(sweep, queue, trial, seeds, outcomes, time.perf_counter() - began)
        for folder in folders:  # all that counts is in the storage, but for models that others begin from
            if not kept:
                shutil.rmtree(folder, ignore_errors=True)
            for part in (folder / "checkpoints", *folder.glob("length*")):
                shutil.rmtree(part, ignore_errors=True)

    def _run_together(self, sweep: Sweep, queue: Queue, trials: Sequence[optuna.Trial]) -> None:
        """All seeds of several trials as one stack."""
        began = time.perf_counter()
        members = [(trial, seed) for trial in trials for seed in sweep.seeds]
        runs = [self.lab.begin(sweep, queue.point(trial), seed) for trial, seed in members]
        given_up: set[int] = set()

        def watch(index: int, step: int, loss: float) -> bool:
            trial, seed = members[index]
            if seed == sweep.seeds[0] and queue.report(trial, step, loss):
                given_up.add(trial.number)
            return trial.number in given_up

        outcomes = self.lab.train_together(runs, watch)
        seconds = (time.perf_counter() - began) / len(trials)
        for trial in trials:
            mine = [out for (owner, _), out in zip(members, outcomes, strict=True) if owner is trial]
            self._tell(sweep, queue, trial, sweep.seeds, mine, seconds)

    def _tell(
        self,
        sweep: Sweep,
        queue: Queue,
        trial: optuna.Trial,
        seeds: Sequence[int],
        outcomes: Sequence[Outcome],
        seconds: float,
    ) -> None:
        losses = [out.loss for out in outcomes]
        diverged = not all(map(math.isfinite, losses))
        pruned = not diverged and any(out.curve[-1].step < self._length(sweep) for out in outcomes)
        value = None if pruned else math.inf if diverged else fmean(losses)
        queue.tell(
            trial,
            value,
            seeds=[*seeds[: len(outcomes)]],
            losses=[*map(_finite, losses)],
            curves=[[[point.step, _finite(point.loss)] for point in out.curve] for out in outcomes],
            ends=[[[steps, _finite(loss)] for steps, loss in out.ends.items()] for out in outcomes],
            steps=sum(out.steps for out in outcomes),
            seconds=round(seconds, 1),
            **({"norms": [out.norms for out in outcomes]} if sweep.record else {}),
            **({"equality": outcomes[0].equality} if sweep.verify else {}),
        )
        said = "pruned" if value is None else "diverged" if diverged else f"{value:.4f}"
        words = show_point(self._varied(queue, trial)) or "done"
        self.say(f"{sweep.name}: {words}: {said} ({len(queue.results())} of {queue.total})")

    @staticmethod
    def _varied(queue: Queue, trial: optuna.Trial) -> dict[str, float | int | str]:
        """What tells a trial from others of its sweep."""
        varied = [knob for knob, values in queue.space.items() if len(getattr(values, "values", "ab")) > 1]
        return {knob: value for knob, value in queue.point(trial).items() if knob in varied}

    def _length(self, sweep: Sweep) -> int:
        """Steps of a curve that was not cut short."""
        return self.lab.budget.steps(sweep)


def _finite(loss: float) -> float | None:
    """For JSON, which has no infinity."""
    return loss if math.isfinite(loss) else None
