"""Writing safetensors as the tensors come: never more than one in memory.

The safetensors library writes a dict of tensors that are all in memory. The format itself does not need
that: a header with names, shapes and offsets, then the bytes in that order.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mupscale.checkpoint.journal import Journal
from mupscale.checkpoint.outgoing import Outgoing
from mupscale.checkpoint.reader import INDEX, WEIGHTS
from mupscale.checkpoint.stored import DTYPES
from mupscale.errors import GrowthError

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@dataclass(frozen=True)
class TensorSpec:
    """What will be written under a name."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_weights(
    directory: Path,
    specs: Sequence[TensorSpec],
    make: Callable[[str], Iterable[Tensor]],
    journal: Journal,
    on_bytes: Callable[[int], None],
    *,
    max_shard_size: int,
) -> None:
    """Write ``model.safetensors``, or shards and their index, as transformers reads them.

    Args:
        specs: every tensor, in the order in which ``make`` is called for it.
        make: gives the tensor of a name, in blocks of its rows; called once each, for those that ``journal``
            does not have.
        on_bytes: told the bytes of every tensor that is in its place.
        max_shard_size: in bytes; a single tensor may exceed it.
    """
    shards = _shards(specs, max_shard_size)
    if len(shards) == 1:
        _write_file(directory / WEIGHTS, shards[0], make, journal, on_bytes)
        return
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        _write_file(directory / file, shard, make, journal, on_bytes)
        weight_map |= {spec.name: file for spec in shard}
    metadata = {
        "total_size": sum(s.nbytes for s in specs),
        "total_parameters": sum(math.prod(s.shape) for s in specs),
    }
    (directory / INDEX).write_text(json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=2))


def _write_file(
    path: Path,
    specs: Sequence[TensorSpec],
    make: Callable[[str], Iterable[Tensor]],
    journal: Journal,
    on_bytes: Callable[[int], None],
) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for spec in specs:
        header[spec.name] = {
            "dtype": _NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec.nbytes],
        }
        offset += spec.nbytes
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # tensors start aligned
    path.touch()
    with Outgoing(path) as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        place = 8 + len(encoded)
        for spec in specs:
            if not (journal.has_begun(spec.name) and journal.is_done(spec.name, _read(path, place, spec))):
                file.seek(place)
                nbytes = journal.put(spec.name, make(spec.name), file)
                assert nbytes == spec.nbytes, spec.name
            place += spec.nbytes
            on_bytes(spec.nbytes)


def _read(path: Path, place: int, spec: TensorSpec) -> Tensor:
    """What stands where a tensor is to be, or as much of it as there is."""
    with path.open("rb") as file:
        file.seek(place)
        return torch.frombuffer(bytearray(file.read(spec.nbytes)) or bytearray(1), dtype=torch.uint8)


def _shards(specs: Sequence[TensorSpec], limit: int) -> list[list[TensorSpec]]:
    shards: list[list[TensorSpec]] = [[]]
    for spec in specs:
        if shards[-1] and sum(s.nbytes for s in shards[-1]) + spec.nbytes > limit:
            shards.append([])
        shards[-1].append(spec)
    # Widest dtype first, so that every tensor starts at a multiple of its item size.
    return [sorted(shard, key=lambda s: -s.dtype.itemsize) for shard in shards]


def parse_size(text: str) -> int:
    """How many bytes such as ``"5GB"`` are.

    Raises:
        GrowthError: it says no size.
    """
    try:
        number = text.strip().upper().rstrip("BKMGT")
        size = int(float(number) * _UNITS[text.strip().upper()[len(number) :]])
    except (AttributeError, TypeError, ValueError, KeyError, OverflowError):  # the first two: it is no text
        size = 0
    if size <= 0:
        raise GrowthError(f"max-shard-size {text!r}: expected a size such as 5GB or 500MB")
    return size
