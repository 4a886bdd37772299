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
from safetensors import safe_open
from torch import Tensor

from mupscale.errors import GrowthError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


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
                f"{self.path}: has been cut short, in a tensor of {self.nbytes} bytes at byte {self.offset}; "
                "copy or download the file again"
            )
        return flat.as_strided(self.shape, self.stride) if self.stride else flat.view(self.shape)


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, as they stand in memory; of one that lies there in one piece, without a copy."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def stored_safetensors(path: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file, by name.

    Raises:
        GrowthError: one is of a dtype that is not known.
        Exception: the file is not sound, as the library says.
    """
    with safe_open(path, framework="pt"):
        pass
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    if odd := [name for name, entry in header.items() if entry["dtype"] not in DTYPES]:
        expected = ", ".join(DTYPES)
        raise GrowthError(
            f"{path}: {odd[0]}: stored as {header[odd[0]]['dtype']}, expected one of {expected}; "
            "save the checkpoint in one of these"
        )
    return {
        name: Stored(path, 8 + length + e["data_offsets"][0], DTYPES[e["dtype"]], tuple(e["shape"]))
        for name, e in header.items()
    }


def stored_pickle(path: Path) -> dict[str, Stored]:
    """The tensors of a state dict that `torch.save` has written, by name; no code that it holds is run.

    Raises:
        GrowthError: it is in torch's old format.
        Exception: it is not what it says, or holds more than tensors.
    """
    found = torch_file(path, read_small=False)
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise GrowthError(f"{path}: expected a state dict, tensors by name; save model.state_dict()")
    return {name: stored(path, value) for name, value in found.items() if isinstance(value, Tensor)}


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
        raise GrowthError(f"{path}: is in torch's old format; load it, and save it again with torch.save")
    if tensor.nbytes > path.stat().st_size:  # an expanded one, which would fill the memory
        raise GrowthError(
            f"{path}: has been cut short, before the end of a tensor of {tensor.nbytes} bytes; "
            "copy or download the file again"
        )
    if tensor.is_neg() or tensor.is_conj():  # by a bit beside the numbers, which these know nothing of
        raise GrowthError(
            f"{path}: holds a view that is negated or conjugated, as of x.conj().imag; save it again as "
            "tensor.resolve_neg().resolve_conj()"
        )
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
