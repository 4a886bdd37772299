"""Where the axes come from: a `Layout` names the axes of every tensor, read out of the model itself.

Knows models, configs and the notation; must not know of scales, optimizers, operators or checkpoints.
"""

from mupscale.layout.base import DEPTH, Fold, Layout
from mupscale.layout.by_shape import layout_by_shape
from mupscale.layout.cache import remembered
from mupscale.layout.configs import growth_asked, growth_between, growth_factor, widen
from mupscale.layout.inference.family import Family, part_of
from mupscale.layout.inference.fields import explicit
from mupscale.layout.inference.instance import instance, randomize_
from mupscale.layout.inference.modules import layout_by_running
from mupscale.layout.known import family_of, folds_for
from mupscale.layout.tiny_config import tiny

__all__ = [
    "DEPTH",
    "Family",
    "Fold",
    "Layout",
    "explicit",
    "family_of",
    "folds_for",
    "growth_asked",
    "growth_between",
    "growth_factor",
    "instance",
    "layout_by_running",
    "layout_by_shape",
    "part_of",
    "randomize_",
    "remembered",
    "tiny",
    "widen",
]
