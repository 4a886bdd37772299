"""What goes to the terminal, and what does not."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from tyro.conf import arg

from mupscale.errors import GrowthError, Terminated
from mupscale.study.spec.space import json_safe

Json = Annotated[bool, arg(help="print one JSON object")]


def unset(**said: Any) -> object:
    """As tyro's `arg`, of an option that has no value unless one is given: its help says what holds then."""
    return arg(**said, help_behavior_hint="")


def quiet_libraries() -> None:
    """Import transformers, and say that what it has to tell of itself is not the user's concern."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def print_text(text: str) -> None:
    Console(highlight=False).print(text, soft_wrap=True, markup=False)


def print_table(make: Callable[[bool], Table]) -> None:
    """Print ``make(axes)``; without the wide column of axes on a terminal that is narrower than the table."""
    from mupscale.theory.tables import FULL_WIDTH

    console = Console(highlight=False)
    roomy = not console.is_terminal or console.width >= FULL_WIDTH
    Console(highlight=False, width=max(console.width, FULL_WIDTH) if roomy else None).print(make(roomy))


def print_json(data: Mapping[str, Any]) -> None:
    """Print one JSON object, in which numbers that JSON does not know, NaN and infinities, are null."""
    print(json.dumps(json_safe(data), indent=1, default=str, allow_nan=False))


def tell(as_json: bool, result: Mapping[str, Any], words: str) -> None:
    """Print a result on standard output: one JSON object, or words."""
    if as_json:
        print_json(result)
    else:
        print(words)


def say(words: str) -> None:
    """Print words for people beside it, on standard error."""
    print(words, file=sys.stderr)


def on_terminal(bars: Progress) -> Progress:
    """A display of progress, which shows nothing where nobody looks: a log is to hold words."""
    bars.disable = not bars.console.is_terminal
    return bars


@contextmanager
def bytes_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar of bytes on a terminal's standard error; yields what is to be told (bytes done, bytes in all)."""
    columns = TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    with on_terminal(Progress(*columns, console=Console(stderr=True), transient=True)) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def check_folder_given(path: Path) -> None:
    """See that no file is given where a checkpoint's folder is meant.

    Raises:
        GrowthError: one is.
    """
    if path.is_file():
        raise GrowthError(f"{path}: is a file; give its folder")


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end what runs here as ^C does: with what it has to say, and with what it cleans up."""

    def end(number: int, frame: object) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
