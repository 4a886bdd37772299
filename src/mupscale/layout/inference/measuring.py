"""Measure what a family is made of: a tiny model runs once as it is, and once for every size field, doubled.

The units that grow show what follows what. An axis has size ``factor · Π field^power``, so that the axes of a
model of any size are known without running it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from fractions import Fraction

import numpy as np

from mupscale.errors import GrowthError, one_line
from mupscale.layout.flow.structure import counterparts, leaves, pairs, written
from mupscale.layout.flow.trace import Trace
from mupscale.layout.flow.units import Conflict, Unit
from mupscale.layout.inference.family import Family, Law, part_of
from mupscale.layout.inference.fields import (
    NO_WIDTH,
    Path,
    axis_name,
    explicit,
    field_name,
    is_wider,
    one_number,
    size_fields,
    times,
    with_fields,
)
from mupscale.layout.inference.instance import run
from mupscale.layout.inference.linear import sparsest
from mupscale.layout.tiny_config import tiny
from mupscale.models.skeletons import PreTrainedConfig, shapes


def infer(config: PreTrainedConfig) -> Family:
    """Measure what a family is made of.

    Raises:
        GrowthError: no tiny model of it can be built and run.
    """
    for grouped in (True, False):
        try:
            small = explicit(tiny(config, grouped=grouped))
            base = run(small)[1]
            break
        except Exception as error:  # whatever the model's own code raises
            if not grouped:
                raise GrowthError(
                    f"{config.model_type}: a tiny model of it does not run: {one_line(error)}; "
                    "plan(model, to=wide_config, inputs=...) runs the model itself"
                ) from error
    variants = _variants(small, base)
    powers = _powers(small, base, variants)
    laws: dict[str, Law] = {}
    values = {p: n for p, value in size_fields(small).items() if (n := one_number(value)) is not None}

    def named(unit: Unit) -> str | int:
        own = _common(unit, powers)
        if not own:
            return unit.size
        factor = Fraction(unit.size)
        for path, power in own.items():
            factor /= Fraction(values.get(path, unit.size)) ** power
        if unit.segments and factor.denominator == 1 and factor != 1:
            return unit.size  # so many axes side by side
        name = axis_name(small, own, factor)
        fixed = next((leaf.fixed for leaf in leaves((unit,)) if leaf.fixed), None)
        if name not in laws or (fixed and not laws[name].fixed):
            laws[name] = Law(own, factor, NO_WIDTH.get(name, fixed))
        return name

    found = written(base, named)
    used = {axis for axes in found.axes.values() for axis in axes.names}
    laws = {axis: law for axis, law in laws.items() if axis in used}
    followed = {path for law in laws.values() for path in law.powers}
    along = _along([change for change, _ in variants], followed)
    parts = {part_of(name) for name in base.seen}
    return Family(
        small=small,
        grouped=grouped,
        axes=found.axes,
        laws=laws,
        along=along,
        readouts=found.readouts,
        outputs=found.outputs,
        inputs=found.inputs,
        unused=frozenset(n for n in base.dims if n not in base.seen and part_of(n) not in parts),
    )


Change = dict[Path, Fraction]
MOST_STUCK, MOST_STUCK_WIDTHS = 8, 4  # of a model of many parts, all pairs would take minutes


def _variants(small: PreTrainedConfig, base: Trace) -> list[tuple[Change, Trace]]:
    """Traces of the tiny model with one size field doubled, for each that matters.

    Where doubled heads do not show all, they are halved, too: that doubles their dims, of which parts may be
    too small to be halved. Fields that no config lets change alone, since one has to be the product of
    others, change two at a time: a width and another; or three widths.
    """
    plain = shapes(small)
    values = size_fields(small)
    found: list[tuple[Change, Trace]] = []

    def attempt(change: Change) -> bool:
        try:
            variant = with_fields(small, {p: times(values[p], f) for p, f in change.items()})
            others = shapes(variant)
            if others.keys() != plain.keys():
                return False
            if others != plain or any(is_wider(small, p) for p in change):
                found.append((change, run(variant)[1]))
        except Exception:  # whatever the config or the model raises: no model has these sizes
            return False
        return True

    twice, half = Fraction(2), Fraction(1, 2)
    stuck = []
    for path in values:
        before = len(found)
        moved = attempt({path: twice})
        shown = len(found) > before and _alike(base, found[-1][1])
        if "heads" in field_name(small, path) and not shown:
            moved = attempt({path: half}) or moved
        if not moved:
            stuck.append(path)
    stuck.sort(key=lambda path: not is_wider(small, path))
    for one, other in itertools.combinations(stuck[:MOST_STUCK], 2):
        if not (is_wider(small, one) or is_wider(small, other)):
            continue
        for change in ({one: twice, other: twice}, {one: twice, other: half}):
            attempt(change)
    together = {path for change, _ in found for path in change}
    still = [path for path in stuck if is_wider(small, path) and path not in together]
    for three in itertools.combinations(still[:MOST_STUCK_WIDTHS], 3):
        attempt(dict.fromkeys(three, twice))
    return found


def _alike(base: Trace, other: Trace) -> bool:
    """Whether every dim has the same structure in both."""
    try:
        for name, dims in base.dims.items():
            for narrow, wide in zip(dims, other.dims.get(name, ()), strict=True):
                list(pairs(narrow, wide))
    except (Conflict, ValueError):
        return False
    return True


def _along(changes: list[Change], followed: set[Path]) -> dict[Path, dict[Path, int]]:
    """The fields that no axis follows as products of those that some do, wherever both changed together."""
    others = [path for path in dict.fromkeys(p for change in changes for p in change) if path not in followed]
    known = [path for path in dict.fromkeys(p for change in changes for p in change) if path in followed]
    found = {}
    for path in others:
        apart = [p for p in others if any(c.get(p) != c.get(path) for c in changes)]
        rows = [c for c in changes if not any(p in c for p in apart)]
        if not any(path in c for c in rows):
            continue
        matrix = np.array([[math.log2(c.get(p, 1)) for p in known] for c in rows])
        powers = np.round(sparsest(matrix, np.array([math.log2(c.get(path, 1)) for c in rows])))
        if powers.any():
            found[path] = {p: int(x) for p, x in zip(known, powers, strict=True) if x}
    return found


def _powers(
    small: PreTrainedConfig, base: Trace, variants: list[tuple[Change, Trace]]
) -> dict[int, dict[Path, int]]:
    """Which fields each unit follows, and to what power: one equation for every variant that has it."""
    seen: dict[int, dict[int, float]] = {}
    for i, (_, other) in enumerate(variants):
        for unit, wide in counterparts(base, other, rows=True):
            seen.setdefault(id(unit.find()), {})[i] = math.log2(wide.size / unit.size)
    paths = list(dict.fromkeys(path for change, _ in variants for path in change))
    # Of fields that only change together the first is followed: the hidden size, if it is among them.
    paths.sort(key=lambda path: field_name(small, path) != "hidden_size")
    changes = np.array([[math.log2(change.get(p, 1)) for p in paths] for change, _ in variants])
    found: dict[int, dict[Path, int]] = {}
    for key, logs in seen.items():
        if any(logs.values()):
            solution = sparsest(changes[list(logs)], np.array(list(logs.values())))
            whole = np.round(solution)
            if np.abs(changes[list(logs)] @ whole - list(logs.values())).max() < 1e-6:
                found[key] = {p: int(x) for p, x in zip(paths, whole, strict=True) if x}
    return found


def _common(unit: Unit, powers: Mapping[int, dict[Path, int]]) -> dict[Path, int]:
    """What a unit follows; what all its parts do, where it has some.

    Of a head that is turned in part, the parts may follow other fields or none, and the whole its own.
    """
    parts = list(leaves((unit,)))
    each = [powers.get(id(part), {}) for part in parts]
    if each and all(e == each[0] for e in each):
        return each[0]
    if unit.segments and all(part.fixed or not e for part, e in zip(parts, each, strict=True)):
        return powers.get(id(unit), {})
    return {}
