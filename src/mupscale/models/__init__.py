"""Copy and run models: what they hold, in float64, whatever is set around them, with the same chance.

Knows modules and tensors; nothing of growth, layouts or files.
"""

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
from mupscale.models.surroundings import plain_surroundings

__all__ = [
    "Drawn",
    "SameChance",
    "attribute_tensors",
    "copied",
    "doubled",
    "drawn_like",
    "gradient_hooks",
    "is_made_anew",
    "one_memory",
    "persistent_buffers",
    "plain_surroundings",
    "state_tensors",
    "tie_",
    "tie_names",
    "unwrapped",
]
