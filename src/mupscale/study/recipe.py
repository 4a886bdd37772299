"""How a run trains: its settings, and the optimizer that follows from them.

Knows the optimizer side of the core; nothing of data or of the training loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer

import mupscale
from mupscale.errors import GrowthError


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that fixes a run besides the model and the text.

    Attributes:
        steps: optimizer steps.
        batch_size: sequences in a step.
        block_size: tokens in a sequence.
        lr: learning rate between warmup and cooldown. With a plan it is the narrow model's: the groups scale
            it.
        weight_decay: AdamW's, on all but norms and biases; the narrow model's, likewise.
        betas, eps: AdamW's.
        warmup_steps: steps in which the learning rate rises linearly from zero.
        cooldown_fraction: share of all steps, at the end, in which it falls linearly to zero.
        max_grad_norm: largest gradient norm, 0 for no clipping; with a plan the width-invariant norm.
        seed: of the data order and of dropout.
        skip_blocks: blocks of the seed's data stream to leave out, because an earlier run has seen them.
        eval_every: steps between evaluations on the held-out text; step 0 and the last are always evaluated.
        eval_blocks: held-out blocks to evaluate on, None for all.
        log_every: steps that one training loss is the mean of.
        save_every: steps between checkpoints to resume from; None saves ten times.
        bf16: compute in bfloat16; weights and optimizer stay in float32.
    """

    steps: int = 500
    batch_size: int = 16
    block_size: int = 128
    lr: float = 3e-3
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
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
        for name in ("steps", "batch_size", "eval_every", "log_every"):
            if getattr(self, name) < 1:
                raise GrowthError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.block_size < 2:
            raise GrowthError(
                f"block_size is {self.block_size}, expected at least 2: a token and the next one"
            )
        if not self.lr > 0:
            raise GrowthError(f"lr is {self.lr}, expected more than 0")
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
    def cooldown_start(self) -> int:
        """The step at which the learning rate begins to fall; until then the length does not matter."""
        return self.steps - self.cooldown_steps


def build_optimizer(
    model: nn.Module, config: TrainConfig, plan: mupscale.Plan | None = None
) -> torch.optim.AdamW:
    """AdamW with the Trainer's split into decayed and undecayed parameters, scaled by the plan if any.

    Example:
        >>> optimizer = build_optimizer(torch.nn.Linear(2, 2), TrainConfig(weight_decay=0.3))
        >>> [(group["weight_decay"], len(group["params"])) for group in optimizer.param_groups]
        [(0.3, 1), (0.0, 1)]
    """
    decay = set(Trainer.get_decay_parameter_names(None, model))
    hyper: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "eps": config.eps}
    if plan is not None:
        groups = mupscale.param_groups(
            model, plan, torch.optim.AdamW, weight_decay=config.weight_decay, decay=decay, **hyper
        )
    else:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        groups = [
            {"params": [p for name, p in named if name in decay], "weight_decay": config.weight_decay},
            {"params": [p for name, p in named if name not in decay], "weight_decay": 0.0},
        ]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], **hyper)
    if plan is not None:
        mupscale.load_by_name(optimizer)
    return optimizer


def carried_optimizer(
    model: nn.Module, config: TrainConfig, plan: mupscale.Plan | None, checkpoint: Path
) -> torch.optim.AdamW:
    """The optimizer that a checkpoint holds, made ready for a fresh phase at `config.lr`.

    Raises:
        GrowthError: the checkpoint holds no optimizer, or one that does not fit the model.
    """
    path = checkpoint / "optimizer.pt"
    if not path.is_file():
        raise GrowthError(
            f"{path}: not there; grow the checkpoint with its optimizer, or start with a fresh one"
        )
    optimizer = build_optimizer(model, config, plan)
    ours = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if all("param_names" in group for group in saved["param_groups"]):
            params = dict(model.named_parameters())
            for group in saved["param_groups"]:
                for index, name in zip(group["params"], group["param_names"], strict=True):
                    if index in saved["state"]:
                        optimizer.state[params[name]] = saved["state"][index]
        else:
            optimizer.load_state_dict(saved)
    except (ValueError, KeyError, RuntimeError) as error:
        raise GrowthError(f"{path}: does not fit the model ({error}); start with a fresh optimizer") from None
    for group, values in zip(optimizer.param_groups, ours, strict=True):
        # The state is carried; learning rate, weight decay and the rest are this run's.
        params = group["params"]
        group.clear()
        group.update(params=params, **values)
    return optimizer
