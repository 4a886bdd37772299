"""Two models side by side, at rest and in lockstep: every growth is proved on tiny ones before it is used.

Knows plans, operators and optimizers; must not know of checkpoints or commands.
"""

from mupscale.proof.consistency import held_otherwise
from mupscale.proof.deviations import deviation, grown_call, grown_outputs, spread, watch
from mupscale.proof.lockstep import paired_optimizers
from mupscale.proof.proof import Proof, prove, prove_modules, tried

__all__ = [
    "Proof",
    "deviation",
    "grown_call",
    "grown_outputs",
    "held_otherwise",
    "paired_optimizers",
    "prove",
    "prove_modules",
    "spread",
    "tried",
    "watch",
]
