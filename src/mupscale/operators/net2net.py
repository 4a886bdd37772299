"""Copies by a random choice: Net2WiderNet (Chen et al. 2016, arXiv 1511.05641), and bert2BERT's AKI upon it.

New units of an axis copy units chosen at random, so some units get more copies than others; weights that
contract the axis are divided by the number of copies of each unit. The function is kept wherever only
contractions read the axis. A norm over it takes unequal copies for more weight: with d_model grown, the
function changes.

AKI (Chen et al. 2022, arXiv 2110.07143) lets the new outputs of a layer copy units of the layer above
instead, which breaks the symmetry between copies and does not keep the function.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from mupscale.axes import Axes
from mupscale.dims import Dim, Growth, Sizes, wide_sizes
from mupscale.errors import GrowthError
from mupscale.layout import Fold
from mupscale.operators.noise import generator_of


@lru_cache(maxsize=64)
def chosen_units(axis: str, narrow: int, wide: int, seed: int) -> Tensor:
    """For each of ``wide`` units, which of ``narrow`` it copies: all of them once, then random ones.

    >>> chosen_units("d_ff", 3, 5, seed=0)[:3].tolist()
    [0, 1, 2]
    """
    new = torch.randint(narrow, (wide - narrow,), generator=generator_of(seed, "units", axis))
    return torch.cat([torch.arange(narrow), new])


def random_copies(
    tensor: Tensor,
    axes: Axes,
    sizes: Sizes,
    growth: Growth,
    *,
    seed: int,
    folds: Sequence[Fold] = (),
    above: Tensor | None = None,
) -> Tensor:
    """Net2WiderNet for one parameter, in float32 or better; AKI where ``above`` is given.

    Args:
        tensor: θ. Integers are only copied.
        seed: of the choice, which is the same for every parameter that has the axis.
        folds: the parameter's; in place of the axis's growth stands the number of copies of each unit.
        above: the same parameter of the next layer, for the new outputs.

    Raises:
        GrowthError: a fold is on an axis that the parameter does not have.
    """
    powers = {fold.axis: float(fold.power) for fold in folds if growth.get(fold.axis, 1) != 1}
    if missing := powers.keys() - set(axes.names):
        raise GrowthError(
            f"axis {min(missing)!r}: growing it changes a constant of the architecture, for which unequal "
            "copies cannot make up; choose another operator, or other axes"
        )
    if tensor.is_floating_point():
        tensor = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    wide, upper = tensor, above.to(tensor.dtype) if above is not None else None
    for i, dim in enumerate(axes.dims):
        if dim.growth(growth) == 1:
            continue
        copied = _Copied.of(dim, sizes, growth, seed, powers)
        along = [-1 if j == i else 1 for j in range(tensor.ndim)]
        scale = copied.scale.to(tensor).view(along) if tensor.is_floating_point() else 1
        wide = wide.index_select(i, copied.source.to(tensor.device)) * scale
        if upper is not None:
            upper = upper.index_select(i, copied.source.to(tensor.device)) * scale
            if not dim.contracted:
                wide = torch.where(copied.new.to(tensor.device).view(along), upper, wide)
    return wide.clone() if wide is tensor else wide


@dataclass(frozen=True)
class _Copied:
    """Along one dim: the narrow index that each wide index copies, its scale, and whether it is a new one."""

    source: Tensor
    scale: Tensor
    new: Tensor

    @staticmethod
    def of(dim: Dim, sizes: Sizes, growth: Growth, seed: int, powers: Mapping[str, float]) -> _Copied:
        narrow, wide = dim.shape(sizes), dim.shape(wide_sizes(sizes, growth))
        at = [torch.from_numpy(c) for c in np.unravel_index(np.arange(math.prod(wide)), wide)]
        scale = torch.ones(math.prod(wide), dtype=torch.float64)
        new = torch.zeros(math.prod(wide), dtype=torch.bool)
        for i, axis in enumerate(dim.axes):
            if isinstance(axis, str) and growth.get(axis, 1) != 1:
                units = chosen_units(axis, narrow[i], wide[i], seed)
                new |= at[i] >= narrow[i]
                at[i] = units[at[i]]
                copies = torch.bincount(units).double()[at[i]]
                scale *= copies ** (powers.get(axis, 0.0) - dim.contracted)
        return _Copied(torch.from_numpy(np.ravel_multi_index([c.numpy() for c in at], narrow)), scale, new)
