"""θ↑ = s · dup(θ), the operator that keeps the function (Ma et al. 2026, arXiv 2602.10545)."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import torch
from torch import Tensor

from mupscale.axes import Sizes, duplicate
from mupscale.planning import Scaling


def duplicate_scaled(
    tensor: Tensor,
    scaling: Scaling,
    sizes: Sizes,
    growth: Mapping[str, Fraction],
    *,
    scale: float | None = None,
) -> Tensor:
    """s · dup(θ), in float32 or better; the caller casts to the dtype it stores.

    Args:
        tensor: θ, of shape ``scaling.axes.shape(sizes)``. Integers are only repeated.
        scale: instead of s: for optimizer state, which scales by powers of c.

    Returns:
        A new tensor of the wide shape.
    """
    if not tensor.is_floating_point():
        return duplicate(tensor, scaling.axes, sizes, growth).clone()
    scale = scaling.weight_scale if scale is None else scale
    exact = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    # Scaling the small tensor first costs nothing; multiplication commutes with repetition.
    wide = duplicate(exact * scale if scale != 1 else exact, scaling.axes, sizes, growth)
    return wide.clone() if wide.data_ptr() == tensor.data_ptr() else wide
