"""Where the axes come from: a `Layout` names the axes of every parameter of a model.

Knows models and configs; knows nothing of growth rules, optimizers or files.
"""

from mupscale.layout.base import Fold, Layout
from mupscale.layout.by_shape import layout_by_shape
from mupscale.layout.configs import growth_between, growth_factor, widen
from mupscale.layout.declared import (
    Family,
    declared_layout,
    family_of,
    skeleton,
    supported_model_types,
    transformers_config,
)

__all__ = [
    "Family",
    "Fold",
    "Layout",
    "declared_layout",
    "family_of",
    "growth_between",
    "growth_factor",
    "layout_by_shape",
    "skeleton",
    "supported_model_types",
    "transformers_config",
    "widen",
]
