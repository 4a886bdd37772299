"""Optimizers of a wide model: their parameter groups, the state that is carried over, clipping.

Knows torch's optimizers and plans; must not know of files or of how a model is proved.
"""

from mupscale.optim.carry import (
    carry_optimizer,
    grow_state_value,
    is_copied,
    state_axes,
    state_is_padded,
)
from mupscale.optim.clip import clip_grad_norm_
from mupscale.optim.groups import hidden_matrices, load_by_name, merge_groups, param_groups, set_lr
from mupscale.optim.together import Together

__all__ = [
    "Together",
    "carry_optimizer",
    "clip_grad_norm_",
    "grow_state_value",
    "hidden_matrices",
    "is_copied",
    "load_by_name",
    "merge_groups",
    "param_groups",
    "set_lr",
    "state_axes",
    "state_is_padded",
]
