"""mupscale: grow a small trained network into the wide one.

Exactly, with its optimizer, and with every hyperparameter scaled:

    plan = mupscale.plan(model, width=2)
    wide = mupscale.grow(model, plan)
    optimizer = mupscale.carry_optimizer(optimizer, model, wide, plan)
"""

from mupscale.errors import GrowthError
from mupscale.growth import grow
from mupscale.initialization import init_
from mupscale.optim import (
    Power,
    Rule,
    carry_optimizer,
    clip_grad_norm_,
    hidden_matrices,
    load_by_name,
    param_groups,
    register_optimizer,
    set_lr,
)
from mupscale.planner import plan
from mupscale.planning import Plan
from mupscale.verification import Report, verify

__version__ = "0.1.0"

__all__ = [
    "GrowthError",
    "Plan",
    "Power",
    "Report",
    "Rule",
    "carry_optimizer",
    "clip_grad_norm_",
    "grow",
    "hidden_matrices",
    "init_",
    "load_by_name",
    "param_groups",
    "plan",
    "register_optimizer",
    "set_lr",
    "verify",
]
