"""Where the axes come from: a `Layout` names the axes of every parameter of a model.

Knows models and configs; knows nothing of growth rules, optimizers or files.
"""

from mupscale.layout.base import DEPTH, Fold, Layout
from mupscale.layout.by_shape import layout_by_shape
from mupscale.layout.cache import remembered
from mupscale.layout.configs import growth_asked, growth_between, growth_factor, widen
from mupscale.layout.inference.family import Family, part_of
from mupscale.layout.inference.fields import explicit
from mupscale.layout.inference.modules import layout_by_running
from mupscale.layout.inputs import example_inputs
from mupscale.layout.known import family_of, folds_for
from mupscale.layout.models import class_name, config_class, own_config, shapes, skeleton, transformers_config
from mupscale.layout.tiny import tiny
from mupscale.precision import float64

__all__ = [
    "DEPTH",
    "Family",
    "Fold",
    "Layout",
    "class_name",
    "config_class",
    "example_inputs",
    "explicit",
    "family_of",
    "float64",
    "folds_for",
    "growth_asked",
    "growth_between",
    "growth_factor",
    "layout_by_running",
    "layout_by_shape",
    "own_config",
    "part_of",
    "remembered",
    "shapes",
    "skeleton",
    "tiny",
    "transformers_config",
    "widen",
]
