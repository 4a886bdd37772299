"""A file that is written straight to the disk holds what it was told to, wherever one writes to it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mupscale.checkpoint import outgoing
from mupscale.checkpoint.outgoing import BLOCK, CHUNK, Outgoing

PLACES = st.one_of(st.integers(0, 3 * BLOCK), st.integers(0, 3 * CHUNK))
WRITES = st.lists(
    st.tuples(PLACES, st.one_of(st.integers(0, 3 * BLOCK), st.integers(0, 2 * CHUNK))), max_size=6
)


def write(path: Path, writes: list[tuple[int, int]]) -> bytes:
    """Write noise at some places of a file that is there; returns what it ought to hold."""
    held = bytearray(path.read_bytes())
    with Outgoing(path) as file:
        for place, nbytes in writes:
            data = os.urandom(nbytes)
            held.extend(bytes(max(0, place + nbytes - len(held)) if nbytes else 0))
            held[place : place + nbytes] = data
            file.seek(place)
            for begin in range(0, nbytes, CHUNK // 3):
                file.write(data[begin : begin + CHUNK // 3])
    return bytes(held)


@given(writes=WRITES, before=st.integers(0, CHUNK))
def test_it_holds_what_was_written_and_what_was_there(
    tmp_path_factory: pytest.TempPathFactory, writes: list[tuple[int, int]], before: int
) -> None:
    path = tmp_path_factory.mktemp("outgoing") / "file"
    path.write_bytes(os.urandom(before))
    held = write(path, writes)
    assert path.read_bytes().rstrip(b"\0") == held.rstrip(b"\0")  # seeking alone may leave a gap at the end


def test_what_a_file_system_does_not_know_is_written_as_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, refused = outgoing._put, []

    def picky(handle: int, data: memoryview, place: int) -> None:
        if not refused:
            refused.append(place)
            raise OSError(errno.EINVAL, "no such writes here")
        put(handle, data, place)

    monkeypatch.setattr(outgoing, "_put", picky)
    (tmp_path / "file").touch()
    held = write(tmp_path / "file", [(0, 2 * CHUNK + 5)])
    assert refused == [0]
    assert (tmp_path / "file").read_bytes() == held


def test_a_disk_that_fails_is_told_at_the_end_at_the_latest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int, data: memoryview, place: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "file").touch()
    monkeypatch.setattr(outgoing, "_put", full)
    with pytest.raises(OSError, match="No space left"), Outgoing(tmp_path / "file") as file:
        file.write(b"some")


def test_what_was_written_before_an_error_is_there(tmp_path: Path) -> None:
    def stopped(path: Path) -> None:
        with Outgoing(path) as file:
            file.write(b"some")
            raise InterruptedError

    (tmp_path / "file").touch()
    with pytest.raises(InterruptedError):
        stopped(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"some"
