"""From configs to growth factors and back: what a wide config is."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from mupscale.errors import GrowthError, one_line
from mupscale.layout.base import DEPTH, Layout
from mupscale.layout.depth import deeper_fields, layer_fields
from mupscale.layout.inference.family import Family
from mupscale.layout.inference.fields import NO_WIDTH, NOTES, Path, times, value_at, with_fields
from mupscale.models.skeletons import PreTrainedConfig, shapes, skeleton


def growth_factor(axis: str, factor: int | Fraction | float) -> Fraction:
    """A growth factor as a fraction.

    Raises:
        GrowthError: it is no number, or below 1.
    """
    try:
        exact = Fraction(factor).limit_denominator(4096)
    except (ValueError, OverflowError, TypeError):
        raise GrowthError(f"{axis}: {factor!r} is no growth factor; expected a number such as 2") from None
    if exact < 1:
        raise GrowthError(f"{axis}: cannot grow by {factor}; a growth factor is 1 or more")
    return exact


def growth_asked(
    family: Family,
    layout: Layout,
    width: float | Fraction | None,
    axes: Mapping[str, float | Fraction] | None,
) -> dict[str, Fraction]:
    """The growth of every axis, from a width for all and factors for some.

    Raises:
        GrowthError: an axis is unknown or cannot grow.
    """
    if width is None and not axes:
        raise GrowthError(
            "nothing says how much to grow; give a width (--width 2), factors by axis (--axes d_ff=3), "
            "or a wide config to reach (--to)"
        )
    growth = family.width(growth_factor("width", width if width is not None else 1))
    for axis, factor in (axes or {}).items():
        if axis not in layout.sizes:
            known = [a for a in layout.sizes if a == DEPTH or a not in NO_WIDTH]
            own = [a for a, law in family.laws.items() for path in law.powers if path[-1] == axis]
            own += [DEPTH] * (axis == "num_hidden_layers")
            fields = f", and its field {axis} is {' and '.join(own)}" if own else ""
            raise GrowthError(
                f"unknown axis {axis!r}: {family.model_type} has {', '.join(known)}{fields}; name one of them"
            )
        growth[axis] = growth_factor(axis, factor)
    growth = {axis: g for axis, g in growth.items() if g != 1}
    for axis in growth:
        law = family.laws.get(axis)
        reason = NO_WIDTH.get(axis) if axis != DEPTH else None
        if reason := reason or (law.fixed if law else None):
            instead = [a for a in family.laws if "heads" in a or a == "q_per_kv"]
            other = f"grow {' or '.join(instead)} instead" if axis == "head_dim" and instead else ""
            mend = other or "choose axes without it, of those that mupscale doctor SRC lists"
            raise GrowthError(f"axis {axis!r} of {family.model_type} cannot grow: {reason}; {mend}")
    return growth


def widen(
    config: PreTrainedConfig,
    family: Family,
    layout: Layout,
    growth: Mapping[str, Fraction],
    period: int = 1,
) -> PreTrainedConfig:
    """The config of the wide model.

    Args:
        period: of the layers, where these grow (`mupscale.layout.depth`).

    Raises:
        GrowthError: a size would not be whole, or the config class cannot express the sizes.
    """
    for axis, factor in growth.items():
        if (layout.sizes[axis] * factor).denominator != 1:
            said = f"{axis}: {layout.sizes[axis]} × {factor} is not a whole number; choose another factor"
            raise GrowthError(said)
    values: dict[Path, Any] = {}
    left_out: set[Path] = set()
    factors = family.factors_for(growth)
    for path in dict.fromkeys([*(p for law in family.laws.values() for p in law.powers), *family.along]):
        value = value_at(config, path)
        if value is None:
            left_out.add(path)
            value = _derived(family, layout, path)
        if value is not None:
            try:
                values[path] = times(value, factors.get(path, 1))
            except ValueError as error:
                raise GrowthError(
                    f"{'.'.join(path)}: {error}, so that no config of {config.model_type} has this width; "
                    "choose other factors"
                ) from None
    deeper = deeper_fields(config, growth.get(DEPTH, Fraction(1)), period)
    try:
        wide = with_fields(config, values | deeper)
        made = shapes(wide)
        # What the narrow config left to be derived may be left so, too, where that comes to the same.
        derived = with_fields(config, {p: v for p, v in values.items() if p not in left_out} | deeper)
        return derived if left_out and _has_shapes(derived, made) else wide
    except Exception as error:  # each config class has errors of its own for what it cannot express
        reason = one_line(error.__cause__ or error)
        raise GrowthError(
            f"{config.model_type}: transformers takes no such sizes ({reason}); choose other factors or axes"
        ) from None


def _has_shapes(config: PreTrainedConfig, wanted: Mapping[str, tuple[int, ...]]) -> bool:
    try:
        return shapes(config) == wanted
    except Exception:  # sizes that do not go together
        return False


def _derived(family: Family, layout: Layout, path: Path) -> int | None:
    """The value of a field that the config leaves out, from the size of an axis that follows it."""
    for axis, law in family.laws.items():
        if law.powers == {path: 1} and axis in layout.sizes:
            return int(layout.sizes[axis] / law.factor)
    return None


def growth_between(
    family: Family, layout: Layout, narrow: PreTrainedConfig, wide: PreTrainedConfig
) -> dict[str, Fraction]:
    """The ratio of every axis from one config to another.

    Raises:
        GrowthError: the configs differ in more than widths.
    """
    if narrow.model_type != wide.model_type:
        raise GrowthError(
            f"model_type: {narrow.model_type!r} in the narrow model, {wide.model_type!r} in the wide; "
            "give a wide config of the same type"
        )
    # With the narrow sizes put into both, nothing may differ.
    paths = {*(p for law in family.laws.values() for p in law.powers), *family.along}
    sizes = {path: value_at(narrow, path) for path in paths}
    back = with_fields(wide, sizes | layer_fields(narrow)).to_dict()
    for key, value in with_fields(narrow, sizes).to_dict().items():
        if key not in NOTES | {"architectures"} and back.get(key) != value:
            raise GrowthError(
                f"config field {key!r}: {value!r} in the narrow model, "
                f"{back.get(key)!r} in the wide; only widths and layers may differ: give both the same"
            )
    wide_sizes = family.layout(skeleton(wide), wide).sizes
    for axis in layout.sizes.keys() ^ wide_sizes.keys():
        raise GrowthError(
            f"axis {axis!r}: only in one of the two models; give configs that differ in sizes alone"
        )
    for axis, reason in NO_WIDTH.items():
        if axis != DEPTH and layout.sizes.get(axis) != wide_sizes.get(axis):
            raise GrowthError(
                f"axis {axis!r}: {layout.sizes[axis]} in the narrow model, {wide_sizes[axis]} in the wide; "
                f"{reason}: give both the same"
            )
    # One may shrink where a dim that it is part of does not: 2 heads of 24 become 6 of 16.
    return {axis: Fraction(wide_sizes[axis], size) for axis, size in layout.sizes.items()}
