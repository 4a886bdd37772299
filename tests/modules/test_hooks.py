"""Hooks change what a module computes and how it trains: a grown model has them, and the proof runs with them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import mupscale
from mupscale import GrowthError

IDS = torch.randint(11, (4, 6), generator=torch.Generator().manual_seed(1))


class Hooked(nn.Module):
    """A small language model with hooks that a subclass registers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8 * width)
        self.middle = nn.Linear(8 * width, 8 * width)
        self.head = nn.Linear(8 * width, 3)
        self.hook(width)

    def hook(self, width: int) -> None: ...

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(F.gelu(self.middle(self.embedding(ids))))


class RowsFrozen(Hooked):
    """The first rows of the table stay as they are: their gradient is masked."""

    def hook(self, width: int) -> None:
        self.embedding.weight.register_hook(
            lambda grad: grad * (torch.arange(11) > 3)[:, None].to(grad.dtype)
        )


class HalvedAfterAccumulation(Hooked):
    def hook(self, width: int) -> None:
        def halve(param: nn.Parameter) -> None:
            param.grad.mul_(0.5)

        self.middle.weight.register_post_accumulate_grad_hook(halve)


class OutputsDoubled(Hooked):
    def hook(self, width: int) -> None:
        self.middle.register_forward_hook(lambda module, args, output: 2 * output)


class GradientByWidth(Hooked):
    """What no rule knows of: a gradient that is scaled by the width."""

    def hook(self, width: int) -> None:
        self.middle.weight.register_hook(lambda grad: grad * width)


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    optimizer.zero_grad()
    loss = (model(IDS) - torch.linspace(-1, 1, 3, dtype=torch.float64)).square().mean()
    loss.backward()
    optimizer.step()
    return loss.item()


@pytest.mark.parametrize("by", ["make", "modules"])
@pytest.mark.parametrize("make", [RowsFrozen, HalvedAfterAccumulation, OutputsDoubled])
def test_hooks_go_along(make, by):
    torch.manual_seed(0)
    narrow = make(1).double()
    if by == "make":
        plan = mupscale.plan(make, width=2, inputs=IDS)
    else:
        plan = mupscale.plan(narrow, to=make(2), inputs=IDS)
    optimizer = torch.optim.SGD(narrow.parameters(), lr=0.3, momentum=0.9)
    wide = mupscale.grow(narrow, plan, noise=None, operator="duplicate")
    wide_optimizer = mupscale.carry_optimizer(optimizer, narrow, wide, plan)
    for i in range(5):
        a, b = step(narrow, optimizer), step(wide, wide_optimizer)
        assert abs(a - b) <= 1e-10, f"step {i}: narrow {a}, wide {b}"


def test_a_hook_that_goes_by_width_is_refused():
    with pytest.raises(GrowthError, match="losses differ"):
        mupscale.plan(GradientByWidth, width=2, inputs=IDS)
