"""From configs to growth factors and back: what a wide config is, for families that are declared."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from transformers import PreTrainedConfig

from mupscale.axes import wide_sizes
from mupscale.errors import GrowthError
from mupscale.layout.base import Layout
from mupscale.layout.declared import family_of


def growth_factor(axis: str, factor: int | Fraction | float) -> Fraction:
    """A growth factor as a fraction.

    Raises:
        GrowthError: it is below 1.
    """
    exact = Fraction(factor).limit_denominator(4096)
    if exact < 1:
        raise GrowthError(f"{axis}: cannot grow by {factor}; a growth factor is 1 or more")
    return exact


def widen(config: PreTrainedConfig, layout: Layout, growth: Mapping[str, Fraction]) -> PreTrainedConfig:
    """The config of the wide model.

    Raises:
        GrowthError: a size would not be whole, or the config class cannot express the sizes.
    """
    for axis, factor in growth.items():
        if (layout.sizes[axis] * factor).denominator != 1:
            raise GrowthError(f"{axis}: {layout.sizes[axis]} × {factor} is not a whole number")
    fields = family_of(config).fields(config, wide_sizes(layout.sizes, growth))
    try:
        return type(config).from_dict({**config.to_dict(), **fields})
    except Exception as error:  # each config class has errors of its own for what it cannot express
        reason = " ".join(str(error.__cause__ or error).split())
        raise GrowthError(f"{config.model_type} cannot be this wide: {reason}") from None


def growth_between(narrow: PreTrainedConfig, wide: PreTrainedConfig) -> dict[str, Fraction]:
    """The ratio of every axis from one config to another.

    Raises:
        GrowthError: the configs differ in more than widths.
    """
    if narrow.model_type != wide.model_type:
        raise GrowthError(
            f"model_type: the narrow model is {narrow.model_type!r}, the wide {wide.model_type!r}"
        )
    family = family_of(narrow)
    sizes, wide_of = family.sizes(narrow), family.sizes(wide)
    # One may shrink where a dim that it is part of does not: 2 heads of 24 become 6 of 16.
    growth = {axis: Fraction(wide_of[axis], size) for axis, size in sizes.items()}
    # With the narrow sizes put into both, nothing may differ.
    back, same = (
        type(config).from_dict({**config.to_dict(), **family.fields(config, sizes)}).to_dict()
        for config in (wide, narrow)
    )
    for key, value in same.items():
        if key not in _CONFIG_NOTES and back.get(key) != value:
            raise GrowthError(
                f"config field {key!r}: {value!r} in the narrow model, "
                f"{back.get(key)!r} in the wide; only widths may grow"
            )
    return growth


# Fields that say nothing about the function.
_CONFIG_NOTES = {
    "architectures",
    "dtype",
    "transformers_version",
    "_name_or_path",
    "use_cache",
    "initializer_range",
}
