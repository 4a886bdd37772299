"""The notation: what each dim of a tensor is made of, and how tensors grow along it.

Knows tensors and names; knows nothing of models, optimizers or files.

A shape is written einops style, one word a dim: ``"vocab d_model"``. Three marks group axes into one dim:

* ``(kv_heads q_per_kv head_dim)`` — a dim composed of several axes, the last one fastest;
* ``[d_model]`` or ``[heads head_dim]`` — a dim that the forward pass *contracts* (sums over);
* ``(heads head_dim + 2 kv_heads head_dim)`` — segments one after another, as in a fused projection.

A number is an axis of that fixed size, which never grows: ``"[d_model] (3 heads head_dim)"`` is the fused
query, key and value projection of GPT-2.

>>> q_proj = Axes.parse("(kv_heads q_per_kv head_dim) [d_model]")
>>> q_proj.copies({"kv_heads": 2, "d_model": 2}), q_proj.fan_in({"kv_heads": 2, "d_model": 2})
(Fraction(4, 1), Fraction(2, 1))
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import torch
from torch import Tensor

from mupscale.errors import GrowthError
from mupscale.notation.dims import Dim, Factor, Growth, Row, Sizes, wide_sizes

_TOKEN = re.compile(r"\s*(\w+|[()\[\]+])")


@dataclass(frozen=True)
class Axes:
    """The named axes of one tensor. Immutable; parsed once from the notation, printed back by ``str``."""

    dims: tuple[Dim, ...]

    @staticmethod
    @lru_cache(maxsize=4096)
    def parse(text: str) -> Axes:
        """Read the notation.

        Raises:
            GrowthError: the text is not in the notation.

        >>> str(Axes.parse("d_model [heads head_dim]"))
        'd_model [heads head_dim]'
        """
        words = _TOKEN.findall(text)
        if "".join(words) != "".join(text.split()):
            strange = _TOKEN.sub("", text).strip()
            raise GrowthError(f"axes {text!r}: cannot read {strange!r}; {_HOW_TO_WRITE}")
        reader = _Reader(text, words)
        dims = []
        while reader.left:
            dims.append(reader.dim())
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
        order: list[tuple[int, Tensor]] = []
        for i, dim in enumerate(self.dims):
            if any(Fraction(growth.get(axis, 1)).denominator != 1 for axis in dim.names):
                uneven = next(a for a in dim.names if Fraction(growth.get(a, 1)).denominator != 1)
                raise GrowthError(
                    f"axis {uneven!r} grows by {growth[uneven]}, and copies need a whole number; "
                    "choose a whole factor, or the operator zero_pad"
                )
            shape.append(1)
            if dim.has_segments:
                factor, size = int(dim.growth(growth)), dim.size(sizes)
                if factor > 1 and dim.contracted:
                    order.append((i, torch.argsort(dim.sources(sizes, growth), stable=True)))
                    summed.append(len(shape))
                    shape[-1:] = [size, factor, 1]
                else:
                    shape[-1] = size * factor
                rows = rows or ([1, size * factor] if dim.contracted else [size * factor])
                continue
            for axis in dim.axes:
                assert not isinstance(axis, Row)
                shape[-1] *= axis if isinstance(axis, int) else sizes[axis]
                factor = int(growth.get(axis, 1)) if isinstance(axis, str) else 1
                if factor > 1:
                    (summed if dim.contracted else kept).append(len(shape))
                    shape += [factor, 1]
            rows = rows or list(shape)
        return Copies(tuple(shape), tuple(summed), tuple(kept), tuple(order), unit=math.prod(rows[1:]))


_HOW_TO_WRITE = (
    "write one word a dim, (a b) for a dim of several axes, [a] for a contracted dim, (a + b) for segments"
)


class _Reader:
    """Reads one text of the notation, a word at a time."""

    def __init__(self, text: str, words: list[str]) -> None:
        self.text = text
        self.left = words[::-1]

    def dim(self) -> Dim:
        word = self.left.pop()
        if word not in ("(", "["):
            return Dim((self.axis(word),))
        factors = self.group(")" if word == "(" else "]")
        return Dim(factors, contracted=word == "[")

    def group(self, end: str) -> tuple[Factor, ...]:
        segments: list[list[Factor]] = [[]]
        while self.left and self.left[-1] != end:
            word = self.left.pop()
            if word == "+":
                segments.append([])
            else:
                segments[-1] += self.group(")") if word == "(" else [self.axis(word)]
        if not self.left or not all(segments):
            raise GrowthError(f"axes {self.text!r}: a group must name at least one axis; {_HOW_TO_WRITE}")
        self.left.pop()
        return tuple(segments[0]) if len(segments) == 1 else (Row(tuple(map(tuple, segments))),)

    def axis(self, word: str) -> str | int:
        if not re.fullmatch(r"\w+", word):
            raise GrowthError(f"axes {self.text!r}: cannot read {word!r} here; {_HOW_TO_WRITE}")
        return int(word) if word.isdigit() else word


@dataclass(frozen=True)
class Copies:
    """A grown tensor's shape with the copies of every grown axis laid open.

    Attributes:
        shape: the factored shape; its product is the grown tensor's size.
        summed: positions in ``shape`` that count copies of contracted axes.
        kept: positions in ``shape`` that count copies of the other grown axes, but for those in segments.
        order: contracted dims of segments, each with the order of its indices that puts copies side by side.
        unit: rows of dim 0 that hold one whole group of copies; any multiple of it can be worked on alone.
    """

    shape: tuple[int, ...]
    summed: tuple[int, ...]
    kept: tuple[int, ...]
    order: tuple[tuple[int, Tensor], ...]
    unit: int

    @property
    def are_pairs(self) -> bool:
        """Whether two copies of every entry are contracted together."""
        return len(self.summed) == 1 and self.shape[self.summed[0]] == 2

    def open(self, wide: Tensor) -> Tensor:
        """A grown tensor, or a block of whole units of its rows, with its copies as dims.

        A view of it, but for dims of segments; what changes the result goes back through `close_`.
        """
        for dim, order in self.order:
            wide = wide.index_select(dim, order.to(wide.device))
        if not self.shape:
            return wide
        whole = math.prod(self.shape)
        return wide.view(self.shape[0] * wide.numel() // whole, *self.shape[1:])

    def close_(self, wide: Tensor, opened: Tensor) -> Tensor:
        """Put into ``wide`` what became of what `open` made of it."""
        if self.order:
            opened = opened.reshape(wide.shape)
            for dim, order in self.order:
                opened = opened.index_select(dim, torch.argsort(order).to(wide.device))
            wide.copy_(opened)
        return wide


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
    plain = list(axes.dims)
    for i, dim in enumerate(axes.dims):
        if dim.has_segments:  # their copies do not stand in one place: gather them, index by index
            if dim.growth(growth) != 1:
                tensor = tensor.index_select(i, dim.sources(sizes, growth).to(tensor.device))
            plain[i] = Dim((tensor.shape[i],))
    copies = Axes(tuple(plain)).expand_copies(sizes, growth)
    copy_dims = {*copies.summed, *copies.kept}
    narrow = [1 if i in copy_dims else n for i, n in enumerate(copies.shape)]
    # A grown dim of size 1 comes out of reshape as an expanded view.
    return tensor.reshape(narrow).expand(copies.shape).reshape(axes.wide_shape(sizes, growth)).contiguous()


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
            size = dim.size(wide_sizes(sizes, growth))
            tensor = among_zeros(tensor, i, dim.places(sizes, growth), size)
    return tensor


def among_zeros(tensor: Tensor, dim: int, places: Tensor, size: int) -> Tensor:
    """A tensor of ``size`` along ``dim`` that holds the given one at some places, and zeros elsewhere."""
    padded = tensor.new_zeros(*tensor.shape[:dim], size, *tensor.shape[dim + 1 :])
    if torch.equal(places, torch.arange(len(places))):
        padded.narrow(dim, 0, len(places)).copy_(tensor)  # the same, and faster
        return padded
    return padded.index_copy_(dim, places.to(tensor.device), tensor)


def padded_rows(axes: Axes, sizes: Sizes, growth: Growth, rows: slice) -> tuple[Tensor, Tensor, Axes]:
    """Which rows of a narrow tensor are among some rows of a padded one.

    Returns:
        Their indices in the narrow tensor; their indices among ``rows``; the axes of a tensor of them alone.

    >>> axes, sizes = Axes.parse("d_ff [d_model]"), {"d_ff": 4, "d_model": 2}
    >>> mine, there, _ = padded_rows(axes, sizes, {"d_ff": 2}, slice(3, 6))
    >>> mine.tolist(), there.tolist()
    ([3], [0])
    """
    places = axes.dims[0].places(sizes, growth)
    mine = ((places >= rows.start) & (places < rows.stop)).nonzero()[:, 0]
    return mine, places[mine] - rows.start, Axes((Dim((len(mine),)), *axes.dims[1:]))


def subtract_copy_mean_(wide: Tensor, copies: Copies) -> Tensor:
    """Project, in place, to what sums to zero over the copies of the contracted axes taken together.

    Such a term changes no activation as long as its inputs are duplicates. ``wide`` is a grown tensor or a
    block of whole units of its rows.
    """
    opened = copies.open(wide)
    opened -= opened.mean(dim=copies.summed, keepdim=True)
    return copies.close_(wide, opened)


def oppose_copies_(wide: Tensor, copies: Copies) -> Tensor:
    """Make a term opposite, in place, in every pair of copies of the first contracted axis that grows.

    Such a term sums to zero over the copies; an odd last one gets none. ``wide`` as in `subtract_copy_mean_`.
    """
    opened = copies.open(wide)
    first = opened.movedim(copies.summed[0], 0)
    pairs = len(first) // 2 * 2
    first[1:pairs:2] = -first[0:pairs:2]
    first[pairs:] = 0
    return copies.close_(wide, opened)


def sum_copies(wide: Tensor, copies: Copies) -> Tensor:
    """Sum a grown tensor over the copies of its contracted axes.

    This is the map that the layer applies to duplicated inputs: a grown layer computes what the narrow one
    did exactly when this equals the narrow weight for every copy of its outputs.

    Returns:
        A tensor as wide as ``wide`` along the other dims, and as narrow as before along the contracted ones.
    """
    opened = copies.open(wide.contiguous())
    return opened.sum(dim=copies.summed, keepdim=True) if copies.summed else opened
