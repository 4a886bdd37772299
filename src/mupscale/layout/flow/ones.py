"""Sizes of 1 that grow: one head, one group, one channel, which a run by itself cannot show.

A dim of one index tells nothing of itself, so that inference leaves units of size 1 out. Where the wide model
has a unit more, the narrow one has one of size 1 in its place; which place that is, the sizes tell, and what
is known of the other units.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

from mupscale.layout.flow.dispatch import Dims
from mupscale.layout.flow.trace import Trace, paired
from mupscale.layout.flow.units import Unit, Units, flat


def show_ones(narrow: Trace, wide: Trace) -> None:
    """Put units of size 1 into the narrow dims, wherever the wide ones have a unit more."""
    ones: dict[int, Unit] = {}
    known: dict[int, int] = {}
    for step, other in paired(narrow.steps, wide.steps):
        for a, b in _together(step.dims, other.dims) if other is not step else ():
            if not flat(a) and len(flat(b)) == 1:
                _one(flat(b)[0], ones)
            elif len(flat(a)) == len(flat(b)):
                known |= {id(u.find()): id(v.find()) for u, v in zip(flat(a), flat(b), strict=True)}
    for own, others in (
        *((dims, wide.dims.get(name, [])) for name, dims in narrow.dims.items()),
        *zip(narrow.output_dims, wide.output_dims, strict=False),
        *zip(narrow.ends, wide.ends, strict=False),
    ):
        if len(own) == len(others):
            own[:] = [_shown(a, b, known, ones) for a, b in zip(own, others, strict=True)]
    narrow.steps[:] = [
        step if other is step else replace(step, summed=_shown(step.summed, other.summed, known, ones))
        for step, other in paired(narrow.steps, wide.steps)
    ]


def _together(narrow: list[Dims], wide: list[Dims]) -> Iterator[tuple[Units, Units]]:
    """The dims of tensors, each with that of the other side."""
    for own, others in zip(narrow, wide, strict=False):
        yield from zip(own, others, strict=False)


def _shown(narrow: Units, wide: Units, known: dict[int, int], ones: dict[int, Unit]) -> Units:
    a, b = flat(narrow), flat(wide)
    if len(a) < len(b):
        places = [p for p in itertools.combinations(range(len(b)), len(a)) if _fits(a, b, p)]
        if not places:
            return narrow
        best = max(places, key=lambda p: (*_fit(a, b, p, known, ones), *p))
        known.update((id(u.find()), id(b[at].find())) for u, at in zip(a, best, strict=True))
        at = dict(zip(best, a, strict=True))
        a = tuple(at[i] if i in at else _one(v, ones) for i, v in enumerate(b))
    for u, v in zip(a, b, strict=False):
        if len(u.segments) == len(v.segments):
            parts = zip(u.segments, v.segments, strict=True)
            u.segments = tuple(_product(s, _shown((s,), (t,), known, ones)) for s, t in parts)
    return a


def _fits(a: Units, b: Units, places: tuple[int, ...]) -> bool:
    return all(b[at].size % u.size == 0 for u, at in zip(a, places, strict=True))


def _fit(
    a: Units, b: Units, places: tuple[int, ...], known: dict[int, int], ones: dict[int, Unit]
) -> tuple[int, ...]:
    """What speaks for it that units have their counterparts in these places, the strongest first."""
    here = [(u, b[at]) for u, at in zip(a, places, strict=True)]
    new = [v for i, v in enumerate(b) if i not in places]
    return (
        sum(known.get(id(u.find())) == id(v.find()) for u, v in here)
        + sum(id(v.find()) in ones for v in new),
        sum(bool(u.fixed) == bool(v.fixed) for u, v in here),
        sum(u.size == v.size for u, v in here),
    )


def _one(wide: Unit, ones: dict[int, Unit]) -> Unit:
    unit = ones.setdefault(id(wide.find()), Unit(1, wide.fixed))
    unit.grows = True
    return unit


def _product(segment: Unit, units: Units) -> Unit:
    """A segment with its units; itself where these are what it was."""
    if len(units) == 1:
        return units[0]
    if units == flat((segment,)):
        return segment
    unit = Unit(segment.size)
    unit.factors = units
    return unit
