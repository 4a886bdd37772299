"""What a module is beside its tensors: kinds of modules, functions, hooks and settings.

A plan is of a model as its constructor builds it. What was changed on the narrow model since then goes over
to the wide one, where no width changes it; what cannot go over is refused. Knows modules and plans; must not
know how tensors grow.
"""

from mupscale.operators.settings.kept import keep_settings_
from mupscale.operators.settings.refused import as_planned, check_as_planned, check_built

__all__ = ["as_planned", "check_as_planned", "check_built", "keep_settings_"]
