"""Grow into a model that stands already, every rank its own shard, where one process cannot hold the model.

Sharded by FSDP2, by tensor parallelism, by both, or not at all.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mupscale.errors import GrowthError
from mupscale.layout.known import differing_fields
from mupscale.models.contents import state_tensors, unwrapped
from mupscale.models.sharding import fill_shard_, is_sharded, reshard_, rows_held, whole
from mupscale.models.skeletons import transformers_config
from mupscale.models.surroundings import plain_surroundings
from mupscale.operators.any_tensor import Grower
from mupscale.operators.catalogue import mark_
from mupscale.operators.filling import (
    check_given,
    check_memory,
    fill_buffers_,
    fill_tables_,
    like,
    same_modes_,
)
from mupscale.operators.noise import Noise
from mupscale.operators.settings import as_planned, check_as_planned, check_built, keep_settings_
from mupscale.operators.zero_pad import ShrinkLike
from mupscale.planner import prove_operator
from mupscale.theory.manifest import Plan


def grow_(
    narrow: nn.Module,
    wide: nn.Module,
    plan: Plan,
    *,
    operator: str = "default",
    noise: str | Noise | None = "default",
    shrink: ShrinkLike | None = None,
    seed: int = 0,
    from_first: Plan | None = None,
) -> nn.Module:
    """Make ``wide``, in place, what ``narrow`` grows into: bit for bit what `mupscale.grow` gives.

    Of a wide tensor every rank makes the rows that it holds, in blocks; of the narrow model one tensor at a
    time is gathered. Every rank must call, with the same arguments. `mupscale.carry_optimizer` carries the
    optimizer between the two models afterwards.

    Args:
        narrow, wide: the two models, either sharded by `torch.distributed.fsdp.fully_shard`, by tensor
            parallelism (any `DTensor`), or not at all. ``wide`` is built as ``plan`` says, such as from
            ``plan.config``, with any weights; it keeps its devices, dtypes and shards. What no checkpoint
            holds, such as rotary tables, has to be there: after ``to_empty`` let the model fill it again. To
            expand with λ = 1 its norms want a smaller eps: what is said tells which.
        operator, noise, shrink, seed, from_first: as in `mupscale.grow`.

    Returns:
        ``wide``, with the narrow model's frozen parts and training modes.

    Raises:
        GrowthError: as in `mupscale.grow`; or ``wide`` is not the model that the plan was made for.

    >>> from torch import nn
    >>> import mupscale
    >>> make = lambda width: nn.Sequential(nn.Linear(8, 16 * width), nn.ReLU(), nn.Linear(16 * width, 4))
    >>> narrow, wide, plan = make(1), make(2), mupscale.plan(make, width=2)
    >>> _ = grow_(narrow, wide, plan, operator="duplicate")       # or fully_shard(wide) before
    >>> x = torch.randn(2, 8)
    >>> torch.allclose(narrow(x), wide(x), atol=1e-6)
    True
    """
    check_given(plan, narrow=narrow, wide=wide)
    inner, theirs = unwrapped(narrow), unwrapped(wide)
    reshard_(inner, theirs)
    own = {plan.unwrapped(name): tensor for name, tensor in state_tensors(inner).items()}
    given = {plan.unwrapped(name): tensor for name, tensor in state_tensors(theirs).items()}
    grower = Grower(
        plan,
        lambda name: whole(own[name].detach()),
        operator=operator,
        noise=noise,
        shrink=shrink,
        seed=seed,
        from_first=from_first,
    )
    _check(own, [*plan.layout.params, *plan.layout.buffers], "narrow")
    _check(given, plan.wide_names, "wide")
    for model in (inner, theirs):
        check_memory(model)
    _check_architecture(theirs, inner, grower.plan)
    for name in plan.wide_names:  # all of them, before the first is overwritten
        plan.check_shape(name, given[name])
    with plain_surroundings(), torch.no_grad():
        check_as_planned(inner, made := as_planned(plan))
        if grower.keeps_function_if_proved:
            with torch.enable_grad():
                prove_operator(plan, grower.operator.name)
        buffers, plan = {}, grower.plan
        for name in plan.wide_names:  # on every rank in one order, as each gathers
            tensor, source = given[name], own[plan.canonical(name)]
            if isinstance(tensor, nn.Parameter) or is_sharded(tensor):
                dtype = tensor.dtype if tensor.is_floating_point() else None
                fill_shard_(tensor, grower.blocks(name, dtype, rows_held(tensor)))
            else:
                buffers[id(tensor)] = like(grower(name), tensor)
            if isinstance(tensor, nn.Parameter):
                tensor.requires_grad_(source.requires_grad)
        fill_buffers_(theirs, buffers)
        fill_tables_(theirs, inner, in_place=True)
        keep_settings_(theirs, inner, made, plan, whole_numbers=False)
    same_modes_(theirs, inner)
    mark_(theirs, grower.operator.name)
    return wide


def _check(found: dict[str, Tensor], expected: Iterable[str], side: str) -> None:
    if name := next((n for n, t in found.items() if t.is_meta), None):
        raise GrowthError(
            f"{name}: is on the meta device in the {side} model; give it memory first (to_empty)"
        )
    if differing := found.keys() ^ {*expected}:
        name = min(differing)
        raise GrowthError(
            f"{name}: {f'in the {side} model only' if name in found else f'not in the {side} model'}; build "
            "it as the plan does, with the same tensors tied (to_empty unties: call tie_weights after it)"
        )


def _check_architecture(wide: nn.Module, narrow: nn.Module, plan: Plan) -> None:
    """Refuse a model of the right shapes that computes something else, as with other heads."""
    if plan.config is None:
        check_built(wide, narrow, plan)
        return
    config, own = transformers_config(wide), transformers_config(narrow)
    if config is None or own is None or plan.narrow_config is None:
        raise GrowthError("wide: the plan is of a transformers model; build both from the plan's configs")
    for field, (found, expected) in differing_fields(config, plan.config).items():
        changed = getattr(own, field, None)  # on the narrow model, since it was planned
        if found != changed or changed == getattr(plan.narrow_config, field, None):
            raise GrowthError(
                f"wide.config: {field} is {found!r}, expected {expected!r}; build the wide model with that"
            )
