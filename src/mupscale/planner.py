"""From what is asked for to a `Plan`: a model or config, with factors to grow by or a target to reach.

Reads names, shapes and configs, never weights. Knows layouts; what follows from a growth is `planning`'s.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedConfig

from mupscale.dims import wide_sizes
from mupscale.errors import GrowthError
from mupscale.layout import (
    DEPTH,
    Family,
    Layout,
    family_of,
    folds_for,
    growth_asked,
    growth_between,
    growth_factor,
    layout_by_running,
    layout_by_shape,
    own_config,
    part_of,
    shapes,
    skeleton,
    transformers_config,
    widen,
)
from mupscale.planning import MANIFEST, Plan, builder
from mupscale.proof import Proof, prove, prove_modules


def plan(
    model: nn.Module | PreTrainedConfig | Callable[[int], nn.Module],
    *,
    width: int | None = None,
    axes: Mapping[str, int | Fraction] | None = None,
    to: nn.Module | PreTrainedConfig | None = None,
    hints: Mapping[str, str] | None = None,
    inputs: object = None,
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
        inputs: for plain modules: what to call them with, a tensor, a tuple or a dict. The axes are then read
            from a run, with no need of hints, and the growth is proved before it is used.

    Raises:
        GrowthError: the family is not supported, an axis is unknown or cannot grow, or the architecture
            cannot express the result.

    >>> from transformers import LlamaConfig
    >>> p = plan(LlamaConfig(hidden_size=64, intermediate_size=128, num_attention_heads=4), width=2)
    >>> q = p.params["model.layers.0.self_attn.q_proj.weight"]
    >>> float(q.copies), q.weight_scale, q.grad_scale, p.config.hidden_size
    (4.0, 0.5, 0.5, 128)
    """
    # A proof takes gradients, whatever the caller has switched off.
    with torch.inference_mode(False), torch.enable_grad():
        return _planned(model, width, axes, to, hints, inputs)


def _planned(
    model: nn.Module | PreTrainedConfig | Callable[[int], nn.Module],
    width: int | None,
    axes: Mapping[str, int | Fraction] | None,
    to: nn.Module | PreTrainedConfig | None,
    hints: Mapping[str, str] | None,
    inputs: object,
) -> Plan:
    if (config := transformers_config(model)) is not None:
        config = own_config(config) if model is config else config
        if hints:
            raise GrowthError("hints are for plain modules; the axes of a transformers model are measured")
        wide_config = transformers_config(to)
        if to is not None and wide_config is None:
            raise GrowthError("to: expected a transformers config or model, as the narrow one is")
        narrow = model if isinstance(model, nn.Module) else skeleton(config)
        return _plan_transformers(narrow, config, width, axes, wide_config)
    if isinstance(model, nn.Module):
        if not isinstance(to, nn.Module) or width or axes:
            raise GrowthError(
                "a plain module is planned against a wide instance: plan(narrow, to=wide), or "
                "plan(make, width=2) with make(width_factor) building it"
            )
        return _plan_modules(model, to, None, hints, inputs)
    if width is None or axes or to is not None:
        raise GrowthError("plan(make, width=2): a function that builds modules is planned with width alone")
    growth_factor("width", width)
    return _plan_modules(model(1), model(width), model, hints, inputs)


def _plan_modules(
    narrow: nn.Module,
    wide: nn.Module,
    make: Callable[[int], nn.Module] | None,
    hints: Mapping[str, str] | None,
    inputs: object,
) -> Plan:
    if inputs is None:
        layout, growth = layout_by_shape(narrow, wide, hints)
    elif hints:
        raise GrowthError(
            "hints: what they say is read from a run where there are inputs; give one or the other"
        )
    else:
        layout, growth = layout_by_running(narrow, wide, inputs)
    _refuse_shrinking(layout, growth)
    made = Plan(
        layout=layout,
        growth={axis: g for axis, g in growth.items() if g != 1},
        # Without a function that makes fresh ones, there are names and shapes, but no fresh values.
        build_narrow=(lambda: make(1)) if make else (lambda: copy.deepcopy(narrow).to("meta")),
        build_wide=lambda: copy.deepcopy(wide),
    )
    if inputs is not None and not made.inexact:
        made = _proved(made, prove_modules(narrow, wide, made, inputs))
    return made


def _plan_transformers(
    model: nn.Module,
    config: PreTrainedConfig,
    width: int | None,
    axes: Mapping[str, int | Fraction] | None,
    to: PreTrainedConfig | None,
) -> Plan:
    if to is not None and (width is not None or axes):
        raise GrowthError("give either the wide config (to) or growth factors (width, axes), not both")
    config = _named(config, type(model).__name__)
    family = family_of(config)
    layout = family.layout(model, config)
    if to is not None:
        growth = growth_between(family, layout, config, to)
        wide_config = _named(to, type(model).__name__)
    else:
        growth = growth_asked(family, layout, width, axes)
        wide_config = widen(config, family, layout, growth)
    growth = {axis: g for axis, g in growth.items() if g != 1}
    made = _between(family, layout, config, wide_config, growth)
    if not made.inexact and made.growth:
        own = {axis: g for axis, g in growth.items() if axis in family.laws}
        made = _proved(made, prove(config, own, lambda small: _alike(family, small, own)))
    return made


def prove_identity(made: Plan, operator: str) -> None:
    """Prove that the layers which an operator adds leave the function as it is.

    Raises:
        GrowthError: they do not, as where a norm follows the sum of a layer and its input.
    """
    assert made.narrow_config is not None
    family = family_of(made.narrow_config)
    growth = {DEPTH: Fraction(2)}  # what holds of one more stack holds of any number
    prove(made.narrow_config, growth, lambda small: _alike(family, small, growth), operator=operator)


def _proved(made: Plan, proof: Proof) -> Plan:
    """The plan, with what the proof found out on noise: in every layer, what holds of the tiny model's."""
    parts = {*map(part_of, proof.nonlinear)}
    nonlinear = frozenset(name for name in made.layout.params if part_of(name) in parts)
    return replace(made, layout=replace(made.layout, nonlinear=nonlinear), proved=True)


def _between(
    family: Family,
    layout: Layout,
    config: PreTrainedConfig,
    wide_config: PreTrainedConfig,
    growth: Mapping[str, Fraction],
) -> Plan:
    """The plan from one config to another.

    Raises:
        GrowthError: the shapes of the wide model are not what the growth of the axes gives.
    """
    layout = replace(layout, folds=folds_for(family, layout, growth))
    growth = {**growth, **family.growth_of_layers(layout, growth)}
    family.check_used(layout, growth)
    _refuse_shrinking(layout, growth)
    made = Plan(
        layout=layout,
        growth=growth,
        narrow_config=config,
        config=wide_config,
        build_narrow=builder(config),
        build_wide=builder(wide_config),
    )
    wide = shapes(wide_config)
    params = shapes(wide_config, buffers=False)
    if odd := [n for n in (*params, *made.wide_names) if n not in made.wide_names or n not in wide]:
        raise GrowthError(
            f"{odd[0]}: only in one of the two models, layer by layer; layers of several kinds do not stand "
            "in the same order in both, and this growth is not understood"
        )
    for name in made.wide_names:
        if wide[name] != made.wide_shape(name):
            raise GrowthError(
                f"{name}: grows from {made[name].shape} to {wide[name]} by the config, but to "
                f"{made.wide_shape(name)} by its axes '{made[name].axes}'; this growth is not understood"
            )
    return made


def _alike(family: Family, config: PreTrainedConfig, growth: Mapping[str, Fraction]) -> Plan:
    """The plan of the same growth for another config of the family."""
    layout = family.layout(skeleton(config), config)
    return _between(family, layout, config, widen(config, family, layout, growth), growth)


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
