"""How what grows is filled: one function an operator, any tensor by name, a whole module in place.

Knows tensors, plans and modules; must not know of optimizers or files.
"""

from mupscale.operators.any_tensor import Grower, ShrinkLike
from mupscale.operators.catalogue import OPERATORS, Operator, operator_named
from mupscale.operators.duplicate import duplicate_scaled
from mupscale.operators.filling import check_memory, fill_, is_architecture, tables
from mupscale.operators.fresh import Law, fresh_laws, fresh_value
from mupscale.operators.noise import Noise
from mupscale.operators.zero_pad import DEFAULT_SHRINK, Shrink

__all__ = [
    "DEFAULT_SHRINK",
    "OPERATORS",
    "Grower",
    "Law",
    "Noise",
    "Operator",
    "Shrink",
    "ShrinkLike",
    "check_memory",
    "duplicate_scaled",
    "fill_",
    "fresh_laws",
    "fresh_value",
    "is_architecture",
    "operator_named",
    "tables",
]
