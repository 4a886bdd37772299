"""A file as it is written: straight to the disk, past the memory that the system keeps of files."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np

Bytes: TypeAlias = "np.ndarray[Any, np.dtype[np.uint8]]"

CHUNK = 1 << 22  # bytes that are written at once
BLOCK = 1 << 12  # what a disk writes as one, and a multiple of what any asks for


class Outgoing:
    """A file that is there already, to be written at one place after the other.

    The system copies what is written into memory that is free, which for a large file is all of it, page by
    new page; that costs more than the disk does. So whole blocks go to the disk as they are, from one of two
    buffers while the other one is filled. What begins or ends within a block, or where the file system does
    not know of this, is written as ever. It is there for certain once the file has been synced.

    Raises:
        OSError: the disk is full, or gone. At a later write, or at the end.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR)
        try:
            self._direct = os.open(path, os.O_WRONLY | getattr(os, "O_DIRECT", 0))
        except OSError:
            self._direct = self._file
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._writing: Future[None] | None = None
        # Arrays, as copying into these lets other threads go on.
        self._buffers = [np.frombuffer(mmap.mmap(-1, CHUNK), np.uint8) for _ in range(2)]
        # The first buffer holds what stands from `_base`, which is a multiple of a block, to `_end`.
        self._base = self._end = 0

    def __enter__(self) -> Outgoing:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._flush()  # after an error, too: the same run goes on from it
        except OSError:
            if error is None:
                raise
        finally:
            self._pool.shutdown()
            for handle in {self._file, self._direct}:
                os.close(handle)

    def seek(self, place: int) -> None:
        """Go on from a byte of it."""
        if not 0 <= place - self._end < BLOCK:
            self._flush()
            self._base = self._end = place // BLOCK * BLOCK
        if place > self._end:  # a few bytes that stay as they are
            self.write(os.pread(self._file, place - self._end, self._end).ljust(place - self._end, b"\0"))

    def write(self, data: memoryview | bytes) -> None:
        """Put all of it where the file stands."""
        data = memoryview(data)
        while data:
            begin = self._end - self._base
            part = data[: CHUNK - begin]
            np.copyto(self._buffers[0][begin : begin + len(part)], np.frombuffer(part, np.uint8))
            self._end += len(part)
            data = data[len(part) :]
            if self._end - self._base == CHUNK:
                self._send(self._put_blocks)

    def _flush(self) -> None:
        """Write what a buffer holds, and wait for it."""
        self._send(self._put)
        self._wait()

    def _send(self, put: Callable[[Bytes, int, int], None]) -> None:
        self._wait()
        self._writing = self._pool.submit(put, self._buffers[0], self._base, self._end - self._base)
        self._buffers.reverse()
        self._base = self._end

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.result()

    def _put(self, buffer: Bytes, place: int, nbytes: int) -> None:
        whole = nbytes // BLOCK * BLOCK
        self._put_blocks(buffer, place, whole)
        _put(self._file, buffer.data[whole:nbytes], place + whole)

    def _put_blocks(self, buffer: Bytes, place: int, nbytes: int) -> None:
        try:
            _put(self._direct, buffer.data[:nbytes], place)
        except OSError as error:
            if error.errno != errno.EINVAL or self._direct == self._file:
                raise
            os.close(self._direct)  # the file system takes no such writes after all
            self._direct = self._file
            _put(self._file, buffer.data[:nbytes], place)


def _put(handle: int, data: memoryview, place: int) -> None:
    while data:  # one write may take less than all
        count = os.pwrite(handle, data, place)
        data, place = data[count:], place + count
