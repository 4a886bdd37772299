"""From the units of a trace to axes: pair the traces of two sizes of a model, and write units as notation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mupscale.layout.flow.dispatch import Dims
from mupscale.layout.flow.trace import Trace
from mupscale.layout.flow.units import Conflict, Unit, Units, flat, size_of
from mupscale.notation.axes import Axes
from mupscale.notation.dims import Dim, Factor, Row


def pairs(a: Units, b: Units, *, rows: bool = False) -> Iterator[tuple[Unit, Unit]]:
    """The units of a dim, each with that of the same place in the same dim of another size.

    Args:
        rows: give those that are made of segments, too, and not only their parts.

    Raises:
        Conflict: the dim has another structure in the other size.
    """
    for u, v in _zipped(flat(a), flat(b)):
        if rows and u.segments:
            yield u, v
        if u.size == v.size and bool(u.segments) != bool(v.segments):
            continue  # segments of one that are indices of the other: it does not grow, whatever it is
        if u.segments or v.segments:
            for one, other in _zipped(u.segments, v.segments):
                yield from pairs((one,), (other,), rows=rows)
        else:
            yield u, v


def counterparts(a: Trace, b: Trace, *, rows: bool = False) -> Iterator[tuple[Unit, Unit]]:
    """The units of every tensor, as `pairs`; of dims that have the same structure in both sizes.

    Empty ones, as a slice of no rows has, are left out.
    """
    for name, dims in a.dims.items():
        for narrow, wide in zip(dims, b.dims.get(name, ()), strict=False):
            try:
                yield from [(u, v) for u, v in pairs(narrow, wide, rows=rows) if u.size]
            except Conflict:
                continue


def _zipped(a: Units, b: Units) -> Iterator[tuple[Unit, Unit]]:
    if len(a) != len(b):
        raise Conflict(f"{len(a)} parts in one size, {len(b)} in another")
    return zip(a, b, strict=True)


def leaves(units: Units) -> Iterator[Unit]:
    """The units that have no parts."""
    for unit in flat(units):
        if unit.segments:
            for segment in unit.segments:
                yield from leaves((segment,))
        else:
            yield unit


def sizes_of(units: Units) -> str:
    """The units of a dim by their sizes, for people: ``4 × 8``, or ``(64 + 16)`` of segments."""
    return " × ".join(
        f"({' + '.join(sizes_of((s,)) for s in unit.segments)})" if unit.segments else str(unit.size)
        for unit in flat(units) or (Unit(1),)
    )


@dataclass(frozen=True)
class Written:
    """A trace in the notation.

    Attributes:
        axes: of every parameter and persistent buffer.
        outputs: of what the model returned.
        inputs: of the hidden states that it was called with, by name.
        readouts: the weights from the last hidden layer to the outputs.
    """

    axes: dict[str, Axes]
    outputs: tuple[Axes, ...]
    inputs: dict[str, Axes]
    readouts: frozenset[str]


def written(trace: Trace, name: Callable[[Unit], str | int]) -> Written:
    """Write a trace down; units without a name are numbers.

    A lookup table contracts nothing, even where it is the readout, too: its scale is that of the lookup.
    """
    axes = {
        tensor: Axes(
            tuple(
                as_dim(
                    units, name, contracted=(tensor, i) in trace.contracted and tensor not in trace.lookups
                )
                for i, units in enumerate(dims)
            )
        )
        for tensor, dims in trace.dims.items()
    }
    # What the model returns and no weight reads: classes and vocabularies, but not hidden states.
    read = {id(leaf) for tensor, i in trace.contracted for leaf in leaves(trace.dims[tensor][i])}
    ends = {id(leaf) for dims in trace.ends for leaf in leaves(dims[-1] if dims else ())} - read

    def plain(dims: Dims) -> Axes:
        return Axes(tuple(as_dim(units, name) for units in dims))

    return Written(
        axes,
        outputs=tuple(map(plain, trace.output_dims)),
        inputs={tensor: plain(dims) for tensor, dims in trace.input_dims.items()},
        readouts=frozenset(
            tensor
            for tensor, dims in trace.dims.items()
            if any(dim.contracted for dim in axes[tensor].dims)
            for units, dim in zip(dims, axes[tensor].dims, strict=True)
            if not dim.contracted and size_of(units) > 1 and all(id(u) in ends for u in leaves(units))
        ),
    )


def as_dim(units: Units, name: Callable[[Unit], str | int], *, contracted: bool = False) -> Dim:
    """A dim in the notation; units without a name are numbers."""
    return Dim(_simple(_factors(units, name)) or (1,), contracted=contracted)


def _factors(units: Units, name: Callable[[Unit], str | int]) -> tuple[Factor, ...]:
    found: list[Factor] = []
    for unit in flat(units):
        # Segments of which one is fixed are one axis if they have one name: a head that is turned in halves.
        one = any(leaf.fixed for leaf in leaves((unit,))) and isinstance(name(unit), str)
        if unit.segments and not one:
            found.append(Row(tuple(_factors((s,), name) or (1,) for s in unit.segments)))
        else:
            found.append(name(unit))
    return tuple(found)


def _simple(factors: tuple[Factor, ...]) -> tuple[Factor, ...]:
    """Segments that are alike written once with their number, and numbers side by side as one."""
    found: list[Factor] = []
    for factor in factors:
        parts: tuple[Factor, ...] = (factor,)
        if isinstance(factor, Row):
            segments = tuple(_simple(segment) or (1,) for segment in factor.segments)
            if len(set(segments)) == 1:
                parts = _simple((len(segments), *segments[0]))
            elif all(isinstance(f, int) for segment in segments for f in segment):
                parts = (sum(math.prod(f for f in s if isinstance(f, int)) for s in segments),)
            else:
                parts = (Row(segments),)
        for part in parts:
            if isinstance(part, int) and found and isinstance(found[-1], int):
                found[-1] *= part
            else:
                found.append(part)
    return tuple(f for f in found if f != 1)
