"""What a run that was stopped had written of a directory, so that the same run goes on from there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from mupscale.errors import GrowthError

JOURNAL = ".journal"


class Journal:
    """The tensors that have been written into the files of a directory, each with the SHA-256 of its bytes.

    One line of JSON each, after a first one that says what is being made. That a line is there does not mean
    that the bytes are: after a power cut they may be lost. So they are read, and hashed, before they count.

    Args:
        folder: the directory that is being written; of this run alone.
        making: everything that the bytes depend on.

    Raises:
        GrowthError: something else has been begun there.
    """

    def __init__(self, folder: Path, making: Mapping[str, str]) -> None:
        self._path = folder / JOURNAL
        lines = _lines(folder)
        if lines and lines[0] != dict(making):
            theirs = {key: lines[0].get(key) for key, value in making.items() if lines[0].get(key) != value}
            said = [key if key == "source" else f"{key} {value}" for key, value in theirs.items()]
            raise GrowthError(
                f"{folder}: another run was stopped here, of other {', '.join(said)}; give its command again "
                "to go on with it, or remove the folder"
            )
        self._sums: dict[str, str] = {}
        self._before: dict[str, str] = {line["name"]: line["sha256"] for line in lines[1:]}
        self._file = self._path.open("ab" if lines else "wb", buffering=0)
        if not lines:
            self._write(dict(making))
        self._hashing: Future[None] | None = None
        self._pool = ThreadPoolExecutor(max_workers=1)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()
        self._file.close()
        if error is None:
            self._wait()

    def has_begun(self, name: str) -> bool:
        """Whether a run before this one has written a tensor, as far as the journal knows."""
        return name in self._before

    def is_done(self, name: str, found: Tensor) -> bool:
        """Whether what is found in the place of a tensor is what a run before this one has written there."""
        if name not in self._before or sha256(found) != self._before[name]:
            return False
        self._sums[name] = self._before[name]
        return True

    def note(self, name: str, written: Tensor) -> None:
        """Say that a tensor has been written; it is hashed beside what comes next, one at a time."""
        self._wait()
        self._hashing = self._pool.submit(self._note, name, written)

    def sums(self) -> dict[str, str]:
        """The SHA-256 of all tensors that are in place, by name."""
        self._wait()
        return dict(self._sums)

    def remove(self) -> None:
        """Take the journal away: the directory is whole."""
        self._path.unlink()

    def _note(self, name: str, written: Tensor) -> None:
        self._sums[name] = sha256(written)
        self._write({"name": name, "sha256": self._sums[name]})

    def _wait(self) -> None:
        if self._hashing is not None:
            self._hashing.result()
            self._hashing = None

    def _write(self, line: dict[str, str]) -> None:
        self._file.write(json.dumps(line).encode() + b"\n")


def begun(folder: Path) -> bool:
    """Whether a run has left something in a directory that it can go on from."""
    return len(_lines(folder)) > 1


def _lines(folder: Path) -> list[dict[str, str]]:
    """What a run before this one has noted; the last line may be half there, and after a power cut others."""
    try:
        return [json.loads(line) for line in (folder / JOURNAL).read_bytes().split(b"\n")[:-1]]
    except (OSError, ValueError):
        return []


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, as they stand in memory; of one that lies there in one piece, without a copy."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def sha256(tensor: Tensor) -> str:
    """Of the bytes of a tensor."""
    return hashlib.sha256(raw(tensor)).hexdigest()
