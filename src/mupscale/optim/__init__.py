"""Optimizers of a wide model: their parameter groups, the state that is carried over, clipping.

Knows torch's optimizers and plans; must not know of files or of how a model is proved.
"""

from mupscale.optim.carry import carry_optimizer
from mupscale.optim.clip import clip_grad_norm_
from mupscale.optim.groups import hidden_matrices, load_by_name, param_groups, set_lr
from mupscale.optim.together import Together

__all__ = [
    "Together",
    "carry_optimizer",
    "clip_grad_norm_",
    "hidden_matrices",
    "load_by_name",
    "param_groups",
    "set_lr",
]
