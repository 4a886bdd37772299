"""What a run that was stopped had written of a directory, so that the same run goes on from there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from torch import Tensor

from mupscale.checkpoint.outgoing import Outgoing
from mupscale.checkpoint.stored import raw
from mupscale.errors import GrowthError

JOURNAL = ".journal"


class Journal:
    """The tensors that have been written into the files of a directory, each with the SHA-256 of its bytes.

    One line of JSON each, after a first one that says what is being made. That a line is there does not mean
    that the bytes are: after a power cut they may be lost. So they are read, and hashed, before they count.

    Args:
        folder: the directory that is being written; of this run alone.
        making: everything that the bytes depend on.

    Attributes:
        sums: the SHA-256 of all tensors that are in place, by name.

    Raises:
        GrowthError: something else has been begun there.
    """

    def __init__(self, folder: Path, making: Mapping[str, str]) -> None:
        self._path = folder / JOURNAL
        lines = _lines(folder)
        if lines and lines[0] != dict(making):
            theirs = {key: lines[0].get(key) for key, value in making.items() if lines[0].get(key) != value}
            said = [key if key in ("source", "plan") else f"{key} {value}" for key, value in theirs.items()]
            raise GrowthError(
                f"{folder}: a run with other settings ({', '.join(said)}) was stopped here; "
                "give its command again to finish it, or remove the folder"
            )
        self.sums: dict[str, str] = {}
        self._before: dict[str, str] = {line["name"]: line["sha256"] for line in lines[1:]}
        self._file = self._path.open("ab", buffering=0)
        # Less what is half there of a line.
        self._file.truncate(self._path.read_bytes().rfind(b"\n") + 1 if lines else 0)
        if not lines:
            self._write(dict(making))
        self._pool = ThreadPoolExecutor(max_workers=1)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()
        self._file.close()

    def has_begun(self, name: str) -> bool:
        """Whether a run before this one has written a tensor, as far as the journal knows."""
        return name in self._before

    def is_done(self, name: str, found: Tensor) -> bool:
        """Whether what is found in the place of a tensor is what a run before this one has written there."""
        if name not in self._before or sha256(found) != self._before[name]:
            return False
        self.sums[name] = self._before[name]
        return True

    def put(self, name: str, blocks: Iterable[Tensor], file: Outgoing) -> int:
        """Write a tensor, block by block, to where a file stands, and note that it is there.

        It is hashed at the same time. Returns how many bytes it has.
        """
        digest, nbytes = hashlib.sha256(), 0
        hashing: Future[None] | None = None
        for block in blocks:
            data = raw(block)
            nbytes += len(data)
            if hashing is not None:
                hashing.result()
            hashing = self._pool.submit(digest.update, data)
            file.write(data)
        if hashing is not None:
            hashing.result()
        self.sums[name] = digest.hexdigest()
        self._write({"name": name, "sha256": self.sums[name]})
        return nbytes

    def remove(self) -> None:
        """Take the journal away: the directory is whole."""
        self._path.unlink()

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


def sha256(tensor: Tensor) -> str:
    """Of the bytes of a tensor."""
    return hashlib.sha256(raw(tensor)).hexdigest()
