"""Many independent runs, side by side in processes of their own. Knows nothing of what they do."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

import torch
from rich.progress import Progress

from mupscale.errors import GrowthError

Trial = TypeVar("Trial")
Result = TypeVar("Result")


def run_trials(
    run: Callable[[Trial], Result],
    trials: Sequence[Trial],
    *,
    jobs: int = 1,
    title: str = "trials",
    describe: Callable[[Trial, Result], str] = lambda trial, result: str(trial),
    progress: Progress | None = None,
) -> dict[Trial, Result]:
    """Run every trial and return the results by trial, in the order given.

    Args:
        run: does one; importable by name (or a `functools.partial` of such) where ``jobs`` is above 1.
        trials: hashable; what takes longest should come first.
        jobs: how many at a time, each in its own process on one CPU thread; 1 stays in this process.
        title: what to call them while they show progress.
        describe: a note on a finished one.
        progress: a display to share, from `make_progress`.

    Example:
        >>> run_trials(lambda n: n * n, [3, 1, 2])
        {3: 9, 1: 1, 2: 4}
    """
    if jobs < 1:
        raise GrowthError(f"jobs is {jobs}, expected at least 1")
    task = progress.add_task(title, total=len(trials), note="") if progress is not None else None
    results: dict[Trial, Result] = {}

    def done(trial: Trial, result: Result) -> None:
        results[trial] = result
        if progress is not None and task is not None:
            progress.update(task, advance=1, note=(note := describe(trial, result)))
            if not progress.console.is_terminal:
                said = f"{title}: {len(results)} of {len(trials)}, {note}"
                progress.console.print(said, highlight=False, soft_wrap=True)

    if jobs == 1:
        for trial in trials:
            done(trial, run(trial))
    else:
        # Forked processes would inherit locks that torch's threads hold.
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, spawn, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            futures = {pool.submit(run, trial): trial for trial in trials}
            for future in as_completed(futures):
                done(futures[future], future.result())
    return {trial: results[trial] for trial in trials}
