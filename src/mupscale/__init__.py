"""mupscale: grow a small trained network into the wide one.

Exactly, with its optimizer, and with every hyperparameter scaled:

    plan = mupscale.plan(model, width=2)
    wide = mupscale.grow(model, plan, operator="duplicate")
    optimizer = mupscale.carry_optimizer(optimizer, model, wide, plan)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mupscale.errors import GrowthError

if TYPE_CHECKING:
    from mupscale.growth import grow
    from mupscale.initialization import init_
    from mupscale.optim import (
        carry_optimizer,
        clip_grad_norm_,
        hidden_matrices,
        load_by_name,
        param_groups,
        set_lr,
    )
    from mupscale.planner import plan
    from mupscale.theory.manifest import Plan
    from mupscale.theory.registry import register_optimizer
    from mupscale.theory.rules import Power, Rule
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

# Where each name stands: imported when it is first asked for, as torch takes seconds.
_HOMES = {
    "Plan": "theory.manifest",
    "Power": "theory.rules",
    "Report": "verification",
    "Rule": "theory.rules",
    "carry_optimizer": "optim",
    "clip_grad_norm_": "optim",
    "grow": "growth",
    "hidden_matrices": "optim",
    "init_": "initialization",
    "load_by_name": "optim",
    "param_groups": "optim",
    "plan": "planner",
    "register_optimizer": "theory.registry",
    "set_lr": "optim",
    "verify": "verification",
}


def __getattr__(name: str) -> Any:
    if name in ("distributed", "integrations", "optim"):
        return import_module(f"mupscale.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'mupscale' has no attribute {name!r}")
    return globals().setdefault(name, getattr(import_module(f"mupscale.{_HOMES[name]}"), name))


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
