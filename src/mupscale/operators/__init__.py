"""Growth operators: one function each, tensor in, tensor out. They know scalings and nothing of models."""

from mupscale.operators.duplicate import duplicate_scaled
from mupscale.operators.noise import Noise, add_noise_, normal

__all__ = ["Noise", "add_noise_", "duplicate_scaled", "normal"]
