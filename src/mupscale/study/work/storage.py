"""Where the trials of all sweeps are kept: a journal that many processes write to, or a database."""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, get_storage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from sqlalchemy.exc import DBAPIError

from mupscale.errors import GrowthError


def open_storage(place: str | Path) -> BaseStorage:
    """The storage of a study: a journal file (a path), or whatever URL Optuna takes.

    Raises:
        GrowthError: it cannot be opened.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        if isinstance(place, str) and "://" in place:
            for pause in (0.2, 0.4, 0.8, 1.6):
                with suppress(DBAPIError):  # of several that find an empty database, one can make the tables
                    return get_storage(place)
                time.sleep(pause)
            return get_storage(place)
        # Absolute: the lock is a link to it, which Optuna follows to see whether the lock is stale.
        path = Path(place).absolute()
        path.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(path), MendingLock(path)))
    except Exception as error:  # each database driver has errors of its own
        shown = re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", str(place))
        said = " ".join(f"{error} {error.__cause__ or ''}".split())
        raise GrowthError(
            f"storage {shown}: cannot be opened ({said}); give an Optuna URL or a file"
        ) from None


def in_memory(storage: BaseStorage | None) -> BaseStorage:
    """A copy, or an empty one, to look at: opening a study can change it."""
    copy = InMemoryStorage()
    for name in optuna.get_all_study_names(storage) if storage is not None else ():
        optuna.copy_study(from_study_name=name, from_storage=storage, to_storage=copy)
    return copy


class MendingLock(JournalFileSymlinkLock):  # type: ignore[misc]
    """The lock that every writer of a journal takes; it first cuts off what a killed one left of a line."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path

    def acquire(self) -> bool:
        super().acquire()
        with self.path.open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            if size and file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        return True
