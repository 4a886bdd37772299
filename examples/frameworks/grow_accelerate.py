"""Grow a checkpoint that accelerate, and by it a Trainer, leaves under FSDP2 with sharded state dicts.

    python examples/frameworks/grow_accelerate.py [--noise none] [--out FOLDER]    # one process, on a CPU
    torchrun --nproc-per-node 2 examples/frameworks/grow_accelerate.py             # sharded by FSDP2

`grow` is what to take over: accelerate loads ``pytorch_model_fsdp_0`` and ``optimizer_0`` into the narrow
model and its optimizer, and saves the wide one's; between the two, every rank grows its own shard. What
stands around it trains a small model first and checks that nothing was lost. `make` builds a Llama.

Such a folder holds no config.json; the wide model's is written beside its weights.
"""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import load_fsdp_model, load_fsdp_optimizer, save_fsdp_model, save_fsdp_optimizer
from common import Framework, demonstrate, sharded
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import mupscale
from mupscale.distributed import grow_

NARROW = {"lr": 3e-3, "betas": (0.9, 0.95), "weight_decay": 0.1}


def config_of(width: int) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=64 * width,
        intermediate_size=192 * width,
        num_hidden_layers=2,
        num_attention_heads=4 * width,
        num_key_value_heads=2 * width,
        vocab_size=256,
        max_position_embeddings=128,
    )


def make(width: int) -> nn.Module:
    """A Llama of bytes at d_model 64 · width."""
    return LlamaForCausalLM(config_of(width))


def planned() -> mupscale.Plan:
    return mupscale.plan(config_of(1), width=2)


def grow(narrow_folder: Path, wide_folder: Path, noise: str | None) -> mupscale.Plan:
    """Load the narrow checkpoint, grow it, and save the wide one."""
    plan = planned()
    narrow = sharded(make(1))
    optimizer = optimizer_of(narrow)
    load(narrow_folder, narrow, optimizer)

    wide = grow_(narrow, sharded(make(2)), plan, operator="duplicate", noise=noise)
    wide_optimizer = optimizer_of(wide, plan)
    wide_optimizer.state.update(mupscale.carry_optimizer(optimizer, narrow, wide, plan).state)
    save(wide_folder, wide, wide_optimizer)
    wide.config.save_pretrained(wide_folder)
    return plan


def optimizer_of(model: nn.Module, plan: mupscale.Plan | None = None) -> torch.optim.Optimizer:
    """AdamW; of a wide model by its plan."""
    groups = mupscale.param_groups(model, plan, torch.optim.AdamW, **NARROW) if plan else model.parameters()
    return torch.optim.AdamW(groups, **NARROW)


def load(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    load_fsdp_model(plugin(), Accelerator(cpu=True), model, folder)
    load_fsdp_optimizer(plugin(), Accelerator(cpu=True), optimizer, model, folder)


def save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    save_fsdp_model(plugin(), Accelerator(cpu=True), model, folder)
    save_fsdp_optimizer(plugin(), Accelerator(cpu=True), optimizer, model, folder)


def plugin() -> FullyShardedDataParallelPlugin:
    return FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type="SHARDED_STATE_DICT")


if __name__ == "__main__":
    demonstrate(Framework("accelerate", make, optimizer_of, load, save, grow, planned), __doc__)
