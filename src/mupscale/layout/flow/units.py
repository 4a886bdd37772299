"""What dims are made of, found by unification: the algebra behind inference.

A dim of a tensor is a product of *units*, slowest first. A unit starts as one opaque size. Whatever the
forward pass does with a tensor tells more about its units: a view that splits a dim factors them, a slice
cuts them into segments, and adding or contracting two tensors says that their units are the same. So units
are variables, refined and unified as in type inference; what is left in the end are the axes of the model.

A unit that the architecture gives a meaning by its index (positions, rotary frequencies, the one expert that
a router picks) is *fixed*: copies of it are no duplicates of anything. Knows sizes only; nothing of tensors.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

Units = tuple["Unit", ...]


class Conflict(Exception):
    """Two structures that cannot both be."""


class Unit:
    """One factor of a dim: opaque, or known to be a product of units, or a row of segments side by side."""

    __slots__ = ("factors", "fixed", "grows", "same_as", "segments", "size")

    def __init__(self, size: int, fixed: str | None = None) -> None:
        self.size = size
        self.fixed = fixed
        self.factors: Units = ()
        self.segments: Units = ()
        self.same_as: Unit | None = None
        self.grows = False  # of size 1 here, but not in a wider sibling: it is not left out

    def find(self) -> Unit:
        """The unit that stands for all that were found to be the same."""
        unit = self
        while unit.same_as is not None:
            unit = unit.same_as
        if self is not unit:
            self.same_as = unit
        return unit

    @property
    def opaque(self) -> bool:
        return not self.factors and not self.segments

    def fix(self, reason: str) -> None:
        """Say that an index of this unit means something; the first reason stays."""
        unit = self.find()
        if unit.fixed is None:
            unit.fixed = reason
            for part in (*unit.factors, *unit.segments):
                part.fix(reason)


def size_of(units: Iterable[Unit]) -> int:
    return math.prod(u.size for u in units)


def flat(units: Iterable[Unit]) -> Units:
    """The units with every known product opened, and those of size 1 left out that stay so."""
    found: list[Unit] = []
    for unit in units:
        unit = unit.find()
        if unit.factors:
            found += flat(unit.factors)
        elif unit.size != 1 or unit.grows:
            found.append(unit)
    return tuple(found)


def joined(units: Units) -> Unit:
    """One unit that is the product of several."""
    units = flat(units)
    if len(units) == 1:
        return units[0]
    unit = Unit(size_of(units))
    unit.factors = units
    return unit


def row(parts: Sequence[Units]) -> Units:
    """Segments one after another, as `torch.cat` makes them."""
    pieces: list[Unit] = []
    for part in parts:
        unit = joined(part)
        pieces += [s.find() for s in unit.segments] if unit.segments else [unit]
    if len(pieces) == 1:
        return flat(pieces)
    fixed = [p.fixed for p in pieces]
    if all(fixed):  # a dim of the inputs and its padding: nothing is to be known of it
        return (Unit(sum(p.size for p in pieces), fixed[0]),)
    unit = Unit(sum(p.size for p in pieces))
    unit.segments = tuple(pieces)
    return (unit,)


def regroup(units: Units, sizes: Sequence[int]) -> list[Units]:
    """Deal the units of one or more dims, in order, to dims of other sizes: what a view does.

    Raises:
        Conflict: the sizes cut through a unit that cannot be cut there.
    """
    left = list(reversed(flat(units)))
    groups: list[Units] = []
    for size in sizes:
        group: list[Unit] = []
        while (need := size // size_of(group)) > 1:
            if not left:
                raise Conflict(f"{sizes} does not hold {size_of(units)}")
            unit = left.pop().find()
            if unit.factors:
                left += reversed(flat([unit]))
            elif need % unit.size == 0:
                group.append(unit)
            elif unit.size % need == 0:
                left += reversed(_factor(unit, need))
            else:
                raise Conflict(f"a dim of {size} cuts through {unit.size}")
        if size_of(group) != size:
            raise Conflict(f"a dim of {size} out of {size_of(group)}")
        groups.append(tuple(group))
    return groups


def _factor(unit: Unit, outer: int) -> Units:
    """A unit as a product whose first factor, or first few, have size ``outer``."""
    inner = unit.size // outer
    if unit.fixed is not None:
        return Unit(outer, unit.fixed), Unit(inner, unit.fixed)
    if unit.opaque:
        unit.factors = Unit(outer), Unit(inner)
        return unit.factors
    sizes = [s.size for s in unit.segments]
    if len(set(sizes)) == 1 and inner <= sizes[0] and outer % len(sizes) == 0:
        # Viewed with the number of the segment as an index, all segments have one structure.
        for segment in unit.segments[1:]:
            unify((unit.segments[0],), (segment,))
        factors: Units = (Unit(len(sizes), "it numbers the parts of a fused dim"), unit.segments[0])
    elif all(size % inner == 0 for size in sizes):
        # Every segment is so many blocks of the same inner structure: query, key and value heads in one row.
        splits = [regroup((s,), (s.size // inner, inner)) for s in unit.segments]
        for _, block in splits[1:]:
            unify(splits[0][1], block)
        factors = (*row([blocks for blocks, _ in splits]), *splits[0][1])
    else:
        raise Conflict(f"segments of {sizes} seen as {outer} × {inner}")
    unit.segments, unit.factors = (), factors
    return flat(factors)


def cut(units: Units, start: int, stop: int) -> Units:
    """The units of a slice.

    Raises:
        Conflict: it does not start and end between whole indices of the slowest unit.
    """
    units = flat(units)
    if (start, stop) == (0, size_of(units)):
        return units
    if start >= stop:
        return (Unit(0, "it is empty"),)
    first, inner = units[0], size_of(units[1:])
    if all(u.fixed for u in units):
        return flat([Unit(stop - start, first.fixed)])
    if start % inner or stop % inner:
        raise Conflict(f"a slice from {start} to {stop} cuts through {inner}")
    return (*_segment(first, start // inner, stop // inner), *units[1:])


def _segment(unit: Unit, start: int, stop: int) -> Units:
    if unit.fixed is not None:
        return flat([Unit(stop - start, unit.fixed)])
    if unit.opaque:
        bounds = [0, *sorted({start, stop} - {0, unit.size}), unit.size]
        unit.segments = tuple(Unit(b - a) for a, b in itertools.pairwise(bounds))
    found: list[Units] = []
    at = 0
    for segment in unit.segments:
        low, high = max(start, at), min(stop, at + segment.size)
        if low < high:
            found.append(cut((segment,), low - at, high - at) if segment.size > 1 else (segment,))
        at += segment.size
    unit.segments = tuple(_opened(unit.segments))
    return row(found)


def _opened(segments: Units) -> Iterable[Unit]:
    """Segments, those that have since been cut themselves replaced by their own."""
    for segment in segments:
        segment = segment.find()
        if segment.segments:
            yield from _opened(segment.segments)
        else:
            yield segment


def unify(a: Units, b: Units) -> None:
    """Say that two dims are one and the same.

    Raises:
        Conflict: their known structures contradict each other.
    """
    left, right = list(reversed(flat(a))), list(reversed(flat(b)))
    while left and right:
        u, v = left.pop().find(), right.pop().find()
        if u.factors or v.factors:  # refined by what came before in this very call
            left += reversed(flat([u]))
            right += reversed(flat([v]))
        elif u.size == v.size:
            _merge(u, v)
        elif u.size % v.size == 0:
            left += reversed(_factor(u, v.size))
            right.append(v)
        elif v.size % u.size == 0:
            right += reversed(_factor(v, u.size))
            left.append(u)
        else:
            raise Conflict(f"{u.size} beside {v.size}")
    if left or right:
        raise Conflict(f"a dim of {size_of(flat(a))} beside one of {size_of(flat(b))}")


def _merge(u: Unit, v: Unit) -> None:
    if u is v:
        return
    if reason := u.fixed or v.fixed:
        u.fix(reason)
        v.fix(reason)
    if u.segments and v.segments:
        _align(u, v)
        _align(v, u)
        for one, other in zip(u.segments, v.segments, strict=True):
            unify((one,), (other,))
    if u.segments:
        v.same_as = u
    else:
        u.same_as = v


def _align(u: Unit, v: Unit) -> None:
    """Cut the segments of ``u`` wherever ``v`` is cut."""
    at = 0
    for segment in v.segments:
        _segment(u, at, at + segment.size)
        at += segment.size
