"""One dim of a tensor: the axes that it is made of, and how they grow. Notation: see `axes`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Union

import numpy as np
import torch
from torch import Tensor

from mupscale.errors import GrowthError

Sizes = Mapping[str, int]
Growth = Mapping[str, Fraction | int]
Factor = Union[str, int, "Row"]


@dataclass(frozen=True)
class Row:
    """Segments one after another, each a product of axes."""

    segments: tuple[tuple[Factor, ...], ...]

    def __str__(self) -> str:
        return f"({self.text})"

    @property
    def text(self) -> str:
        return " + ".join(" ".join(map(str, segment)) for segment in self.segments)


def _names(factors: tuple[Factor, ...]) -> Iterator[str]:
    for factor in factors:
        if isinstance(factor, Row):
            for segment in factor.segments:
                yield from _names(segment)
        elif isinstance(factor, str):
            yield factor


def _numbers(factors: tuple[Factor, ...]) -> int:
    return sum(
        sum(map(_numbers, factor.segments)) if isinstance(factor, Row) else isinstance(factor, int)
        for factor in factors
    )


def _with_number(factors: tuple[Factor, ...], number: int) -> tuple[Factor, ...]:
    """The factors with a number in place of every one."""
    return tuple(
        Row(tuple(_with_number(segment, number) for segment in factor.segments))
        if isinstance(factor, Row)
        else (number if isinstance(factor, int) else factor)
        for factor in factors
    )


def _size(factor: Factor, sizes: Sizes) -> int:
    if isinstance(factor, Row):
        return sum(math.prod(_size(f, sizes) for f in segment) for segment in factor.segments)
    return factor if isinstance(factor, int) else sizes[factor]


def _growth(factors: tuple[Factor, ...], growth: Growth) -> Fraction:
    total = Fraction(1)
    for factor in factors:
        if isinstance(factor, Row):
            each = {_growth(segment, growth) for segment in factor.segments}
            if len(each) > 1:
                raise GrowthError(
                    f"axes '{factor}': the parts of a dim grow by {', '.join(map(str, sorted(each)))}, but "
                    "one learning rate has to fit all of it; grow them all alike, or none"
                )
            total *= each.pop()
        elif isinstance(factor, str):
            total *= Fraction(growth.get(factor, 1))
    return total


def _indices(factors: tuple[Factor, ...], sizes: Sizes, growth: Growth, padded: bool) -> np.ndarray:
    """Of every wide index of a product, the narrow index that it copies; -1 for what is padded."""
    found = np.zeros(1, dtype=np.int64)
    for factor in factors:
        if isinstance(factor, Row):
            parts, start = [], 0
            for segment in factor.segments:
                part = _indices(segment, sizes, growth, padded)
                parts.append(np.where(part < 0, -1, part + start))
                start += math.prod(_size(f, sizes) for f in segment)
            own = np.concatenate(parts)
        else:
            narrow = _size(factor, sizes)
            wide = int(narrow * Fraction(growth.get(factor, 1) if isinstance(factor, str) else 1))
            own = np.arange(wide)
            own = np.where(own < narrow, own, -1) if padded else own // (wide // narrow)
        outer = found[:, None]
        found = np.where((outer < 0) | (own < 0), -1, outer * _size(factor, sizes) + own).reshape(-1)
    return found


def _places_as_one(factors: tuple[Factor, ...], sizes: Sizes, growth: Growth) -> np.ndarray:
    """Of every narrow index of a product, its wide one, the named axes of each product padded as one.

    Raises:
        GrowthError: a product has less room in the wide one.
    """
    larger = wide_sizes(sizes, growth)
    shape, wide = ([_size(factor, own) for factor in factors] for own in (sizes, larger))
    at = list(np.unravel_index(np.arange(math.prod(shape)), shape))
    named = [i for i, factor in enumerate(factors) if isinstance(factor, str)]
    if math.prod(wide[i] for i in named) < math.prod(shape[i] for i in named):
        raise GrowthError(
            f"axes '{' '.join(map(str, factors))}': have no room for what is there, as they shrink "
            f"({', '.join(f'{factors[i]} {shape[i]} → {wide[i]}' for i in named)}); choose other sizes"
        )
    if named:
        merged = np.ravel_multi_index([at[i] for i in named], [shape[i] for i in named])
        for i, place in zip(named, np.unravel_index(merged, [wide[i] for i in named]), strict=True):
            at[i] = place
    for i, factor in enumerate(factors):
        if isinstance(factor, Row):
            starts = np.cumsum([0, *(math.prod(_size(f, larger) for f in part) for part in factor.segments)])
            parts = [_places_as_one(part, sizes, growth) for part in factor.segments]
            at[i] = np.concatenate([p + start for p, start in zip(parts, starts, strict=False)])[at[i]]
    return np.ravel_multi_index(at, wide)


@dataclass(frozen=True)
class Dim:
    """One dim of a tensor: its axes, slowest first, and whether the forward pass sums over it."""

    axes: tuple[Factor, ...]
    contracted: bool = False

    def __str__(self) -> str:
        words = " ".join(map(str, self.axes))
        if len(self.axes) == 1 and isinstance(self.axes[0], Row):  # its own parentheses are enough
            words = self.axes[0].text
        elif len(self.axes) == 1 and not self.contracted:
            return words
        return f"[{words}]" if self.contracted else f"({words})"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(_names(self.axes)))

    @property
    def has_segments(self) -> bool:
        return any(isinstance(axis, Row) for axis in self.axes)

    def growth(self, growth: Growth) -> Fraction:
        """By how much the dim grows.

        Raises:
            GrowthError: its segments would not grow alike.
        """
        return _growth(self.axes, growth)

    def size(self, sizes: Sizes) -> int:
        return math.prod(self.shape(sizes))

    def shape(self, sizes: Sizes) -> tuple[int, ...]:
        """The size of each of its axes."""
        return tuple(_size(axis, sizes) for axis in self.axes)

    def refit(self, size: int, sizes: Sizes) -> Dim | None:
        """The dim with another number in it, so that it has this size; None where no one number makes it so.

        >>> Dim(("heads", Row((("head_dim",), (16,))))).refit(640, {"heads": 8, "head_dim": 16}).axes[1].text
        'head_dim + 64'
        """
        if any(axis not in sizes for axis in self.names):
            return None
        if self.size(sizes) == size:
            return self
        counts = len(self.axes) > 1 and isinstance(self.axes[0], int)  # a number in front counts segments
        if counts or _numbers(self.axes) != 1:
            return None
        # The size goes linearly with the one number.
        none, one = (Dim(_with_number(self.axes, n)).size(sizes) for n in (0, 1))
        number, rest = divmod(size - none, one - none)
        return Dim(_with_number(self.axes, number), self.contracted) if number > 0 and not rest else None

    def sources(self, sizes: Sizes, growth: Growth) -> Tensor:
        """For every wide index, the narrow index that it is a copy of; whole growth factors only."""
        return torch.from_numpy(_indices(self.axes, sizes, growth, padded=False))

    def places(self, sizes: Sizes, growth: Growth) -> Tensor:
        """Where each index of the narrow dim stands in the wide one when every axis is padded at its end.

        Where an axis of the dim shrinks (2 heads of 24 become 6 of 16), the named axes are padded as one.
        """
        if not any(growth.get(axis, 1) < 1 for axis in self.names):
            source = _indices(self.axes, sizes, growth, padded=True)
            return torch.from_numpy(np.flatnonzero(source >= 0))
        return torch.from_numpy(_places_as_one(self.axes, sizes, growth))


def wide_sizes(sizes: Sizes, growth: Growth) -> dict[str, int]:
    """The size of every axis after growing."""
    return {axis: int(size * growth.get(axis, 1)) for axis, size in sizes.items()}
