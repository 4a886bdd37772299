"""mupscale: grow a small trained network into the wide one.

Exactly, with its optimizer, and with every hyperparameter scaled:

    plan = mupscale.plan(model, width=2)
    wide = mupscale.grow(model, plan)
    optimizer = mupscale.carry_optimizer(optimizer, model, wide, plan)
"""

from mupscale.errors import GrowthError
from mupscale.growth import grow
from mupscale.initialization import init_
from mupscale.optim import carry_optimizer, clip_grad_norm_, param_groups, set_lr
from mupscale.planning import Plan, plan
from mupscale.verification import Report, verify

__version__ = "0.1.0"

__all__ = [
    "GrowthError",
    "Plan",
    "Report",
    "carry_optimizer",
    "clip_grad_norm_",
    "grow",
    "init_",
    "param_groups",
    "plan",
    "set_lr",
    "verify",
]
