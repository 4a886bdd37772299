"""A whole study: worker processes are started and watched, their results collected.

Knows processes and the display; what is worked off is `worker`'s.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress, TaskID

from mupscale.errors import GrowthError
from mupscale.study.runs.progress import quiet
from mupscale.study.tune.procedure import Board, Sweep, procedure, selected
from mupscale.study.sweeping.queue import open_storage
from mupscale.study.tune.results import collect
from mupscale.study.tune.runs import Lab
from mupscale.study.tune.study_file import read_study
from mupscale.study.tune.worker import Worker
from mupscale.study.tune.workload import load_workload

LOOK_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is asked for; plain data, that worker processes start from.

    Attributes:
        file: the study file.
        out: folder for models, results and the storage.
        storage: an Optuna URL; None keeps a journal file in ``out``.
        stages: of `procedure.STAGES`; none for all.
        check_transfer: the same grid at several widths, instead of the procedure.
        stack: runs of a sweep to train at once in one process; None: 16 on a GPU, 4 elsewhere.
        threads: CPU threads of a process.
    """

    file: Path
    out: Path
    storage: str | None = None
    stages: tuple[str, ...] = ()
    check_transfer: bool = False
    stack: int | None = None
    threads: int = 1

    @property
    def place(self) -> str | Path:
        """Where the trials are kept."""
        return self.storage or self.out / "trials.journal"

    def open(self) -> tuple[Lab, Board]:
        """The study with its data and its storage.

        Raises:
            GrowthError: something about the file, the data or the storage is not as it should be.
        """
        study = read_study(self.file)
        if self.out.is_file():
            raise GrowthError(f"{self.out}: is a file; give a folder for the results (--out)")
        lab = Lab(study, load_workload(study, self.out / "data"), self.out)
        sweeps = procedure(study, check_transfer=self.check_transfer)
        return lab, Board(study, lab.workload.data.about, open_storage(self.place), sweeps)


def tune(job: Job, *, jobs: int = 1, progress: Progress | None = None) -> dict[str, Any]:
    """Work off a study with some worker processes, beside any that run elsewhere; return what was found.

    Given again after an interruption, it goes on with what is left.

    Args:
        jobs: how many processes.
        progress: a display, from `make_progress`.

    Raises:
        GrowthError: as `Job.open`, or what a worker met.
    """
    lab, board = job.open()
    sweeps = selected(board.sweeps, job.stages)
    spawn = multiprocessing.get_context("spawn")
    errors = spawn.SimpleQueue()
    workers = [spawn.Process(target=_serve, args=(job, errors.put), daemon=True) for _ in range(jobs)]
    for worker in workers:
        worker.start()
    try:
        _watch(board, sweeps, workers, progress)
        if not errors.empty():
            raise GrowthError(errors.get())
        if not all(map(board.is_finished, sweeps)):
            raise GrowthError(
                "every worker has died (the system may have run out of memory); give the command again with "
                "fewer --jobs to go on"
            )
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()
    return summarize(lab, board)


def work(job: Job, say: Callable[[str], None]) -> None:
    """Be one worker, until nothing is left to do."""
    if not torch.cuda.is_available():
        torch.set_num_threads(job.threads)
    lab, board = job.open()
    stack = job.stack or (16 if torch.cuda.is_available() else 4)
    with quiet():
        Worker(lab, board, selected(board.sweeps, job.stages), stack=stack, say=say).work()


def summarize(lab: Lab, board: Board) -> dict[str, Any]:
    """The results so far."""
    flops = {s.name: lab.step_flops(s.spec(lab.study), _trained_width(lab, s)) for s in board.sweeps}
    widths = {width for s in board.sweeps for width in (s.width, _trained_width(lab, s))}
    parameters = {width: lab.workload.parameters(width) for width in sorted(widths)}
    return collect(board, flops=flops, parameters=parameters, passes=lab.passes_of_base())


def dry(job: Job) -> list[dict[str, Any]]:
    """What would be run, a row a sweep: trials, runs, steps of each and floating point operations of all.

    Raises:
        GrowthError: as `Job.open`; nothing is written but encoded text.
    """
    study = read_study(job.file)
    lab = Lab(study, load_workload(study, job.out / "data"), job.out)
    rows = []
    for sweep in selected(procedure(study, check_transfer=job.check_transfer), job.stages):
        stage, width = sweep.spec(lab.study), _trained_width(lab, sweep)
        # In the last stage the transferred rate is taken to be among those listed.
        trials = stage.points * stage.seeds if sweep.by_seed else stage.points
        runs = trials if sweep.by_seed else trials * stage.seeds
        steps = lab.steps_of_lengths(lab.study.final_lengths) if sweep.kind == "grown" else stage.steps
        flops = lab.step_flops(stage, width) * steps * runs
        rows.append(
            {
                "sweep": sweep.name,
                "width": width,
                "trials": trials,
                "runs": runs,
                "steps": steps,
                "flops": flops,
            }
        )
    return rows


def _trained_width(lab: Lab, sweep: Sweep) -> int:
    """How wide the models are that the sweep trains."""
    return sweep.width * (lab.study.widths.growth if sweep.kind in ("grow", "grown") else 1)


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


def _watch(
    board: Board, sweeps: Sequence[Sweep], workers: Sequence[BaseProcess], progress: Progress | None
) -> None:
    """Show how far the sweeps are until the workers end; the first that fails ends it."""
    tasks: dict[str, TaskID] = {}
    shown: dict[str, int] = {}
    while True:
        running = any(worker.is_alive() for worker in workers)
        for sweep in sweeps if progress is not None else ():
            assert progress is not None
            if not board.is_open(sweep):
                continue
            queue = board.queue(sweep)
            results = queue.results()
            if sweep.name not in tasks:
                tasks[sweep.name] = progress.add_task(sweep.name, total=queue.total, note="")
            values = [trial.value for trial in results if trial.value is not None]
            note = f"best {min(values):.4f}" if values else ""
            progress.update(tasks[sweep.name], completed=len(results), note=note)
            if not progress.console.is_terminal and shown.get(sweep.name) != len(results):
                line = f"{sweep.name}: {len(results)} of {queue.total} trials {note}"
                progress.console.print(line.rstrip(), highlight=False, soft_wrap=True)
                shown[sweep.name] = len(results)
        # A worker that was killed (exit code below 0) leaves its trial to the others.
        if not running or any((worker.exitcode or 0) > 0 for worker in workers):
            return
        time.sleep(LOOK_SECONDS)
