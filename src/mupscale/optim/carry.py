"""Carry an optimizer over: every group's values rescaled, every state tensor duplicated and scaled."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mupscale.errors import GrowthError
from mupscale.layout.base import DEPTH
from mupscale.models.sharding import held_by_this_rank, is_sharded, reshard_, whole, with_shard
from mupscale.notation.axes import Axes, pad
from mupscale.notation.dims import Dim
from mupscale.operators.catalogue import grown_with, operator_named
from mupscale.operators.duplicate import duplicate_rows, duplicate_scaled
from mupscale.operators.filling import check_given
from mupscale.operators.noise import row_blocks
from mupscale.optim.groups import merge_groups
from mupscale.optim.packed import loss_by_packing, packed, unpacked
from mupscale.optim.together import Together
from mupscale.theory.manifest import Plan
from mupscale.theory.registry import rule_for
from mupscale.theory.rules import Rule
from mupscale.theory.scaling import Scaling


def carry_optimizer(
    optimizer: torch.optim.Optimizer,
    narrow: nn.Module,
    wide: nn.Module,
    plan: Plan,
    *,
    operator: str | None = None,
    state: str = "carried",
) -> torch.optim.Optimizer:
    """The optimizer of the wide model, in the state that the narrow model's has reached.

    Args:
        optimizer: optimizes ``narrow``, or some of its parameters; of `torch.optim`, of those in
            `mupscale.theory.elsewhere`, or registered.
        narrow, wide: the models before and after growing by ``plan``. Either may be sharded by FSDP2: every
            rank must call, and then holds its own shard of the state.
        operator: what ``wide`` was grown with; to be said only where it does not come from `mupscale.grow`,
            as when it was loaded. After even copies the state is copied, and scaled as gradients are. After
            ``"zero_pad"`` and ``"expand"`` it is padded with zeros, unscaled: old weights are as they were,
            and what is new has no past.
        state: ``"carried"``; or ``"asymmetric"``, by which the first copy of an output goes on with what is
            carried and the others begin with zeros: of a parameter whose outputs do not grow, the first copy
            of an input. It makes copies differ at once (after arXiv 2602.02472).

    Returns:
        A new optimizer of the same class. Learning rates are scaled from their present values, as are those
        that schedulers keep in groups; attach a new scheduler, or go on with `set_lr`, which takes optimizers
        of one rate. Hooks on the optimizer are not carried. State that it keeps in few bits (torchao's,
        bitsandbytes') is unpacked, grown and packed again; a warning says by how much that is off.

    Raises:
        GrowthError: it is not known what ``wide`` was grown with; a model has other shapes than the plan; the
            optimizer has no rule, holds a parameter that is not the narrow model's, or holds state that the
            rule does not know or that the operator cannot grow.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise GrowthError(
            "carry_optimizer: expected the narrow model's optimizer, such as "
            f"torch.optim.AdamW(narrow.parameters()), found {optimizer!r}"
        )
    check_given(plan, narrow=narrow, wide=wide)
    operator = grown_with(wide, operator)
    if operator is None:
        raise GrowthError(
            "carry_optimizer: the wide model does not come from mupscale.grow; say what it was grown with, "
            'operator="duplicate" or another'
        )
    if isinstance(optimizer, Together):
        return Together(
            carry_optimizer(part, narrow, wide, plan, operator=operator, state=state)
            for part in optimizer.parts
        )
    way = way_of(operator, state, plan)
    reshard_(narrow, wide)
    wide_params = _by_name(wide, plan)
    trained = [*_trained(optimizer, narrow, wide_params, plan)]
    groups = merge_groups(
        (wide_name, wide_params[wide_name], rule.group(name, plan.of_narrow(name), group))
        for name, _, rule, group, becomes in trained
        for wide_name in becomes
    )
    grown = _alike(optimizer, groups)
    losses = [0.0]
    for name, param, rule, group, becomes in trained:
        pieces = unpacked(optimizer.state.get(param, {}))
        if pieces or param.requires_grad:  # what is frozen takes no steps
            rule.check(name, pieces, group, tuple(param.shape))
        if not pieces:
            continue
        for wide_param in map(wide_params.__getitem__, becomes):
            own = {
                key: _carried(name, key, value, plan, rule, way, wide_param) for key, value in pieces.items()
            }
            grown.state[wide_param] = packed(grown, wide_param, own)
            losses.append(loss_by_packing(own, grown.state[wide_param]))
    if worst := float(torch.tensor(losses).max()):  # NaN, too
        warnings.warn(
            f"{type(optimizer).__name__}: its state was unpacked, grown and packed again, by which it is off "
            f"by up to {worst:.1%} of the largest number of a parameter's",
            stacklevel=2,
        )
    return grown


class _Trained(NamedTuple):
    """A parameter of the narrow model, what its optimizer knows of it, and the names of what it becomes."""

    name: str
    param: Tensor
    rule: Rule
    group: dict[str, Any]
    becomes: list[str]


def _by_name(wide: nn.Module, plan: Plan) -> dict[str, Tensor]:
    """The parameters of the wide model, by the names that the plan has for them.

    Raises:
        GrowthError: one has another shape than the plan gives, or is not tied to what it should be.
    """
    params: dict[str, Tensor] = {plan.own_name(n): p for n, p in wide.named_parameters()}
    for name, param in params.items():
        plan.check_shape(name, param)
    if len(params) != len(list(wide.parameters())):
        alias = next(n for n, p in wide.named_parameters() if params[plan.own_name(n)] is not p)
        others = ", ".join(a for a, name in plan.layout.ties.items() if name == alias)
        raise GrowthError(
            f"{alias}: one parameter with {others} in the narrow model, but not in the wide one, where the "
            "optimizer would train only one of them; tie them again"
        )
    return params


def _trained(
    optimizer: torch.optim.Optimizer, narrow: nn.Module, wide: Mapping[str, Tensor], plan: Plan
) -> Iterator[_Trained]:
    """What the optimizer trains, in the order of its groups.

    Raises:
        GrowthError: a parameter is not the narrow model's, or does not become one of the wide model's.
    """
    names = {id(p): plan.own_name(n) for n, p in narrow.named_parameters()}
    for group in optimizer.param_groups:
        rule = rule_for(type(optimizer), group)
        for param in group["params"]:
            if id(param) not in names:
                raise GrowthError(
                    f"optimizer: holds a parameter of shape {tuple(param.shape)}, which is not in the narrow "
                    "model; give the model that it trains"
                )
            name = names[id(param)]
            becomes = [n for n in plan.becomes.get(name, ()) if n in wide]  # it may be a part of a model
            if not becomes or tuple(param.shape) != plan.of_narrow(name).shape:
                raise GrowthError(
                    f"{name}: by the plan its shape {tuple(param.shape)} in the narrow model does not become "
                    "that of the wide one; give the two models that the plan is of"
                )
            yield _Trained(name, param, rule, group, becomes)


def _alike(optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """A fresh optimizer of the same kind for other groups."""
    accepted = inspect.signature(type(optimizer)).parameters
    defaults = {k: v for k, v in optimizer.defaults.items() if k in accepted}
    made = type(optimizer)(groups, **defaults)
    # What a constructor keeps beside the groups: a direction, a kind of decay, bits; lion-pytorch's and
    # bitsandbytes' go by names of their own.
    for key in ({*accepted, "decoupled_wd", "_init_lr", "args"} - {"params"}) & vars(optimizer).keys():
        if key in vars(made):
            setattr(made, key, vars(optimizer)[key])
    return made


STATES = ("carried", "asymmetric", "fresh")


class Way(Enum):
    """How optimizer state becomes wide: copied as the weights are, for the first copies only, or padded."""

    COPIED = "copied"
    FIRST = "first copies"
    PADDED = "padded"


def way_of(operator: str, state: str, plan: Plan | None = None) -> Way:
    """How the optimizer state goes with an operator.

    Args:
        state: of `STATES`, but for fresh, for which nothing is carried.
        plan: of the growth, where it is known.

    Raises:
        GrowthError: the operator is unknown, or no such optimizer state goes with it.
    """
    if state not in STATES[:2]:
        raise GrowthError(f"optimizer state {state!r}: expected {' or '.join(STATES[:2])}")
    found = operator_named(operator)
    if not found.copies_evenly and found.shrink is None:
        raise GrowthError(
            f"operator {operator!r}: its copies are uneven, so no optimizer state goes with them; "
            "start with a fresh optimizer"
        )
    if state == "asymmetric" and not found.copies_evenly:
        raise GrowthError(
            f"optimizer state {state!r} needs copies, which {operator} makes none of; choose carried"
        )
    if state == "asymmetric" and plan is not None and DEPTH in plan.growth:
        raise GrowthError(
            "optimizer state 'asymmetric' is for copies within a layer; where layers grow, choose carried"
        )
    return Way.FIRST if state == "asymmetric" else Way.COPIED if found.copies_evenly else Way.PADDED


def _carried(name: str, key: str, value: Any, plan: Plan, rule: Rule, way: Way, wide_param: Tensor) -> Any:
    """A piece of a parameter's state, grown, where the wide parameter is; step counters are copied.

    Of what is sharded, this rank's part is made.
    """
    if isinstance(value, Tensor):
        value = whole(value)
    copied = rule.takes_over(key, value)
    if not isinstance(value, Tensor) or not value.ndim:  # numbers stay where they are
        if copied:
            return value.clone() if isinstance(value, Tensor) else value
        return grow_state_value(name, key, value, plan, rule, way)
    shape = (
        value.shape
        if copied
        else state_axes(plan.of_narrow(name), value).wide_shape(plan.layout.sizes, plan.growth)
    )
    if is_sharded(wide_param) and tuple(shape) != tuple(wide_param.shape):
        raise GrowthError(
            f"{name}: optimizer state of shape {tuple(shape)} cannot be sharded as its parameter is; "
            "carry the optimizer to a wide model that is not sharded"
        )
    rows, *rest = held_by_this_rank(wide_param) if is_sharded(wide_param) else (slice(0, shape[0]),)
    if copied:
        mine = value[rows].clone()
    elif rows.start == rows.stop:  # fewer rows than ranks
        mine = value.new_empty((0, *shape[1:]))
    else:
        mine = torch.cat([*grow_state_rows(name, key, value, plan, rule, way, rows)])
    return with_shard(mine[(slice(None), *rest)].to(wide_param.device), wide_param)


def grow_state_value(name: str, key: str, value: Any, plan: Plan, rule: Rule, way: Way) -> Any:
    """scale · dup(state), in the dtype that the state has; c^q · dup(state) for most. Or with zeros.

    Raises:
        GrowthError: state that lives in parameter space, where zeros would mean something.
    """
    scaling = plan.of_narrow(name)
    scale = rule.state_scale(key, scaling)
    if not isinstance(value, Tensor):
        return value * scale
    axes = _axes_to_grow(name, key, value, plan, rule)
    if way is not Way.COPIED and not isinstance(rule.state[key], int):
        raise GrowthError(f"{name}: optimizer state {key!r} cannot be zero; start with a fresh optimizer")
    if way is Way.PADDED:
        return pad(value, axes, plan.layout.sizes, plan.growth).clone()
    wide = duplicate_scaled(value, axes, plan.layout.sizes, plan.growth, scale).to(value.dtype)
    return wide if way is Way.COPIED else _of_first_copies_(wide, axes, plan)


def grow_state_rows(
    name: str,
    key: str,
    value: Any,
    plan: Plan,
    rule: Rule,
    way: Way,
    rows: slice | None = None,
) -> Iterator[Any]:
    """The same in blocks of its rows, so that a large one is never in memory; other ways give it whole.

    Args:
        rows: those to give; None for all.
    """
    if way is not Way.COPIED or not isinstance(value, Tensor) or not value.ndim:
        grown = grow_state_value(name, key, value, plan, rule, way)
        yield grown if rows is None else grown[rows]
        return
    axes = _axes_to_grow(name, key, value, plan, rule)
    scale = rule.state_scale(key, plan.of_narrow(name))
    sizes, growth = plan.layout.sizes, plan.growth
    shape = torch.Size(axes.wide_shape(sizes, growth))
    first, stop = (0, shape[0]) if rows is None else (rows.start, rows.stop)
    for block in row_blocks(torch.Size((stop - first, *shape[1:])), 1):
        mine = slice(first + block.start, first + block.stop)
        yield duplicate_rows(value, axes, sizes, growth, scale, mine, dtype=value.dtype)


def _of_first_copies_(wide: Tensor, axes: Axes, plan: Plan) -> Tensor:
    """Zero, in place, all but the first copy of every output, or of every input where no output grows."""
    sizes, growth = plan.layout.sizes, plan.growth
    outputs = any(dim.growth(growth) != 1 for dim in axes.dims if not dim.contracted)
    for place, dim in enumerate(axes.dims):
        if dim.contracted != outputs and dim.growth(growth) != 1:
            source = dim.sources(sizes, growth).numpy()
            later = np.delete(np.arange(len(source)), np.unique(source, return_index=True)[1])
            wide.index_fill_(place, torch.from_numpy(later).to(wide.device), 0)
    return wide


def _axes_to_grow(name: str, key: str, value: Tensor, plan: Plan, rule: Rule) -> Axes:
    """What `state_axes` gives.

    Raises:
        GrowthError: the state is reduced over a dim of size 1 that grows, and so looks as if it were not.
    """
    scaling = plan.of_narrow(name)
    if value.ndim and key in rule.reduced:
        dim = rule.reduced[key]
        if scaling.shape[dim] == 1 and scaling.axes.dims[dim].growth(plan.growth) != 1:
            raise GrowthError(
                f"{name}: optimizer state {key!r} is reduced over a dim of size 1, of which it cannot follow "
                "the growth; start with a fresh optimizer"
            )
    return state_axes(scaling, value)


def state_axes(scaling: Scaling, value: Tensor) -> Axes:
    """The parameter's axes, less those that the state is reduced over: a single number, a row, a column."""
    if not value.ndim:
        return Axes(())
    kept = zip(scaling.axes.dims, scaling.shape, value.shape, strict=True)
    return Axes(tuple(dim if n == full else Dim((1,)) for dim, full, n in kept))
