"""Progress of long work, on standard error, so that standard output stays free for results.

Knows rich and the Trainer's callbacks.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR, getLogger
from typing import Any

from rich import progress as bars
from rich.console import Console
from rich.progress import Progress
from transformers import TrainerCallback, TrainerState
from transformers.utils import logging


def make_progress() -> Progress:
    """A progress display that many runs share, one line each.

    Example:
        >>> with make_progress() as progress:
        ...     task = progress.add_task("reading", total=2, note="")
        ...     progress.update(task, advance=2)
    """
    return _Display(
        bars.TextColumn("{task.description}"),
        bars.BarColumn(bar_width=24),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
        bars.TimeRemainingColumn(compact=True),
        bars.TextColumn("[dim]{task.fields[note]}"),
        console=Console(stderr=True),
    )


class _Display(Progress):
    """A display that ends without a line where nothing was shown: an error is to be one line."""

    def stop(self) -> None:
        if self.tasks:
            super().stop()
        else:
            self.live.transient = True
            self.live.stop()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep other libraries' bars and notes (a line a saved file, a line a retry) out; errors still show."""
    verbosity, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    hub = getLogger("huggingface_hub")
    hub_level = hub.level
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    hub.setLevel(ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Retry downloading")
            yield
    finally:
        logging.set_verbosity(verbosity)
        hub.setLevel(hub_level)
        if shown:
            logging.enable_progress_bar()


class ShowProgress(TrainerCallback):  # type: ignore[misc]
    """One line of a shared display for one run; into a file, one line of text per evaluation."""

    task: bars.TaskID

    def __init__(self, progress: Progress, name: str) -> None:
        self.progress, self.name = progress, name

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        total, done = state.max_steps, state.global_step
        self.task = self.progress.add_task(self.name, total=total, completed=done, note="")

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.progress.update(self.task, completed=state.global_step)

    def on_evaluate(
        self, args: Any, state: TrainerState, control: Any, metrics: dict[str, float], **kwargs: Any
    ) -> None:
        note = f"held-out loss {metrics['eval_loss']:.3f}"
        self.progress.update(self.task, note=note)
        if not self.progress.console.is_terminal:
            self.progress.console.print(f"{self.name}: step {state.global_step} of {state.max_steps}, {note}")
