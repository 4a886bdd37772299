"""Grow a checkpoint of OLMo-core's, moments and all, and let OLMo-core train on from it.

    python examples/frameworks/grow_olmo_core.py [--noise none] [--out FOLDER]     # one process, on a CPU
    torchrun --nproc-per-node 2 examples/frameworks/grow_olmo_core.py              # sharded by FSDP2

`grow` is what to take over: OLMo-core loads the narrow model and its optimizer, as it saves them in
``stepN/model_and_optim``, and saves the wide one's; between the two, every rank grows its own shard. What
stands around it trains a small model first and checks that nothing was lost. `make` builds a Llama.

A wide model wants a learning rate for each kind of parameter: `overrides_of` is the list for the optimizer
config's ``group_overrides``. Rates are said as the narrow model's.
"""

from __future__ import annotations

from pathlib import Path

import torch
from common import Framework, demonstrate, plan_of, sharded
from olmo_core.distributed.checkpoint import load_model_and_optim_state, save_model_and_optim_state
from olmo_core.nn.transformer import TransformerConfig
from olmo_core.optim import AdamWConfig, OptimGroupOverride
from torch import nn

import mupscale
from mupscale.distributed import grow_

NARROW = {"lr": 3e-3, "betas": (0.9, 0.95), "weight_decay": 0.1}


def make(width: int) -> nn.Module:
    """OLMo-core's Llama at d_model 64 · width."""
    config = TransformerConfig.llama_like(
        d_model=64 * width,
        vocab_size=256,
        n_layers=2,
        n_heads=4 * width,
        n_kv_heads=2 * width,
        hidden_size_multiple_of=16,
    )
    model = config.build(init_device="cpu")
    model.init_weights(device=torch.device("cpu"))
    return model


def grow(narrow_folder: Path, wide_folder: Path, noise: str | None) -> mupscale.Plan:
    """Load the narrow checkpoint, grow it, and save the wide one."""
    plan = plan_of(make)
    narrow = sharded(make(1))
    optimizer = optimizer_of(narrow)
    load_model_and_optim_state(narrow_folder, narrow, optimizer)

    wide = grow_(narrow, sharded(make(2)), plan, operator="duplicate", noise=noise)
    wide_optimizer = optimizer_of(wide, plan)
    wide_optimizer.state.update(mupscale.carry_optimizer(optimizer, narrow, wide, plan).state)
    save_model_and_optim_state(wide_folder, wide, wide_optimizer)
    return plan


def optimizer_of(model: nn.Module, plan: mupscale.Plan | None = None) -> torch.optim.Optimizer:
    """OLMo-core's AdamW; of a wide model by its plan."""
    return AdamWConfig(**NARROW, group_overrides=overrides_of(model, plan) if plan else None).build(model)


def overrides_of(wide: nn.Module, plan: mupscale.Plan) -> list[OptimGroupOverride]:
    """What `mupscale.param_groups` says, as OLMo-core's config takes it."""
    groups = mupscale.param_groups(wide, plan, torch.optim.AdamW, **NARROW)
    keys = ("lr", "eps", "weight_decay")
    return [
        OptimGroupOverride(params=group["param_names"], opts={key: group[key] for key in keys})
        for group in groups
    ]


if __name__ == "__main__":
    demonstrate(
        Framework(
            "OLMo-core",
            make,
            optimizer_of,
            load_model_and_optim_state,
            save_model_and_optim_state,
            grow,
            plan=lambda: plan_of(make),
        ),
        __doc__,
    )
