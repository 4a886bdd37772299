"""The folds that a growth needs, from the tiny model and its wider sibling."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

from mupscale.errors import GrowthError, said_as
from mupscale.layout.base import Fold
from mupscale.layout.flow.structure import counterparts
from mupscale.layout.flow.units import Unit
from mupscale.layout.inference.constants import folds
from mupscale.layout.inference.family import Family
from mupscale.layout.inference.fields import Path, times, value_at, with_fields
from mupscale.layout.inference.instance import run
from mupscale.layout.inference.magnitude import Variable
from mupscale.notation.axes import Axes

POWERS = [Fraction(n, 8) for n in range(-16, 17) if n]


def folds_of(
    family: Family, factors: Mapping[Path, Fraction], growth: Mapping[str, Fraction]
) -> dict[str, Fold]:
    """By name, the folds of the tiny model's parameters when its fields grow by ``factors``.

    Args:
        growth: what becomes of the axes; each fold is said as a power of one of these.

    Raises:
        GrowthError: a constant of the architecture changes in a way that is no power of an axis's growth; or
            what is cut off at a fixed number changes.
    """
    small = family.small
    base = run(small)[1]
    with said_as(f"{family.model_type}: a tiny model of this growth does not run", "; choose other factors"):
        wide = run(with_fields(small, {p: times(value_at(small, p), f) for p, f in factors.items()}))[1]
    grown = {id(unit.find()): other.size / unit.size for unit, other in counterparts(base, wide)}

    def growth_of(unit: Unit) -> float:
        return grown.get(id(unit.find()), 1.0)

    found, _, refused = folds(base, wide, growth_of)
    if refused is not None and not any(family.laws[a].fixed for a in growth if a in family.laws):
        raise GrowthError(f"{family.model_type}: {refused}")
    return said_as_folds(found, family.axes, growth, family.model_type)


def said_as_folds(
    logarithms: Mapping[Variable, float], axes: Mapping[str, Axes], growth: Mapping[str, Fraction], model: str
) -> dict[str, Fold]:
    """Folds as powers of the growth of axes: of the parameter's own where these serve.

    Raises:
        GrowthError: one is no simple power of any.
    """
    found = {}
    for (name, offset), logarithm in logarithms.items():
        fold = next(
            (
                Fold(axis, power, offset)
                for axis in (*axes[name].names, *growth)
                if growth.get(axis, 1) > 1
                for power in POWERS
                if abs(float(power) * math.log(growth[axis]) - logarithm) < 1e-4
            ),
            None,
        )
        if fold is None:
            raise GrowthError(
                f"{name}: would need a factor of {math.exp(logarithm):.6g} for a constant of {model} that "
                "goes by width, and this is no simple power of the growth; choose other factors or axes"
            )
        found[name] = fold
    return found
