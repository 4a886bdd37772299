"""The law of growth as an assertion: the wide model trains exactly as the narrow one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

import mupscale
from models import batch, build, loss_of, plan_source
from mupscale.models.calls import Call, result_tensors
from mupscale.models.precision import Float64
from mupscale.operators.duplicate import duplicate_scaled


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def assert_duplicates(narrow: nn.Module, wide: nn.Module, plan: mupscale.Plan, rtol: float = 1e-9) -> None:
    """θ↑ = s·dup(θ), but for key biases, whose gradient is zero save for rounding."""
    state = dict(narrow.named_parameters())
    for name, grown in wide.named_parameters():
        if name.endswith("k_proj.bias"):
            continue
        p = plan[name]
        theta = state[name].detach()
        expected = duplicate_scaled(theta, p.axes, plan.layout.sizes, plan.growth, p.weight_scale)
        error = (grown - expected).abs()
        if name.endswith("c_attn.bias"):  # q, k and v stand in one parameter: leave out the keys
            error = error.view(3, -1)[[0, 2]]
        if name.endswith("query_key_value.bias"):  # head by head
            error = error.view(wide.config.num_attention_heads, 3, -1)[:, [0, 2]]
        assert error.max() <= rtol * expected.abs().max(), name


def assert_lockstep(
    name: str, make: Make, growth: int, *, steps: int = 20, before: int = 10, max_norm: float | None = None
) -> None:
    """Train narrow ``before`` steps, grow it with its optimizer, train both on: losses are equal."""
    narrow = build(name).train()
    optimizer = make(list(narrow.parameters()))
    plan = mupscale.plan(plan_source(name, narrow), width=growth)

    def step(model: nn.Module, optim: torch.optim.Optimizer, seed: int, *, is_wide: bool) -> float:
        optim.zero_grad()
        loss = loss_of(model, batch(name, seed))
        loss.backward()
        if max_norm is not None and is_wide:
            mupscale.clip_grad_norm_(model, plan, max_norm)
        elif max_norm is not None:
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
            assert norm > max_norm, "the clip must be active"
        optim.step()
        return loss.item()

    # Optimizers keep scalars (ASGD's eta) in the default dtype.
    with Float64(), default_dtype(torch.float64):
        for i in range(before):
            step(narrow, optimizer, i, is_wide=False)
        wide = mupscale.grow(narrow, plan, noise=None, operator="duplicate")
        wide_optimizer = mupscale.carry_optimizer(optimizer, narrow, wide, plan)
        for i in range(before, before + steps):
            a = step(narrow, optimizer, i, is_wide=False)
            b = step(wide, wide_optimizer, i, is_wide=True)
            assert abs(a - b) <= 1e-10, f"step {i}: narrow {a}, wide {b}"
    assert_duplicates(narrow, wide, plan)
    for (_, x), (_, y) in zip(narrow.named_buffers(), wide.named_buffers(), strict=True):
        if x.is_floating_point() and x.shape != y.shape:
            torch.testing.assert_close(y, x.repeat_interleave(growth), rtol=1e-9, atol=0)


def assert_grows(make: Callable[[int], nn.Module], inputs: Any, width: int) -> mupscale.Plan:
    """A plain module is proved, and grown mid-training computes and trains on as the narrow one does."""
    plan = mupscale.plan(make, width=width, inputs=inputs)
    assert plan.proved, plan.inexact
    call, narrow = Call.of(inputs), make(1).double()
    optimizer = torch.optim.AdamW(narrow.parameters(), lr=3e-3, weight_decay=0.1)

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
        optimizer.zero_grad()
        loss = sum(t.square().mean() + t.mean() for t in result_tensors(call(model)))
        loss.backward()
        optimizer.step()
        return loss.item()

    with Float64(), default_dtype(torch.float64):
        for _ in range(3):
            step(narrow, optimizer)
        for noise in (None, "balanced:1"):
            report = mupscale.verify(
                narrow, mupscale.grow(narrow, plan, noise=noise, operator="duplicate"), plan, inputs
            )
            assert report.equal, report
            assert report.max_abs_diff < 1e-10, report
        wide = mupscale.grow(narrow, plan, noise=None, operator="duplicate")
        carried = mupscale.carry_optimizer(optimizer, narrow, wide, plan)
        for i in range(5):
            a, b = step(narrow, optimizer), step(wide, carried)
            assert abs(a - b) <= 1e-10, f"step {i}: narrow {a}, wide {b}"
    return plan


def value_by_name(model, optimizer, key):
    """A value of the groups of an optimizer, such as its learning rate, by the name of each parameter."""
    names = {id(p): n for n, p in model.named_parameters()}
    return {names[id(p)]: group[key] for group in optimizer.param_groups for p in group["params"]}
