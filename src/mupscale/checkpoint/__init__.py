"""Checkpoint directories: weights and optimizer files, read and written by tensor, whole or not at all.

Knows files, tensors and what transformers does with them; must not know of proofs or operators: what a weight
grows into is told to it.
"""

from mupscale.checkpoint.reader import Checkpoint
from mupscale.checkpoint.staging import copy_companions, copy_pooling, staged
from mupscale.checkpoint.training_state import grow_training_state, training_state_bytes
from mupscale.checkpoint.writer import TensorSpec, write_weights

__all__ = [
    "Checkpoint",
    "TensorSpec",
    "copy_companions",
    "copy_pooling",
    "grow_training_state",
    "staged",
    "training_state_bytes",
    "write_weights",
]
