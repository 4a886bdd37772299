"""μP from scratch, relative to a narrow model: the baseline that growing has to beat."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mupscale.models.sharding import fill_shard_, reshard_, rows_held
from mupscale.models.surroundings import plain_surroundings
from mupscale.operators.catalogue import unmark_
from mupscale.operators.filling import check_given
from mupscale.operators.fresh import fresh_blocks, fresh_laws, law_of
from mupscale.operators.own import own_values
from mupscale.theory.manifest import Plan


def init_(wide: nn.Module, plan: Plan, *, seed: int = 0) -> nn.Module:
    """Initialize a wide model in place under μP relative to the narrow model: the from-scratch baseline.

    Weights are normal with the narrow model's fresh standard deviation times `Scaling.init_scale`; constants
    (biases, gains) take their narrow value times the weight scale s.

    Args:
        wide: the module that `plan` describes the wide side of; keeps device, dtype and shards. Of a sharded
            one every rank makes the rows that it holds.
        seed: with the parameter names, decides every number.

    Raises:
        GrowthError: a parameter of ``wide`` is not in the plan, has another shape, or does not show what a
            fresh one holds.

    >>> from torch import nn
    >>> make = lambda width: nn.Sequential(nn.Linear(8, 16 * width), nn.ReLU(), nn.Linear(16 * width, 4))
    >>> import mupscale
    >>> wide = mupscale.init_(make(4), mupscale.plan(make, width=4), seed=0)
    """
    check_given(plan, wide=wide)
    plan.check_depth()
    reshard_(wide)
    with plain_surroundings(), torch.no_grad():
        laws = fresh_laws(plan)
        own = own_values(plan, laws, seed=seed)
        unmark_(wide)
        for name, param in wide.named_parameters():
            scaling = plan[name]
            plan.check_shape(name, param)
            rows = rows_held(param)
            if (place := plan.own_name(name)) in own:
                value = own[place].wide
                blocks: Iterable[Tensor] = [value if rows is None else value[rows]]
            else:
                law = law_of(laws, plan.canonical(name), plan)
                blocks = fresh_blocks(scaling, law, rows, seed=seed, name=place, dtype=param.dtype)
            fill_shard_(param, blocks)
    return wide
