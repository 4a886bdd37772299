"""From what is asked for to a `Plan`: a model or config, with factors to grow by or a target to reach.

Reads names, shapes and configs, never weights. Knows layouts; what follows from a growth is `planning`'s.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path

from torch import nn
from transformers import PreTrainedConfig

from mupscale.axes import wide_sizes
from mupscale.errors import GrowthError
from mupscale.layout import (
    Layout,
    declared_layout,
    family_of,
    growth_between,
    growth_factor,
    layout_by_shape,
    skeleton,
    transformers_config,
    widen,
)
from mupscale.planning import MANIFEST, Plan, builder


def plan(
    model: nn.Module | PreTrainedConfig | Callable[[int], nn.Module],
    *,
    width: int | None = None,
    axes: Mapping[str, int | Fraction] | None = None,
    to: nn.Module | PreTrainedConfig | None = None,
    hints: Mapping[str, str] | None = None,
) -> Plan:
    """Work out what becomes of every parameter when ``model`` grows. Reads names and shapes, never weights.

    Args:
        model: a transformers model or config; or a plain module (with ``to``); or a function
            ``make(width_factor)`` that builds one (with ``width``).
        width: grow d_model, d_ff and the number of heads by this factor; head_dim stays.
        axes: growth by named axis, such as ``{"d_ff": 3}``; overrides ``width`` where both name an axis.
        to: the wide config or module to reach, instead of factors.
        hints: for plain modules: the axes of parameters whose use shapes cannot show, in the notation of
            `mupscale.axes`.

    Raises:
        GrowthError: the family is not supported, an axis is unknown or cannot grow, or the architecture
            cannot express the result.

    >>> from transformers import LlamaConfig
    >>> p = plan(LlamaConfig(hidden_size=64, intermediate_size=128, num_attention_heads=4), width=2)
    >>> q = p.params["model.layers.0.self_attn.q_proj.weight"]
    >>> float(q.copies), q.weight_scale, q.grad_scale, p.config.hidden_size
    (4.0, 0.5, 0.5, 128)
    """
    if (config := transformers_config(model)) is not None:
        if hints:
            raise GrowthError("hints are for plain modules; the layout of a transformers model is declared")
        wide_config = transformers_config(to)
        if to is not None and wide_config is None:
            raise GrowthError("to: expected a transformers config or model, as the narrow one is")
        narrow = skeleton(config) if model is config else model
        return _plan_transformers(narrow, config, width, axes, wide_config)  # type: ignore[arg-type]
    if isinstance(model, nn.Module):
        if not isinstance(to, nn.Module) or width or axes:
            raise GrowthError(
                "a plain module is planned against a wide instance: plan(narrow, to=wide), or "
                "plan(make, width=2) with make(width_factor) building it"
            )
        return _plan_modules(model, to, None, hints)
    if width is None or axes or to is not None:
        raise GrowthError("plan(make, width=2): a function that builds modules is planned with width alone")
    growth_factor("width", width)
    return _plan_modules(model(1), model(width), model, hints)


def _plan_modules(
    narrow: nn.Module,
    wide: nn.Module,
    make: Callable[[int], nn.Module] | None,
    hints: Mapping[str, str] | None,
) -> Plan:
    layout, growth = layout_by_shape(narrow, wide, hints)
    _refuse_shrinking(layout, growth)
    return Plan(
        layout=layout,
        growth={axis: g for axis, g in growth.items() if g != 1},
        # Without a function that makes fresh ones, there are names and shapes, but no fresh values.
        build_narrow=(lambda: make(1)) if make else (lambda: copy.deepcopy(narrow).to("meta")),
        build_wide=lambda: copy.deepcopy(wide),
    )


def _plan_transformers(
    model: nn.Module,
    config: PreTrainedConfig,
    width: int | None,
    axes: Mapping[str, int | Fraction] | None,
    to: PreTrainedConfig | None,
) -> Plan:
    layout = declared_layout(model)
    family = family_of(config)
    if to is not None:
        if width is not None or axes:
            raise GrowthError("give either the wide config (to) or growth factors (width, axes), not both")
        growth = growth_between(config, to)
    else:
        if width is None and not axes:
            raise GrowthError("how much to grow? give a width, factors by axis, or a wide config to reach")
        growth_factor("width", width if width is not None else 1)
        growth = dict.fromkeys(family.width, Fraction(width or 1)) | {
            axis: growth_factor(axis, g) for axis, g in (axes or {}).items()
        }
    growth = {axis: g for axis, g in growth.items() if g != 1}
    for axis in growth:
        if axis not in layout.sizes:
            known = [a for a in layout.sizes if a not in family.fixed]
            raise GrowthError(f"unknown axis {axis!r}: {config.model_type} has {', '.join(known)}")
        if axis in family.fixed:
            raise GrowthError(f"axis {axis!r} of {config.model_type} cannot grow: {family.fixed[axis]}")
        if to is None and axis in family.inexact:
            raise GrowthError(f"axis {axis!r} of {config.model_type} cannot grow: {family.inexact[axis]}")
    wide_config = to if to is not None else widen(config, layout, growth)
    architecture = type(model).__name__
    _refuse_shrinking(layout, growth)
    return Plan(
        layout=layout,
        growth=growth,
        narrow_config=_named(config, architecture),
        config=(wide_config := _named(wide_config, architecture)),
        build_narrow=builder(config),
        build_wide=builder(wide_config),
    )


def _refuse_shrinking(layout: Layout, growth: Mapping[str, Fraction]) -> None:
    sizes = layout.sizes
    for name, axes in layout.params.items():
        for dim in axes.dims:
            if dim.growth(growth) < 1:
                raise GrowthError(
                    f"{name}: '{dim}' goes from {dim.size(sizes)} to {dim.size(wide_sizes(sizes, growth))}; "
                    "no dim of a parameter may shrink"
                )


def _named(config: PreTrainedConfig, architecture: str) -> PreTrainedConfig:
    config = copy.deepcopy(config)
    config.architectures = [architecture]
    return config


def from_first(source: Path, growth: Plan) -> Plan:
    """The plan from the first model of the line that ``source`` is in: hyperparameters are relative to it.

    Args:
        source: the checkpoint that grows; its ``mupscale.json`` says where it comes from.
        growth: how it grows now.
    """
    if not (source / MANIFEST).is_file():
        return growth
    first = Plan.load(source).narrow_config
    return plan(first, to=growth.config) if first is not None else growth
