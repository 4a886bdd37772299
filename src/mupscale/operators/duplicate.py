"""θ↑ = s · dup(θ), the operator that keeps the function (Ma et al. 2026, arXiv 2602.10545)."""

from __future__ import annotations

import torch
from torch import Tensor

from mupscale.notation.axes import Axes, duplicate
from mupscale.notation.dims import Dim, Growth, Sizes


def duplicate_scaled(
    tensor: Tensor, axes: Axes, sizes: Sizes, growth: Growth, scale: float, *, offset: float = 0.0
) -> Tensor:
    """``scale`` · dup(θ), in float32 or better; the caller casts to the dtype it stores.

    Args:
        tensor: θ, of shape ``axes.shape(sizes)``. Integers are only repeated.
        scale: s for a parameter, powers of s and c for optimizer state.
        offset: what the model adds to θ before use: θ↑ + offset = s · dup(θ + offset).

    Returns:
        A new tensor of the wide shape.
    """
    # Scaling the small tensor first costs nothing; multiplication commutes with repetition.
    wide = duplicate(_scaled(tensor, scale, offset), axes, sizes, growth)
    return wide.clone() if wide.data_ptr() == tensor.data_ptr() else wide


def duplicate_rows(
    tensor: Tensor,
    axes: Axes,
    sizes: Sizes,
    growth: Growth,
    scale: float,
    rows: slice,
    *,
    offset: float = 0.0,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Some rows of ``scale`` · dup(θ): the indices ``rows`` of its first dim (see `duplicate_scaled`).

    Args:
        dtype: to cast to before anything is repeated, which gives the same and costs less.

    >>> axes, sizes, growth = Axes.parse("d_ff"), {"d_ff": 2}, {"d_ff": 2}
    >>> duplicate_rows(torch.tensor([1.0, 2.0]), axes, sizes, growth, 0.5, slice(1, 3)).tolist()
    [0.5, 1.0]
    """
    sources = axes.dims[0].sources(sizes, growth)[rows].to(tensor.device)
    used, places = torch.unique(sources, return_inverse=True)
    rest = Axes((Dim((len(used),)), *axes.dims[1:]))
    narrow = _scaled(tensor.index_select(0, used), scale, offset)
    once = duplicate(narrow.to(dtype or narrow.dtype), rest, sizes, growth)
    return once.index_select(0, places)


def _scaled(tensor: Tensor, scale: float, offset: float) -> Tensor:
    if not tensor.is_floating_point() and not tensor.is_complex():
        return tensor
    exact = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    return exact if scale == 1 else exact * scale + offset * (scale - 1)
