"""Tensors where they lie in files, read and written one by one, so that no more of a file is in memory.

By plain reads and writes: pages of a mapped file count as the process's own, stay until it ends, and end it
where the file is cut short meanwhile.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mupscale.errors import GrowthError


@dataclass(frozen=True)
class Stored:
    """A tensor in a file.

    Attributes:
        offset: of its first byte, from the beginning of the file.
        stride: in numbers, as torch counts; None for a tensor that lies there in one piece.
    """

    path: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...] | None = None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> Tensor:
        """Its values.

        Raises:
            GrowthError: the file ends before they do.
        """
        span = 1 + sum((n - 1) * s for n, s in zip(self.shape, self.stride or (), strict=False))
        count = (span if self.stride else math.prod(self.shape)) if 0 not in self.shape else 0
        flat = torch.empty(count, dtype=self.dtype)
        if count and _fill(memoryview(raw(flat)), self.path, self.offset) < flat.nbytes:
            raise GrowthError(
                f"{self.path}: has been cut short; the tensor at byte {self.offset} has {self.nbytes} bytes"
            )
        return flat.as_strided(self.shape, self.stride) if self.stride else flat.view(self.shape)

    def write(self, tensor: Tensor) -> None:
        """Put other values in its place."""
        with self.path.open("r+b", buffering=0) as file:
            file.seek(self.offset)
            left = raw(tensor)
            while left:  # one write may take less than all
                left = left[file.write(left) :]


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, as they stand in memory; of one that lies there in one piece, without a copy."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def safetensors_offsets(path: Path) -> dict[str, int]:
    """Where every tensor begins in a safetensors file, which the library has found to be sound."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(length))
    return {
        name: 8 + length + entry["data_offsets"][0]
        for name, entry in header.items()
        if name != "__metadata__"
    }


SMALL = 1 << 16  # bytes of a tensor that is read at once: a step count, a learning rate


def torch_file(path: Path, *, read_small: bool = True) -> Any:
    """What `torch.save` has written, without running any code that it holds.

    Tensors are empty ones, for `stored` to say where they lie; but small ones are read.

    Raises:
        Exception: of many kinds, where the file is not what it says.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode  # slow to import
    from torch.utils._pytree import tree_map_only

    with FakeTensorMode():
        data = torch.load(path, map_location="cpu", weights_only=True)
    least = SMALL if read_small else -1
    return tree_map_only(Tensor, lambda t: stored(path, t).read() if t.nbytes <= least else t, data)


def stored(path: Path, tensor: Tensor) -> Stored:
    """Where a tensor lies that `torch_file` has found."""
    storage = tensor.untyped_storage()
    offset: int | None = getattr(storage, "_checkpoint_offset", None)
    if offset is None:
        raise GrowthError(f"{path}: is in torch's old format; load it, and save it again")
    start = offset + int(tensor.storage_offset()) * tensor.itemsize
    return Stored(
        path, start, tensor.dtype, tuple(tensor.shape), None if tensor.is_contiguous() else tensor.stride()
    )


def loaded(path: Path, value: Any) -> Any:
    """A value that `torch_file` has found, read if it has not been."""
    from torch._subclasses.fake_tensor import FakeTensor

    return stored(path, value).read() if isinstance(value, FakeTensor) else value


def _fill(buffer: memoryview, path: Path, offset: int) -> int:
    """Read into a buffer; returns how many bytes there were."""
    done = 0
    with path.open("rb", buffering=0) as file:
        while done < len(buffer):
            count = os.preadv(file.fileno(), [buffer[done:]], offset + done)
            if not count:
                break
            done += count
    return done
