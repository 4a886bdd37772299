"""Copies by a random choice: Net2WiderNet (Chen et al. 2016, arXiv 1511.05641), and bert2BERT's AKI upon it.

New units of an axis copy units chosen at random, so some units get more copies than others; weights that
contract the axis are divided by the number of copies of each unit. The function is kept wherever only
contractions read the axis. A norm over it takes unequal copies for more weight: with d_model grown, the
function changes.

AKI (Chen et al. 2022, arXiv 2110.07143) lets the new outputs of a layer copy units of the layer above
instead, which breaks the symmetry between copies and does not keep the function.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mupscale.errors import GrowthError
from mupscale.layout.base import Fold
from mupscale.notation.axes import Axes
from mupscale.notation.dims import Dim, Factor, Growth, Row, Sizes
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
            "copies cannot make up; choose the operator duplicate, or other axes"
        )
    offset = max((fold.offset for fold in folds), default=0.0)
    tensors = [tensor] if above is None else [tensor, above]
    exact = torch.promote_types(tensor.dtype, torch.float32) if tensor.is_floating_point() else tensor.dtype
    wide = [t.to(exact) for t in tensors]
    for i, dim in enumerate(axes.dims):
        if dim.growth(growth) == 1:
            continue
        copied = _Copied.of(dim.axes, sizes, growth, seed, powers, contracted=dim.contracted)
        source, scale, new = (torch.from_numpy(a).to(tensor.device) for a in copied)
        along = [-1 if j == i else 1 for j in range(tensor.ndim)]
        wide = [t.index_select(i, source) for t in wide]
        if tensor.is_floating_point():
            scale = scale.to(exact).view(along)
            wide = [t * scale + offset * (scale - 1) for t in wide]
        if above is not None and not dim.contracted:
            wide[0] = torch.where(new.view(along), wide[1], wide[0])
    return wide[0].clone() if wide[0] is tensor else wide[0]


class _Copied(NamedTuple):
    """Along one dim: the narrow index that each wide index copies, its scale, and whether it is a new one."""

    source: np.ndarray
    scale: np.ndarray
    new: np.ndarray

    @staticmethod
    def of(
        factors: tuple[Factor, ...],
        sizes: Sizes,
        growth: Growth,
        seed: int,
        powers: Mapping[str, float],
        *,
        contracted: bool,
    ) -> _Copied:
        """Of a product of axes, slowest first."""
        found = _Copied(np.zeros(1, dtype=np.int64), np.ones(1), np.zeros(1, dtype=bool))
        for factor in factors:
            size = Dim((factor,)).size(sizes)
            if isinstance(factor, Row):
                each = [
                    _Copied.of(segment, sizes, growth, seed, powers, contracted=contracted)
                    for segment in factor.segments
                ]
                starts = np.cumsum([0, *(Dim(segment).size(sizes) for segment in factor.segments[:-1])])
                own = _Copied(
                    np.concatenate([part.source + start for part, start in zip(each, starts, strict=True)]),
                    np.concatenate([part.scale for part in each]),
                    np.concatenate([part.new for part in each]),
                )
            elif isinstance(factor, str) and growth.get(factor, 1) != 1:
                units = chosen_units(factor, size, int(size * growth[factor]), seed).numpy()
                copies = np.bincount(units)[units].astype(float)
                own = _Copied(
                    units, copies ** (powers.get(factor, 0.0) - contracted), np.arange(len(units)) >= size
                )
            else:
                own = _Copied(np.arange(size), np.ones(size), np.zeros(size, dtype=bool))
            found = _Copied(
                (found.source[:, None] * size + own.source).reshape(-1),
                (found.scale[:, None] * own.scale).reshape(-1),
                (found.new[:, None] | own.new).reshape(-1),
            )
        return found
