"""The notation of named axes: what each dim of a tensor is made of, and how tensors grow along it.

Knows tensors and names; must not know of models, layouts, optimizers or files.
"""

from mupscale.notation.axes import (
    Axes,
    Copies,
    duplicate,
    oppose_copies_,
    pad,
    subtract_copy_mean_,
    sum_copies,
)
from mupscale.notation.dims import Dim, Factor, Growth, Row, Sizes, wide_sizes

__all__ = [
    "Axes",
    "Copies",
    "Dim",
    "Factor",
    "Growth",
    "Row",
    "Sizes",
    "duplicate",
    "oppose_copies_",
    "pad",
    "subtract_copy_mean_",
    "sum_copies",
    "wide_sizes",
]
