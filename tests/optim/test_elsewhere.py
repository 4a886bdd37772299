"""Optimizers of other packages: in lockstep, packed again as they pack, or refused."""

from contextlib import nullcontext

import bitsandbytes
import lion_pytorch
import pytest
import pytorch_optimizer
import schedulefree
import torch
import torchao.optim
from torch import nn

import mupscale
from lockstep import assert_lockstep
from mupscale import GrowthError
from mupscale.operators.duplicate import duplicate_scaled
from mupscale.optim.packed import unpacked


def trained(optimizer):
    optimizer.train()  # schedule-free ones have modes, as modules do
    return optimizer


OPTIMIZERS = {
    "lion": lambda p: lion_pytorch.Lion(p, lr=1e-4, weight_decay=0.1),
    "lion, decay without the rate": lambda p: lion_pytorch.Lion(
        p, lr=1e-4, weight_decay=1e-3, decoupled_weight_decay=True
    ),
    "lion of pytorch_optimizer": lambda p: pytorch_optimizer.Lion(p, lr=1e-4, weight_decay=0.1),
    "lion, l2": lambda p: pytorch_optimizer.Lion(p, lr=1e-4, weight_decay=0.1, weight_decouple=False),
    "ademamix": lambda p: pytorch_optimizer.AdEMAMix(p, lr=1e-3, weight_decay=0.1, weight_decouple=True),
    "ademamix, l2, uphill": lambda p: pytorch_optimizer.AdEMAMix(p, lr=1e-4, weight_decay=0.1, maximize=True),
    "ademamix, fixed decay": lambda p: pytorch_optimizer.AdEMAMix(
        p, lr=1e-3, weight_decay=1e-3, weight_decouple=True, fixed_decay=True, eps=1e-4
    ),
    "schedule-free adamw": lambda p: trained(
        schedulefree.AdamWScheduleFree(p, lr=3e-3, weight_decay=0.1, warmup_steps=15)
    ),
    "schedule-free sgd": lambda p: trained(
        schedulefree.SGDScheduleFree(p, lr=0.02, weight_decay=0.01, warmup_steps=15)
    ),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ["mlp", "llama_tied"])
def test_grown_mid_training_stays_in_lockstep(name, optimizer):
    assert_lockstep(name, OPTIMIZERS[optimizer], 3)


# In float32, which is what they are written for; the bound is what packing costs, over the largest of a block.
PACKING = {
    "adamw of torchao": (lambda p: torchao.optim._AdamW(p, lr=1e-3), 1e-6),
    "8 bits of torchao": (lambda p: torchao.optim.AdamW8bit(p, lr=1e-3), 0.01),
    "8 bits, l2": (lambda p: torchao.optim.Adam8bit(p, lr=1e-3, weight_decay=0.1), 0.01),
    "4 bits of torchao": (lambda p: torchao.optim.AdamW4bit(p, lr=1e-3), 0.15),
    "float of 8 bits": (lambda p: torchao.optim.AdamWFp8(p, lr=1e-3), 0.04),
    "adamw of bitsandbytes": (lambda p: bitsandbytes.optim.AdamW(p, lr=1e-3, weight_decay=0.5), 1e-6),
    "adam of bitsandbytes": (lambda p: bitsandbytes.optim.Adam(p, lr=1e-3, weight_decay=0.5), 1e-6),
    "8 bits of bitsandbytes": (lambda p: bitsandbytes.optim.AdamW8bit(p, lr=1e-3), 0.01),
    "8 bits by an argument": (lambda p: bitsandbytes.optim.AdamW(p, lr=1e-3, optim_bits=8), 0.01),
    "lion of 8 bits": (lambda p: bitsandbytes.optim.Lion8bit(p, lr=1e-4), 0.01),
}


def make(width):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(32, 64 * width),
        nn.ReLU(),
        nn.Linear(64 * width, 64 * width),
        nn.ReLU(),
        nn.Linear(64 * width, 8),
    )


def train(model, optimizer, steps):
    """The narrow model's sizes lie on both sides of the 4096 numbers from which on state is packed."""
    losses = []
    for step in steps:
        x = torch.randn(32, 32, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss = (model(x) - x[:, :8].sin()).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", PACKING)
def test_packed_state_is_unpacked_grown_and_packed_again(name):
    build, bound = PACKING[name]
    narrow, plan = make(1), mupscale.plan(make, width=2)
    optimizer = build(narrow.parameters())
    train(narrow, optimizer, range(5))
    wide = mupscale.grow(narrow, plan, operator="duplicate", noise=None)
    packs = pytest.warns(UserWarning, match=r"packed again, by which it is off by up to \d+\.\d%")
    with packs if bound > 1e-3 else nullcontext():
        carried = mupscale.carry_optimizer(optimizer, narrow, wide, plan)
    own = dict(narrow.named_parameters())
    degrees = {"exp_avg": 1, "exp_avg_sq": 2, "state1": 1, "state2": 2}
    for key, param in wide.named_parameters():
        p, before, after = plan[key], unpacked(optimizer.state[own[key]]), unpacked(carried.state[param])
        for kind in degrees.keys() & before.keys():
            scale = float(p.grad_scale) ** degrees[kind]
            due = duplicate_scaled(before[kind], p.axes, plan.layout.sizes, plan.growth, scale)
            block = 128 if name == "4 bits of torchao" else 256
            for a, b in zip(due.flatten().split(block), after[kind].flatten().split(block), strict=True):
                assert (a - b).abs().max() <= bound * a.abs().max(), (key, kind)
    further = range(5, 15)
    a, b = train(narrow, optimizer, further), train(wide, carried, further)
    assert b == pytest.approx(a, rel=1e-4 if bound < 1e-3 else 0.02)
    assert a[-1] < a[0]


def test_an_optimizer_that_turns_gradients_is_refused():
    narrow, plan = make(1), mupscale.plan(make, width=2)
    with pytest.raises(GrowthError, match="'SOAP' has no scaling rule: it turns gradients by matrices"):
        mupscale.param_groups(narrow, plan, pytorch_optimizer.SOAP, lr=1e-3)
