"""Optimizers that keep their state in few bits: unpacked, grown and packed again (`make frameworks`)."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

import mupscale
from mupscale.operators.duplicate import duplicate_scaled
from mupscale.optim.packed import unpacked

pytestmark = pytest.mark.slow  # transformers takes longer to import where these packages are


def torchao():
    return pytest.importorskip("torchao.optim", reason="make frameworks installs torchao, and runs this")


def bitsandbytes():
    return pytest.importorskip("bitsandbytes", reason="make frameworks installs it, and runs this").optim


# In float32, which is what they are written for; the bound is what packing costs, over the largest of a block.
PACKING = {
    "adamw of torchao": (lambda p: torchao()._AdamW(p, lr=1e-3), 1e-6),
    "8 bits of torchao": (lambda p: torchao().AdamW8bit(p, lr=1e-3), 0.01),
    "8 bits, l2": (lambda p: torchao().Adam8bit(p, lr=1e-3, weight_decay=0.1), 0.01),
    "4 bits of torchao": (lambda p: torchao().AdamW4bit(p, lr=1e-3), 0.15),
    "float of 8 bits": (lambda p: torchao().AdamWFp8(p, lr=1e-3), 0.04),
    "adamw of bitsandbytes": (lambda p: bitsandbytes().AdamW(p, lr=1e-3, weight_decay=0.5), 1e-6),
    "adam of bitsandbytes": (lambda p: bitsandbytes().Adam(p, lr=1e-3, weight_decay=0.5), 1e-6),
    "8 bits of bitsandbytes": (lambda p: bitsandbytes().AdamW8bit(p, lr=1e-3), 0.01),
    "8 bits by an argument": (lambda p: bitsandbytes().AdamW(p, lr=1e-3, optim_bits=8), 0.01),
    "lion of 8 bits": (lambda p: bitsandbytes().Lion8bit(p, lr=1e-4), 0.01),
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
