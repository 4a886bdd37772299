"""Growth operators: one function each, tensor in, tensor out. They know scalings and nothing of models."""

from mupscale.operators.catalogue import OPERATORS, Operator, operator_named
from mupscale.operators.duplicate import duplicate_scaled
from mupscale.operators.net2net import random_copies
from mupscale.operators.noise import Noise, add_noise_, normal
from mupscale.operators.zero_pad import DEFAULT_SHRINK, Shrink, zero_pad

__all__ = [
    "DEFAULT_SHRINK",
    "OPERATORS",
    "Noise",
    "Operator",
    "Shrink",
    "add_noise_",
    "duplicate_scaled",
    "normal",
    "operator_named",
    "random_copies",
    "zero_pad",
]
