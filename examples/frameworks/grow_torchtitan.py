"""Grow a checkpoint of torchtitan's, moments and all, and let torchtitan train on from it.

    python examples/frameworks/grow_torchtitan.py [--noise none] [--out FOLDER]    # one process, on a CPU
    torchrun --nproc-per-node 2 examples/frameworks/grow_torchtitan.py             # sharded by FSDP2

`grow` is what to take over: torchtitan's own checkpoint manager loads the narrow model and its optimizer,
and saves the wide one's; between the two, every rank grows its own shard. What stands around it trains a
small model first and checks that nothing was lost. `make` builds torchtitan's Llama 3 of any width.

A wide model wants a learning rate for each kind of parameter, which torchtitan takes from its config and
not from the checkpoint: `groups_of` is the list for ``OptimizersContainer.Config(param_groups=...)``. Rates
are said as the narrow model's; its schedule multiplies them and may stay as it is.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from common import Framework, demonstrate, plan_of, sharded
from torch import nn
from torchtitan.components.checkpoint import CheckpointManager
from torchtitan.components.optimizer import OptimizersContainer, ParamGroupConfig
from torchtitan.components.optimizer.lr_scheduler import LRSchedulersContainer
from torchtitan.models import llama3
from torchtitan.models.common.attention import ScaledDotProductAttention

import mupscale
from mupscale.distributed import grow_

NARROW = {"lr": 3e-3, "betas": (0.9, 0.95), "weight_decay": 0.1}
STEP = 20  # of the checkpoint


def make(width: int) -> nn.Module:
    """torchtitan's Llama 3 at d_model 64 · width, its query, key and value projections fused."""
    # Its own attention, which knows documents, is compiled for a GPU; the weights are the same.
    llama3.get_attention_config = lambda backend: ScaledDotProductAttention.Config()
    dim = 64 * width
    rope = llama3.ComplexRoPE.Config(dim=16, max_seq_len=128, theta=500000, scaling="llama")
    model = llama3.Llama3Model.Config(
        dim=dim,
        vocab_size=256,
        tok_embeddings=llama3.Embedding.Config(
            num_embeddings=256, embedding_dim=dim, param_init=llama3._EMBEDDING_INIT
        ),
        norm=llama3.RMSNorm.Config(normalized_shape=dim, param_init=llama3._NORM_INIT),
        lm_head=llama3.Linear.Config(
            in_features=dim, out_features=256, param_init=llama3._output_linear_init(dim)
        ),
        layers=llama3._build_llama3_layers(
            n_layers=2,
            dim=dim,
            n_heads=4 * width,
            n_kv_heads=2 * width,
            hidden_dim=3 * dim,
            rope=rope,
            attn_backend="",
        ),
    ).build()
    model.init_states()
    return model


def grow(narrow_folder: Path, wide_folder: Path, noise: str | None) -> mupscale.Plan:
    """Load the narrow checkpoint, grow it, and save the wide one, for the same step."""
    plan = plan_of(make)
    narrow = sharded(make(1))
    optimizers = optimizers_of(narrow)
    manager(narrow_folder, narrow, optimizers).load(STEP)

    wide = grow_(narrow, sharded(make(2)), plan, operator="duplicate", noise=noise)
    wide_optimizers = optimizers_of(wide, plan)
    for own, theirs in zip(wide_optimizers, optimizers, strict=True):
        own.state.update(mupscale.carry_optimizer(theirs, narrow, wide, plan).state)
    manager(wide_folder, wide, wide_optimizers).save(STEP, last_step=True)
    return plan


def optimizers_of(model: nn.Module, plan: mupscale.Plan | None = None) -> OptimizersContainer:
    """torchtitan's AdamW; of a wide model by its plan."""
    everything = ParamGroupConfig(
        pattern=".*", optimizer_name="AdamW", optimizer_kwargs={**NARROW, "eps": 1e-8}
    )
    groups = [everything] if plan is None else groups_of(model, plan)
    config = OptimizersContainer.Config(param_groups=groups, implementation="for-loop")
    return OptimizersContainer(config, model_parts=[model])


def groups_of(wide: nn.Module, plan: mupscale.Plan) -> list[ParamGroupConfig]:
    """What `mupscale.param_groups` says, as torchtitan's config takes it."""
    return [
        ParamGroupConfig(
            pattern=f"^({'|'.join(map(re.escape, group['param_names']))})$",
            optimizer_name="AdamW",
            optimizer_kwargs={key: group[key] for key in (*NARROW, "eps")},
        )
        for group in mupscale.param_groups(wide, plan, torch.optim.AdamW, **NARROW)
    ]


def manager(folder: Path, model: nn.Module, optimizers: OptimizersContainer) -> CheckpointManager:
    """What saves and loads in torchtitan's trainer."""
    schedule = LRSchedulersContainer.Config(warmup_steps=1, total_steps=10_000)
    return CheckpointManager(
        CheckpointManager.Config(enable=True, interval=1, last_save_model_only=False),
        dataloader=None,
        model_parts=[model],
        optimizers=optimizers,
        lr_schedulers=schedule.build(optimizers=optimizers, training_steps=10_000),
        states={},
        sd_adapter=None,
        base_folder=str(folder),
    )


def load(folder: Path, model: nn.Module, optimizers: OptimizersContainer) -> None:
    manager(folder, model, optimizers).load(STEP)


def save(folder: Path, model: nn.Module, optimizers: OptimizersContainer) -> None:
    manager(folder, model, optimizers).save(STEP, last_step=True)


if __name__ == "__main__":
    demonstrate(
        Framework("torchtitan", make, optimizers_of, load, save, grow, plan=lambda: plan_of(make)), __doc__
    )
