"""The theory, in code: how every tensor and hyperparameter scales, and the plan of a whole model.

Knows layouts, and of optimizers their rules; must not know how tensors are filled or optimizers built.
"""

from mupscale.theory.manifest import MANIFEST, Plan, builder, renumbered
from mupscale.theory.registry import optimizer_names, register_optimizer, rule_for, rule_of_state
from mupscale.theory.rules import Power, Rule
from mupscale.theory.scaling import Scaling
from mupscale.theory.tables import FULL_WIDTH, collapse, count, groups_table, scaling_rows

__all__ = [
    "FULL_WIDTH",
    "MANIFEST",
    "Plan",
    "Power",
    "Rule",
    "Scaling",
    "builder",
    "collapse",
    "count",
    "groups_table",
    "optimizer_names",
    "register_optimizer",
    "renumbered",
    "rule_for",
    "rule_of_state",
    "scaling_rows",
]
