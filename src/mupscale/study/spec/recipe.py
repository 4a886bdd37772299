"""How a run trains: its settings. Knows numbers and names; nothing of models, data or the training loop."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from mupscale.errors import GrowthError

OPTIMIZERS = ("adamw", "sgd", "muon")

# By the least that they may be; None may be anything.
_LEAST = {
    0: ("weight_decay", "eps", "warmup_steps", "max_grad_norm", "skip_blocks"),
    1: ("steps", "batch_size", "eval_every", "log_every", "eval_blocks", "save_every"),
}

LARGEST_SEED = 2**32 - 1  # that numpy takes
SCHEDULER = "warmup_stable_decay"  # of transformers


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that fixes a run besides the model and the data.

    Attributes:
        steps: optimizer steps.
        batch_size: sequences (or other items) in a step.
        block_size: tokens in a sequence; only text looks at it.
        lr: learning rate between warmup and cooldown. With a plan it is the narrow model's: the groups scale
            it.
        optimizer: adamw; sgd, whose weight decay is coupled; or muon, for the hidden matrices, with AdamW for
            the rest at the same lr (Muon's updates are brought to the size of AdamW's).
        weight_decay: on all but norms and biases; the narrow model's, likewise.
        betas, eps: AdamW's.
        momentum: SGD's and Muon's.
        warmup_steps: steps in which the learning rate rises linearly from zero.
        cooldown_fraction: share of all steps, at the end, in which it falls linearly to zero.
        max_grad_norm: largest gradient norm, 0 for no clipping; with a plan the width-invariant norm.
        seed: of the data order and of dropout.
        skip_blocks: blocks (items) of the seed's data stream to leave out: an earlier run has seen them.
        eval_every: steps between evaluations on the held-out data; step 0 and the last are always evaluated.
        eval_blocks: held-out blocks (items) to evaluate on, None for all.
        log_every: steps that one training loss is the mean of.
        save_every: steps between checkpoints to resume from; None saves ten times.
        bf16: compute in bfloat16; weights and optimizer stay in float32.
    """

    steps: int = 500
    batch_size: int = 16
    block_size: int = 128
    lr: float = 3e-3
    optimizer: str = "adamw"
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    momentum: float = 0.9
    warmup_steps: int = 20
    cooldown_fraction: float = 0.2
    max_grad_norm: float = 1.0
    seed: int = 0
    skip_blocks: int = 0
    eval_every: int = 50
    eval_blocks: int | None = 128
    log_every: int = 10
    save_every: int | None = None
    bf16: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))  # of JSON they are a list
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise GrowthError(f"{name} is {value}, expected a finite number")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise GrowthError(f"seed is {self.seed}, expected 0 to {LARGEST_SEED}")
        for least, names in _LEAST.items():
            for name in names:
                value = getattr(self, name)
                if value is not None and value < least:
                    wanted = f"at least {least}" if least else "0 or more"
                    raise GrowthError(f"{name} is {value}, expected {wanted}")
        if self.block_size < 2:
            raise GrowthError(
                f"block_size is {self.block_size}, expected at least 2: a token and the next one"
            )
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise GrowthError(f"betas are {self.betas}, expected two numbers from 0 to below 1")
        if not self.lr > 0:
            raise GrowthError(f"lr is {self.lr}, expected more than 0")
        if self.optimizer not in OPTIMIZERS:
            raise GrowthError(f"optimizer is {self.optimizer!r}, expected one of {', '.join(OPTIMIZERS)}")
        if not 0 <= self.momentum < 1:
            raise GrowthError(f"momentum is {self.momentum}, expected at least 0 and less than 1")
        if not 0 <= self.cooldown_fraction <= 1:
            raise GrowthError(f"cooldown_fraction is {self.cooldown_fraction}, expected 0 to 1")
        if self.warmup_steps + self.cooldown_steps > self.steps:
            raise GrowthError(
                f"warmup_steps {self.warmup_steps} and a cooldown of {self.cooldown_steps} do not fit into "
                f"{self.steps} steps; give more steps or a shorter warmup"
            )

    @property
    def cooldown_steps(self) -> int:
        """Steps of the cooldown."""
        return round(self.cooldown_fraction * self.steps)

    @property
    def schedule(self) -> dict[str, Any]:
        """What `SCHEDULER` needs to know besides the steps and the warmup."""
        return {"num_decay_steps": self.cooldown_steps, "warmup_type": "linear", "decay_type": "linear"}

    @property
    def cooldown_start(self) -> int:
        """The step at which the learning rate begins to fall; until then the length does not matter."""
        return self.steps - self.cooldown_steps
