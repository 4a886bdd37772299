"""The notation: what each dim of a tensor is made of, and how tensors grow along it.

Knows tensors and names; knows nothing of models, optimizers or files.

A shape is written einops style, one word a dim: ``"vocab d_model"``. Two marks group axes into one dim:

* ``(kv_heads q_per_kv head_dim)`` — a dim composed of several axes, the last one fastest;
* ``[d_model]`` or ``[heads head_dim]`` — a dim that the forward pass *contracts* (sums over).

A number is an axis of that fixed size, which never grows: ``"[d_model] (3 heads head_dim)"`` is the fused
query, key and value projection of GPT-2.

>>> q_proj = Axes.parse("(kv_heads q_per_kv head_dim) [d_model]")
>>> q_proj.copies({"kv_heads": 2, "d_model": 2}), q_proj.fan_in({"kv_heads": 2, "d_model": 2})
(Fraction(4, 1), Fraction(2, 1))
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from mupscale.errors import GrowthError

Sizes = Mapping[str, int]
Growth = Mapping[str, Fraction | int]

_DIM = re.compile(r"\s*(?:(?P<word>\w+)|\((?P<group>[\w\s]*)\)|\[(?P<contracted>[\w\s]*)\])")


@dataclass(frozen=True)
class Dim:
    """One dim of a tensor: its axes, slowest first, and whether the forward pass sums over it."""

    axes: tuple[str | int, ...]
    contracted: bool = False

    def __str__(self) -> str:
        words = " ".join(map(str, self.axes))
        if self.contracted:
            return f"[{words}]"
        return words if len(self.axes) == 1 else f"({words})"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(a for a in self.axes if isinstance(a, str))

    def growth(self, growth: Growth) -> Fraction:
        return math.prod((Fraction(growth.get(a, 1)) for a in self.names), start=Fraction(1))

    def size(self, sizes: Sizes) -> int:
        return math.prod(self.shape(sizes))

    def shape(self, sizes: Sizes) -> tuple[int, ...]:
        """The size of each of its axes."""
        return tuple(a if isinstance(a, int) else sizes[a] for a in self.axes)

    def places(self, sizes: Sizes, growth: Growth) -> Tensor:
        """Where each index of the narrow dim stands in the wide one when every axis is padded at its end.

        Where an axis of the dim shrinks (2 heads of 24 become 6 of 16), the named axes are padded as one.
        """
        wide = self.shape(wide_sizes(sizes, growth))
        at = list(np.unravel_index(np.arange(self.size(sizes)), self.shape(sizes)))
        if any(growth.get(axis, 1) < 1 for axis in self.names):
            named = [i for i, axis in enumerate(self.axes) if isinstance(axis, str)]
            merged = np.ravel_multi_index([at[i] for i in named], [self.shape(sizes)[i] for i in named])
            for i, place in zip(named, np.unravel_index(merged, [wide[i] for i in named]), strict=True):
                at[i] = place
        return torch.from_numpy(np.ravel_multi_index(at, wide))


@dataclass(frozen=True)
class Axes:
    """The named axes of one tensor. Immutable; parsed once from the notation, printed back by ``str``."""

    dims: tuple[Dim, ...]

    @staticmethod
    @lru_cache(maxsize=4096)
    def parse(text: str) -> Axes:
        """Read the notation.

        Raises:
            GrowthError: the text is not in the notation, or one dim names an axis twice.

        >>> str(Axes.parse("d_model [heads head_dim]"))
        'd_model [heads head_dim]'
        """
        dims, at = [], 0
        while text[at:].strip():
            match = _DIM.match(text, at)
            if match is None:
                raise GrowthError(
                    f"axes {text!r}: cannot read {text[at:].strip()!r}; write one word a dim, "
                    "(a b) for a dim of several axes, [a] for a contracted dim"
                )
            words = (match["word"] or match["group"] or match["contracted"] or "").split()
            axes = tuple(int(w) if w.isdigit() else w for w in words)
            dim = Dim(axes, contracted=match["contracted"] is not None)
            if not words or len(set(dim.names)) != len(dim.names):
                raise GrowthError(
                    f"axes {text!r}: {match[0].strip()!r} must name at least one axis, each once"
                )
            dims.append(dim)
            at = match.end()
        return Axes(tuple(dims))

    def __str__(self) -> str:
        return " ".join(map(str, self.dims))

    @property
    def names(self) -> tuple[str, ...]:
        """Every named axis, in order of first appearance."""
        return tuple(dict.fromkeys(name for dim in self.dims for name in dim.names))

    def shape(self, sizes: Sizes) -> tuple[int, ...]:
        return tuple(dim.size(sizes) for dim in self.dims)

    def wide_shape(self, sizes: Sizes, growth: Growth) -> tuple[int, ...]:
        return tuple(int(dim.size(sizes) * dim.growth(growth)) for dim in self.dims)

    def copies(self, growth: Growth) -> Fraction:
        """m: how many copies of each entry the grown tensor holds."""
        return math.prod((dim.growth(growth) for dim in self.dims), start=Fraction(1))

    def fan_in(self, growth: Growth) -> Fraction:
        """k_in: by how much the contracted dims grow."""
        return math.prod((d.growth(growth) for d in self.dims if d.contracted), start=Fraction(1))

    def expand_copies(self, sizes: Sizes, growth: Growth) -> Copies:
        """Factor the grown shape so that every copy index becomes a dim of its own (see `Copies`).

        Raises:
            GrowthError: a growth factor is not a whole number; only those have copies.
        """
        shape: list[int] = []
        rows: list[int] = []
        summed: list[int] = []
        kept: list[int] = []
        for dim in self.dims:
            shape.append(1)
            for axis in dim.axes:
                shape[-1] *= axis if isinstance(axis, int) else sizes[axis]
                factor = Fraction(growth.get(axis, 1) if isinstance(axis, str) else 1)
                if factor.denominator != 1:
                    raise GrowthError(f"axis {axis!r} grows by {factor}: duplication needs a whole number")
                if factor > 1:
                    (summed if dim.contracted else kept).append(len(shape))
                    shape += [int(factor), 1]
            rows = rows or list(shape)
        return Copies(tuple(shape), tuple(summed), tuple(kept), unit=math.prod(rows[1:]))


@dataclass(frozen=True)
class Copies:
    """A grown tensor's shape with the copies of every grown axis laid open.

    Attributes:
        shape: the factored shape; its product is the grown tensor's size.
        summed: positions in ``shape`` that count copies of contracted axes.
        kept: positions in ``shape`` that count copies of the other grown axes.
        unit: rows of dim 0 that hold one whole group of copies; any multiple of it can be worked on alone.
    """

    shape: tuple[int, ...]
    summed: tuple[int, ...]
    kept: tuple[int, ...]
    unit: int

    def open(self, wide: Tensor) -> Tensor:
        """View a grown tensor, or a block of whole units of its rows, with its copies as dims."""
        if not self.shape:
            return wide
        whole = math.prod(self.shape)
        return wide.view(self.shape[0] * wide.numel() // whole, *self.shape[1:])


def duplicate(tensor: Tensor, axes: Axes, sizes: Sizes, growth: Growth) -> Tensor:
    """dup(θ): repeat every index of each grown axis, contiguously, inside its named axis.

    Args:
        tensor: the narrow tensor, of shape ``axes.shape(sizes)``.
        sizes: the narrow size of every axis.
        growth: the factor of every axis that grows; whole numbers.

    Returns:
        A new contiguous tensor of the grown shape (the tensor itself where nothing grows).

    >>> import torch
    >>> duplicate(torch.tensor([1, 2, 3, 4]), Axes.parse("(heads head_dim)"), {"heads": 2, "head_dim": 2},
    ...           {"heads": 2}).tolist()
    [1, 2, 1, 2, 3, 4, 3, 4]
    """
    copies = axes.expand_copies(sizes, growth)
    copy_dims = {*copies.summed, *copies.kept}
    narrow = [1 if i in copy_dims else n for i, n in enumerate(copies.shape)]
    # A grown dim of size 1 comes out of reshape as an expanded view.
    return tensor.reshape(narrow).expand(copies.shape).reshape(axes.wide_shape(sizes, growth)).contiguous()


def wide_sizes(sizes: Sizes, growth: Growth) -> dict[str, int]:
    """The size of every axis after growing."""
    return {axis: int(size * growth.get(axis, 1)) for axis, size in sizes.items()}


def pad(tensor: Tensor, axes: Axes, sizes: Sizes, growth: Growth) -> Tensor:
    """Pad₀(θ): zeros behind the narrow entries, along every named axis by itself.

    Args:
        tensor: the narrow tensor, of shape ``axes.shape(sizes)``.
        sizes: the narrow size of every axis.
        growth: the ratio of every axis that changes; fractions too.

    Returns:
        A tensor of the wide shape (the tensor itself where nothing changes).

    >>> import torch
    >>> pad(torch.tensor([1, 2, 3, 4]), Axes.parse("(heads head_dim)"), {"heads": 2, "head_dim": 2},
    ...     {"head_dim": Fraction(3, 2)}).tolist()
    [1, 2, 0, 3, 4, 0]
    """
    for i, dim in enumerate(axes.dims):
        if any(growth.get(axis, 1) != 1 for axis in dim.names):
            shape = list(tensor.shape)
            shape[i] = dim.size(wide_sizes(sizes, growth))
            places = dim.places(sizes, growth).to(tensor.device)
            tensor = tensor.new_zeros(shape).index_copy_(i, places, tensor)
    return tensor


def subtract_copy_mean_(wide: Tensor, copies: Copies) -> Tensor:
    """Project, in place, to what sums to zero over the copies of the contracted axes taken together.

    Such a term changes no activation as long as its inputs are duplicates. ``wide`` is a grown tensor or a
    block of whole units of its rows.
    """
    opened = copies.open(wide)
    opened -= opened.mean(dim=copies.summed, keepdim=True)
    return wide


def oppose_copies_(wide: Tensor, copies: Copies) -> Tensor:
    """Make a term opposite, in place, in every pair of copies of the first contracted axis that grows.

    Such a term sums to zero over the copies; an odd last one gets none. ``wide`` as in `subtract_copy_mean_`.
    """
    opened = copies.open(wide).movedim(copies.summed[0], 0)
    pairs = len(opened) // 2 * 2
    opened[1:pairs:2] = -opened[0:pairs:2]
    opened[pairs:] = 0
    return wide


def contract_copies(wide: Tensor, copies: Copies) -> Tensor:
    """Sum a grown tensor over the copies of its contracted axes, all other copies kept as dims.

    This is the map that the layer applies to duplicated inputs: a grown layer computes what the narrow one
    did exactly when this equals the narrow weight for every copy of its outputs.
    """
    opened = copies.open(wide.contiguous())
    return opened.sum(dim=copies.summed, keepdim=True) if copies.summed else opened
