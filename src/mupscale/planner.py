"""From what is asked for to a `Plan`: a model or config, with factors to grow by or a target to reach.

Reads names, shapes and configs, never weights. Knows layouts; what follows from a growth is the theory's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction

from torch import Tensor, nn, strided

from mupscale.errors import GrowthError, said_as
from mupscale.layout.base import DEPTH, Layout
from mupscale.layout.by_shape import layout_by_shape
from mupscale.layout.configs import growth_asked, growth_between, growth_factor, widen
from mupscale.layout.depth import ORDERS, depth_of, period_between, period_of
from mupscale.layout.inference.family import Family, part_of
from mupscale.layout.inference.modules import layout_by_running
from mupscale.layout.known import family_of, folds_for, with_writers
from mupscale.models.calls import Call
from mupscale.models.contents import state_tensors, tie_, tie_names, unwrapped
from mupscale.models.copying import copied, doubled
from mupscale.models.drawing import drawn_like
from mupscale.models.precision import Float64, float64
from mupscale.models.skeletons import (
    PreTrainedConfig,
    class_name,
    own_config,
    quiet,
    shapes_of,
    skeleton,
    transformers_config,
)
from mupscale.models.surroundings import plain_surroundings
from mupscale.notation.dims import wide_sizes
from mupscale.operators.filling import check_memory, copied_tables, hold_tables_
from mupscale.proof.multipliers import prove_depth
from mupscale.proof.proof import Proof, prove, prove_modules
from mupscale.theory.manifest import Plan, builder


def plan(
    model: nn.Module | PreTrainedConfig | Callable[[int], nn.Module],
    *,
    width: float | Fraction | None = None,
    axes: Mapping[str, float | Fraction] | None = None,
    to: nn.Module | PreTrainedConfig | None = None,
    order: str | None = None,
    hints: Mapping[str, str] | None = None,
    inputs: object = None,
) -> Plan:
    """Work out what becomes of every parameter when ``model`` grows. Reads names and shapes, never weights.

    Args:
        model: a transformers model or config; or a plain module (with ``to``); or a function
            ``make(width_factor)`` that builds one (with ``width``).
        width: grow d_model, d_ff and the number of heads by this factor; head_dim stays.
        axes: growth by named axis, such as ``{"d_ff": 3}``; overrides ``width`` where both name an axis. So
            ``{"layers": 2}`` makes a transformers model deeper, with or without a width.
        to: the wide config or module to reach, instead of factors.
        order: of layers, where their number grows: ``"repeat"`` each in place (1 1 2 2), or ``"cycle"``, the
            whole stack again (1 2 1 2). None: repeated in place, or, with ``to``, as its config has it.
        hints: for plain modules: the axes of parameters whose use shapes cannot show, in the notation of
            `mupscale.notation.axes`.
        inputs: for plain modules: what to call them with, a tensor, a tuple of arguments or a dict of named
            ones; an argument may be a named tuple or a dataclass. The axes are then read from a run, with no
            need of hints, and the growth is proved before it is used. With ``to`` also for transformers
            models, where no tiny one of the class can be made.

    Raises:
        GrowthError: the family is not supported, an axis is unknown or cannot grow, or the architecture
            cannot express the result.

    >>> from transformers import LlamaConfig
    >>> p = plan(LlamaConfig(hidden_size=64, intermediate_size=128, num_attention_heads=4), width=2)
    >>> q = p.params["model.layers.0.self_attn.q_proj.weight"]
    >>> float(q.copies), q.weight_scale, q.grad_scale, p.config.hidden_size
    (4.0, 0.5, 0.5, 128)
    """
    with plain_surroundings():
        return _planned(model, width, axes, to, order, hints, inputs)


def _planned(
    model: nn.Module | PreTrainedConfig | Callable[[int], nn.Module],
    width: float | Fraction | None,
    axes: Mapping[str, float | Fraction] | None,
    to: nn.Module | PreTrainedConfig | None,
    order: str | None,
    hints: Mapping[str, str] | None,
    inputs: object,
) -> Plan:
    if isinstance(model, nn.Module):
        model = unwrapped(model)
        if hasattr(model, "get_base_model"):
            raise GrowthError(
                f"{type(model).__name__} wraps a model in adapters: grow model.get_base_model() after "
                "model.merge_and_unload() and wrap it again, or give a function that builds both, "
                "plan(make, width=..., inputs=...), to grow the adapters along"
            )
    if (config := transformers_config(model)) is not None:
        config = own_config(config) if model is config else config
        if hints:
            raise GrowthError("hints are for plain modules; leave them out for a transformers model")
        wide_config = transformers_config(to)
        if to is not None and wide_config is None:
            raise GrowthError("to: expected a transformers config or model, as the narrow one is")
        narrow = model if isinstance(model, nn.Module) else skeleton(config)
        if inputs is not None:
            return _plan_by_running(type(narrow), config, wide_config, inputs)
        return _plan_transformers(narrow, config, width, axes, wide_config, order)
    if order is not None:
        raise GrowthError("order is of layers, which grow in transformers models; leave it out")
    if isinstance(model, nn.Module):
        if not isinstance(to, nn.Module) or width or axes:
            raise GrowthError(
                "a plain module is planned against a wide instance: plan(narrow, to=wide), or "
                "plan(make, width=2) with make(width_factor) building it"
            )
        narrow, wide = model, unwrapped(to)
        check_memory(narrow)
        check_memory(wide)
        return _plan_modules(lambda: copied(narrow), lambda: copied(wide), hints, inputs, made=False)
    if not callable(model):
        raise GrowthError(
            f"model: expected a module, a transformers config or a function that builds one, found {model!r}"
            "; load it first, AutoModelForCausalLM.from_pretrained(...)"
        )
    if width is None or axes or to is not None:
        raise GrowthError("plan(make, width=2): a function is grown by width alone; leave axes and to out")
    if growth_factor("width", width).denominator != 1 or not isinstance(width, int):
        raise GrowthError(
            f"width: {width!r} is what make(width) is called with; give a whole number, an int, or two "
            "instances, plan(narrow, to=wide)"
        )
    return _plan_modules(_maker(model, 1), _maker(model, width), hints, inputs, made=True)


def _maker(make: Callable[[int], nn.Module], width: int) -> Callable[[], nn.Module]:
    """Builds instances that are nobody else's: ``make`` may give what exists already, or hold such a part."""

    def build() -> nn.Module:
        made = make(width)
        if not isinstance(made, nn.Module):
            raise GrowthError(f"make({width}): expected a torch.nn.Module, found {type(made).__name__}")
        made = unwrapped(made)
        check_memory(made)
        try:
            return copied(made)
        except GrowthError:
            other = unwrapped(make(width))
            if {id(t) for t in state_tensors(made).values()} & {id(t) for t in state_tensors(other).values()}:
                raise
            return other

    return build


def _plan_by_running(
    kind: type[nn.Module], config: PreTrainedConfig, wide_config: PreTrainedConfig | None, inputs: object
) -> Plan:
    """The plan of a transformers model from a run of itself, at full size, and not of a tiny one.

    For classes whose configs name their sizes as no others do.
    """
    if wide_config is None:
        raise GrowthError(
            "inputs: a transformers model is run on them against the wide config, plan(model, "
            "to=wide_config, inputs=x); without them it is planned by width or axes"
        )
    narrow_config, wide_config = (_named(c, class_name(kind)) for c in (config, wide_config))
    plan = _plan_modules(
        lambda: kind(copy.deepcopy(narrow_config)),
        lambda: kind(copy.deepcopy(wide_config)),
        None,
        inputs,
        made=True,
    )
    return replace(
        plan,
        narrow_config=narrow_config,
        config=wide_config,
        build_narrow=builder(narrow_config),
        build_wide=builder(wide_config),
    )


def _plan_modules(
    build_narrow: Callable[[], nn.Module],
    build_wide: Callable[[], nn.Module],
    hints: Mapping[str, str] | None,
    inputs: object,
    *,
    made: bool,
) -> Plan:
    """The plan of plain modules.

    Args:
        made: whether the constructor builds them, with fresh values; else they are copies, of which names,
            shapes and what no checkpoint holds are kept.
    """
    if hints and inputs is not None:
        raise GrowthError("hints and inputs: a run on inputs shows all that hints say; give one or the other")
    mend = "; let it take torch's default dtype, and export or quantize after growing"
    # In float64, so that constants that a constructor computes are not rounded either.
    with said_as("the module cannot be built, in float64, in which it is proved", mend), float64(), Float64():
        narrow, wide = build_narrow(), build_wide()
    held = {} if made else copied_tables(narrow)
    tie_(wide, tie_names(narrow))
    drawn = None
    if inputs is None:
        layout, growth = layout_by_shape(narrow, wide, hints)
    else:
        try:
            given = Call.of(inputs).mapped(Tensor.cpu)
        except NotImplementedError as error:
            raise GrowthError("inputs: on the meta device they hold no values; give real ones") from error
        if any(tensor.layout is not strided for tensor in given.tensors):
            raise GrowthError("inputs: a run on sparse tensors cannot be read; give dense ones, .to_dense()")
        narrow, wide = (doubled(model.cpu()).eval() for model in (narrow, wide))
        with Float64():
            drawn = drawn_like(copied(narrow), given)  # what a first call makes is to be seen in the trace
        try:
            layout, growth = layout_by_running(narrow, wide, drawn.call)
        except GrowthError:  # the given ones may reach what drawn ones do not: a count of steps, a length
            layout, growth = layout_by_running(narrow, wide, given)
    _refuse_shrinking(layout, growth)
    meta = hold_tables_(narrow.to("meta"), held) if not made else None
    plan = Plan(
        layout=layout,
        growth={axis: g for axis, g in growth.items() if g != 1},
        build_narrow=build_narrow if meta is None else lambda: copied(meta),
        build_wide=build_wide,
    )
    _check_shapes(plan, shapes_of(state_tensors(wide)))
    if drawn is not None and not plan.inexact:
        calls = [given, drawn.call]
        proof = prove_modules(build_narrow, build_wide, plan, calls)
        plan = replace(_proved(plan, proof), proved=drawn.shows_nothing is None)
        if made:
            own = plan
            plan = replace(plan, prove=lambda op: prove_modules(build_narrow, build_wide, own, calls, op))
        plan = replace(plan, unproved_because=drawn.shows_nothing)
    return plan


def _plan_transformers(
    model: nn.Module,
    config: PreTrainedConfig,
    width: float | Fraction | None,
    axes: Mapping[str, float | Fraction] | None,
    to: PreTrainedConfig | None,
    order: str | None,
) -> Plan:
    if to is not None and (width is not None or axes):
        raise GrowthError("give either the wide config (to) or growth factors (width, axes), not both")
    config = _named(config, class_name(type(model)))
    family = family_of(config)
    layout = family.layout(model, config)
    period = 1
    if to is not None:
        growth = growth_between(family, layout, config, to)
        wide_config = _named(to, class_name(type(model)))
        if growth[DEPTH] != 1:
            period = period_between(config, to, growth[DEPTH], order)
    else:
        growth = growth_asked(family, layout, width, axes)
        if DEPTH in growth:
            period = period_of(config, order or ORDERS[0])
        wide_config = widen(config, family, layout, growth, period)
    growth = {axis: g for axis, g in growth.items() if g != 1}
    if order is not None and DEPTH not in growth:
        raise GrowthError(f"order {order!r} is for layers, and these do not grow; leave it out")
    made = _between(family, layout, config, wide_config, growth, period)
    own = {axis: g for axis, g in growth.items() if axis in family.laws}
    if own and not made.inexact.keys() & own.keys():
        shown = family.shown_by(own)
        made = _proved(made, prove(config, own, lambda small: _alike(family, small, shown)))
    if DEPTH in growth and DEPTH not in made.layout.inexact:
        turns, twice = ORDERS[period == depth_of(config) > 1], {DEPTH: Fraction(2)}
        try:
            prove_depth(config, lambda small: _alike(family, small, twice, turns))
        except GrowthError as error:
            made = replace(made, layout=made.layout.without_depth(str(error)))
        made = replace(made, proved=not made.inexact)
    return made


def prove_operator(made: Plan, operator: str) -> None:
    """Prove that what an operator adds, layers or units, leaves the function as it is.

    Raises:
        GrowthError: it does not, as where a norm follows the sum of a layer and its input; or it cannot be
            tried.
    """
    if made.narrow_config is not None:
        family = family_of(made.narrow_config)
        # What holds of one more stack, of as many units again, holds of any number.
        growth = {axis: Fraction(2) for axis in made.growth if axis == DEPTH or axis in family.laws}
        turns = "cycle" if DEPTH in growth else None  # which only operators do that stack
        prove(
            made.narrow_config, growth, lambda small: _alike(family, small, growth, turns), operator=operator
        )
    elif made.prove is not None:
        made.prove(operator)
    else:
        raise GrowthError(
            f"operator {operator}: that it keeps the function is proved on a run; make the plan here, with "
            "mupscale.plan(make, width=..., inputs=x)"
        )


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
    period: int,
) -> Plan:
    """The plan from one config to another.

    Raises:
        GrowthError: the shapes of the wide model are not what the growth of the axes gives.
    """
    layout = replace(layout, folds=folds_for(family, layout, growth))
    if DEPTH in growth:
        layout = with_writers(family, layout)
    growth = {**growth, **family.growth_of_layers(layout, growth)}
    family.check_used(layout, growth)
    _refuse_shrinking(layout, growth)
    made = Plan(
        layout=layout,
        growth=growth,
        period=period,
        narrow_config=config,
        config=wide_config,
        build_narrow=builder(config),
        build_wide=builder(wide_config),
    )
    with quiet():
        empty = skeleton(wide_config)
    params = dict(empty.named_parameters())
    wide = shapes_of({**params, **dict(empty.named_buffers())})
    if odd := [n for n in (*params, *made.wide_names) if n not in made.wide_names or n not in wide]:
        raise GrowthError(
            f"{odd[0]}: only in one of the two models, as kinds of layers stand in another order there; "
            "try the other order (order, --order), or grow widths alone"
        )
    _check_shapes(made, wide)
    return made


def _check_shapes(plan: Plan, wide: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a plan by which a tensor would not get the shape that it has in the wide model."""
    for name in plan.wide_names:
        if wide[name] != plan.wide_shape(name):
            raise GrowthError(
                f"{name}: grows from {plan[name].shape} to {wide[name]} in the wide model, but to "
                f"{plan.wide_shape(name)} by its axes '{plan[name].axes}'; choose other factors or axes"
            )


def _alike(
    family: Family, config: PreTrainedConfig, growth: Mapping[str, Fraction], order: str | None = None
) -> Plan:
    """The plan of the same growth for another config of the family, of layers in an order."""
    layout = family.layout(skeleton(config), config)
    period = period_of(config, order) if order is not None else 1
    return _between(family, layout, config, widen(config, family, layout, growth, period), growth, period)


def _refuse_shrinking(layout: Layout, growth: Mapping[str, Fraction]) -> None:
    sizes = layout.sizes
    for name, axes in layout.params.items():
        for dim in axes.dims:
            if dim.growth(growth) < 1:
                raise GrowthError(
                    f"{name}: '{dim}' goes from {dim.size(sizes)} to {dim.size(wide_sizes(sizes, growth))}; "
                    "no dim of a parameter may shrink: is the wide one given as the narrow one?"
                )


def _named(config: PreTrainedConfig, architecture: str) -> PreTrainedConfig:
    config = copy.deepcopy(config)
    config.architectures = [architecture]
    return config
