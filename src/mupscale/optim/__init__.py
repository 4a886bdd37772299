"""The rule of each optimizer: how its hyperparameters and its state grow with a parameter.

Knows scalings by name and torch optimizers; knows nothing of layouts or files.
"""

from mupscale.optim.carry import carry_optimizer
from mupscale.optim.clip import clip_grad_norm_
from mupscale.optim.groups import param_groups, set_lr
from mupscale.optim.rules import Rule, rule_for

__all__ = ["Rule", "carry_optimizer", "clip_grad_norm_", "param_groups", "rule_for", "set_lr"]
