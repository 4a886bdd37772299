"""The rule of each optimizer: how its hyperparameters and its state grow with a parameter.

Knows scalings by name and torch optimizers; knows nothing of layouts or files.
"""

from mupscale.optim.carry import carry_optimizer
from mupscale.optim.clip import clip_grad_norm_
from mupscale.optim.groups import hidden_matrices, load_by_name, param_groups, set_lr
from mupscale.optim.registry import optimizer_names, register_optimizer, rule_for
from mupscale.optim.rules import Power, Rule
from mupscale.optim.together import Together

__all__ = [
    "Power",
    "Rule",
    "Together",
    "carry_optimizer",
    "clip_grad_norm_",
    "hidden_matrices",
    "load_by_name",
    "optimizer_names",
    "param_groups",
    "register_optimizer",
    "rule_for",
    "set_lr",
]
