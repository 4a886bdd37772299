"""Build and run a model: what it holds, what it is called with, in float64, with the same chance, sharded.

Knows modules, tensors and transformers' configs, and imports transformers only where something is of it. Must
not know of axes, growth, layouts or files.
"""

from mupscale.models.calls import Call, every_tensor, result_tensors
from mupscale.models.chance import SameChance
from mupscale.models.contents import (
    attribute_tensors,
    is_made_anew,
    one_memory,
    persistent_buffers,
    state_tensors,
    tie_,
    tie_names,
    unwrapped,
)
from mupscale.models.copying import copied, doubled, gradient_hooks
from mupscale.models.drawing import Drawn, drawn_like
from mupscale.models.inputs import HIDDEN_STATES, example_inputs
from mupscale.models.precision import Float64, float64
from mupscale.models.sharding import local, placed_like, whole
from mupscale.models.skeletons import (
    class_name,
    config_class,
    is_stock,
    model_class,
    own_config,
    quiet,
    shapes,
    skeleton,
    transformers_config,
    worked_out,
)
from mupscale.models.surroundings import plain_surroundings

__all__ = [
    "HIDDEN_STATES",
    "Call",
    "Drawn",
    "Float64",
    "SameChance",
    "attribute_tensors",
    "class_name",
    "config_class",
    "copied",
    "doubled",
    "drawn_like",
    "every_tensor",
    "example_inputs",
    "float64",
    "gradient_hooks",
    "is_made_anew",
    "is_stock",
    "local",
    "model_class",
    "one_memory",
    "own_config",
    "persistent_buffers",
    "placed_like",
    "plain_surroundings",
    "quiet",
    "result_tensors",
    "shapes",
    "skeleton",
    "state_tensors",
    "tie_",
    "tie_names",
    "transformers_config",
    "unwrapped",
    "whole",
    "worked_out",
]
