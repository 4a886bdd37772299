"""A whole study: workers are started and watched, their results collected.

Knows processes and the display; what is worked off is `worker`'s.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress, TaskID

from mupscale.errors import GrowthError
from mupscale.models.surroundings import torch_threads
from mupscale.study.files import locating, read_study
from mupscale.study.runs.budget import Budget
from mupscale.study.runs.lab import Lab
from mupscale.study.runs.progress import quiet
from mupscale.study.runs.workload import load_workload
from mupscale.study.work.board import Board
from mupscale.study.work.results import collect
from mupscale.study.work.storage import in_memory, open_storage
from mupscale.study.work.timing import seconds_of_runs
from mupscale.study.work.worker import Worker

LOOK_SECONDS = 5.0  # a look reads the storage, which takes a while once there are many trials


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is asked for; plain data, that worker processes start from.

    Attributes:
        file: the study file.
        out: folder for models, results and the storage.
        storage: an Optuna URL; None keeps a journal file in ``out``.
        sweeps: names of those to work off; none for all.
        check_transfer: of a file in the four tables of `mupscale tune`: the same grid at several widths.
        stack: runs of a sweep to train at once in one process; None: 16 on a GPU, 4 elsewhere.
        threads: CPU threads of a process, where there is no GPU.
    """

    file: Path
    out: Path
    storage: str | None = None
    sweeps: tuple[str, ...] = ()
    check_transfer: bool = False
    stack: int | None = None
    threads: int = 1

    def budget(self) -> Budget:
        """The study with its models and data.

        Raises:
            GrowthError: something about the file or the data is not as it should be.
        """
        study = read_study(self.file, check_transfer=self.check_transfer)
        if self.out.is_file():
            raise GrowthError(f"{self.out}: is a file; give a folder for the results (--out)")
        with locating(self.file):
            budget = Budget(study, load_workload(study, self.out / "data"))
            budget.check()
            return budget

    @property
    def torch_threads(self) -> int | None:
        """Of a worker; on a machine with a GPU as many as torch takes."""
        return None if torch.cuda.is_available() else self.threads

    @property
    def journal(self) -> Path:
        """Where the trials are kept, unless in a storage of their own."""
        return self.out / "trials.journal"

    def open(self) -> Board:
        """The study with its storage.

        Raises:
            GrowthError: as `budget`, or the storage cannot be opened.
        """
        return Board(self.budget(), open_storage(self.storage or self.journal), self.out, self.sweeps)


def run(job: Job, *, jobs: int = 1, progress: Progress | None = None) -> dict[str, Any]:
    """Work off a study, beside any workers that run elsewhere; return what was found.

    Given again after an interruption, it goes on with what is left.

    Args:
        jobs: how many processes; one is this one, which also shows the training of every run.
        progress: a display, from `make_progress`.

    Raises:
        GrowthError: as `Job.open`, or what a worker met.
    """
    with locating(job.file):
        board = job.open()
        display = Display(board, progress)
        if jobs == 1:
            _work(job, board, display.look, progress)
        elif not all(map(board.is_finished, board.selected)):
            _work_side_by_side(job, board, jobs, display.look)
        display.look()
        return collect(board)


def work(job: Job, say: Callable[[str], None]) -> None:
    """Be one worker, until nothing is left to do."""
    with locating(job.file):
        _work(job, job.open(), say)


def _work(job: Job, board: Board, say: Callable[..., None], progress: Progress | None = None) -> None:
    stack = job.stack or (16 if torch.cuda.is_available() else 4)
    with quiet(), torch_threads(job.torch_threads):
        Worker(Lab(board.budget, board.trained, progress), board, stack=stack, say=say).work()


def _work_side_by_side(job: Job, board: Board, jobs: int, look: Callable[[], None]) -> None:
    spawn = multiprocessing.get_context("spawn")
    errors = spawn.SimpleQueue()
    workers = [spawn.Process(target=_serve, args=(job, errors.put), daemon=True) for _ in range(jobs)]
    for worker in workers:
        worker.start()
    try:
        _watch(workers, look)
        if not errors.empty():
            raise GrowthError(errors.get())
        if not all(map(board.is_finished, board.selected)):
            raise GrowthError(
                "every worker has died (the system may have run out of memory); give the command again with "
                "fewer --jobs to go on"
            )
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


def _serve(job: Job, fail: Callable[[str], None]) -> None:
    """A worker process; it ends with the one that started it."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        work(job, lambda line: None)
    except GrowthError as error:
        fail(str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # a defect, shown whole before the worker ends
        traceback.print_exc()
        fail(f"a worker failed, see above ({error})")
        sys.exit(2)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _watch(workers: Sequence[BaseProcess], look: Callable[[], None]) -> None:
    """Look at how far the sweeps are until the workers end; the first that fails ends it."""
    while True:
        running = any(worker.is_alive() for worker in workers)
        look()
        # A worker that was killed (exit code below 0) leaves its trial to the others.
        if not running or any((worker.exitcode or 0) > 0 for worker in workers):
            return
        wait([worker.sentinel for worker in workers if worker.is_alive()], timeout=LOOK_SECONDS)


class Display:
    """How far the sweeps are: a line of the display each; into a file, a line of text for every change."""

    def __init__(self, board: Board, progress: Progress | None) -> None:
        self.board, self.progress = board, progress
        self.tasks: dict[str, TaskID] = {}
        self.shown: dict[str, int] = {}

    def look(self, said: str = "") -> None:
        """Show what has changed; ``said`` is what a worker says of a finished trial, and needs no more."""
        progress, board = self.progress, self.board
        if progress is None:
            return
        for sweep in board.selected:
            if not board.is_open(sweep):
                continue
            queue = board.queue(sweep)
            results = queue.results()
            if sweep.name not in self.tasks:
                self.tasks[sweep.name] = progress.add_task(sweep.name, total=queue.total, note="")
            values = [trial.value for trial in results if trial.value is not None]
            note = f"best {min(values):.4f}" if values else ""
            progress.update(self.tasks[sweep.name], completed=len(results), note=note)
            if not progress.console.is_terminal and self.shown.get(sweep.name) != len(results):
                line = f"{sweep.name}: {len(results)} of {queue.total} trials {note}"
                progress.console.print(line.rstrip(), highlight=False, soft_wrap=True)
                self.shown[sweep.name] = len(results)


def estimate(job: Job, *, jobs: int = 1, progress: Progress | None = None) -> list[dict[str, Any]]:
    """What would be run, a row a sweep: trials, runs, steps of each, FLOPs of all, and seconds, as measured.

    Values that are yet to be taken over from other sweeps are counted as if they were among those listed.
    ``done`` are those of the trials that the study's own journal holds; runs and all else count them in.

    Raises:
        GrowthError: as `Job.open`; nothing is written but encoded text.
    """
    progress = progress or Progress(disable=True)
    task = progress.add_task("reading", total=None, note="")
    known = open_storage(job.journal) if job.storage is None and job.journal.exists() else None
    board = Board(job.budget(), in_memory(known), job.out, job.sweeps)  # a look must not change the study
    budget, study, chosen = board.budget, board.study, board.selected
    progress.update(task, description="measuring a few steps", total=len(chosen))
    with torch_threads(job.torch_threads):
        seconds = seconds_of_runs(budget, chosen, measured=lambda: progress.advance(task))
    rows = []
    for sweep in chosen:
        runs, steps = sweep.points * len(sweep.seeds), budget.trained_steps(sweep)
        rows.append(
            {
                "sweep": sweep.name,
                "width": budget.width(sweep),
                "trials": study.trials(sweep),
                "done": len(board.queue(sweep).results()) if known and board.is_open(sweep) else 0,
                "runs": runs,
                "steps": steps,
                "flops": budget.step_flops(sweep) * steps * runs,
                "seconds": seconds[sweep.name] * runs / jobs,
            }
        )
    return rows
