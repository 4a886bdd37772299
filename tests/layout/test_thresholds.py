"""Values at which something is cut off: one small run may reach none of them, and shows nothing then."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import mupscale
from mupscale import GrowthError

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first, self.last = nn.Linear(8, 16 * width), nn.Linear(16 * width, 3)

    def forward(self, x):
        return self.last(self.hidden(self.first(x).tanh()))


class Deeper(Net):
    def __init__(self, width):
        super().__init__(width)
        self.middle = nn.Linear(16 * width, 16 * width)


class CutByNorm(Net):
    def hidden(self, h):
        return h * (10 / h.norm()) if h.norm() > 10 else h


class CutWeight(Deeper):
    def hidden(self, h):
        return h + F.linear(h, self.middle.weight.clamp(-1.5, 1.5), self.middle.bias)


class CutByTable(Net):
    def __init__(self, width):
        super().__init__(width)
        self.register_buffer("limit", torch.tensor(10.0))

    def hidden(self, h):
        norm = h.norm(dim=-1, keepdim=True)
        return torch.where(norm > self.limit, h * (self.limit / norm), h)


class CutInPython(Net):
    def hidden(self, h):
        return h * (10 / norm) if (norm := h.norm().item()) > 10 else h


@pytest.mark.parametrize(
    ("kind", "operator"),
    [(CutByNorm, "gt"), (CutWeight, "clamp"), (CutByTable, "gt"), (CutInPython, "item")],
)
def test_a_number_that_cuts_off_what_grows_is_refused_though_no_run_reaches_it(kind, operator):
    with pytest.raises(
        GrowthError, match=f"{kind.__name__}: the model: {operator} compares with a fixed number"
    ):
        mupscale.plan(kind, width=2, inputs=X)


class CutMean(Net):
    def hidden(self, h):
        return h.masked_fill(h.square().mean(-1, keepdim=True) > 0.8, 0.0)


class Guarded(Net):
    def hidden(self, h):
        norm = h.norm(dim=-1, keepdim=True)
        return h.masked_fill((norm < 1e-6) | (norm > 1e30), 0.0)


class CutByLearned(Deeper):
    """At a threshold of each unit's own."""

    def __init__(self, width):
        super().__init__(width)
        self.limit = nn.Parameter(torch.full((16 * width,), 0.3))

    def hidden(self, h):
        return torch.where(self.middle(h) > self.limit, self.middle(h), 0.1 * h)


class CutByOther(Deeper):
    """What grows, by what grows as much."""

    def hidden(self, h):
        return h.masked_fill(
            h.norm(dim=-1, keepdim=True) > 2 * self.middle(h).norm(dim=-1, keepdim=True), 0.0
        )


class MeanInPython(Net):
    def hidden(self, h):
        return h if h.square().mean().item() < 0.8 else 0.1 * h


@pytest.mark.parametrize("kind", [CutMean, Guarded, CutByLearned, CutByOther, MeanInPython])
def test_what_grows_not_may_be_cut_off_and_what_grows_guarded(kind):
    plan, narrow = mupscale.plan(kind, width=2, inputs=X), kind(1)
    with torch.no_grad():
        narrow.first.weight.mul_(20)
    assert mupscale.verify(narrow, mupscale.grow(narrow, plan, operator="duplicate"), plan, X)


class ScaledAndCut(Deeper):
    def hidden(self, h):
        weight = (self.middle.weight / 0.5).clamp(-6, 6) * 0.5
        return F.linear(h.relu(), weight, self.middle.bias).relu()


def test_a_weight_that_is_cut_off_gets_no_noise():
    plan, narrow = mupscale.plan(ScaledAndCut, width=2, inputs=X), ScaledAndCut(1)
    assert not plan["middle.weight"].has_noise
    with torch.no_grad():
        narrow.middle.weight.mul_(10)  # trained, beyond what the proof's own weights reach
    assert mupscale.verify(narrow, mupscale.grow(narrow, plan, operator="duplicate"), plan, X)


class CutActivations(Deeper):
    def __init__(self, width):
        super().__init__(width)
        self.first = nn.Embedding(20, 16 * width)

    def hidden(self, h):
        return self.middle(h.clamp(-0.9, 0.9)).clamp(-2, 2)


def test_weights_whose_results_are_cut_off_get_noise():
    plan = mupscale.plan(CutActivations, width=2, inputs=torch.arange(12).reshape(3, 4))
    assert plan["middle.weight"].has_noise


class CutGradient(Deeper):
    def hidden(self, h):
        if h.requires_grad:
            h.register_hook(lambda grad: grad.clamp(-0.5, 0.5))
        return self.middle(h).tanh()


def test_gradients_that_are_cut_off_are_refused():
    with pytest.raises(GrowthError, match=r"outputs agree, but after \d steps of AdamW"):
        mupscale.plan(CutGradient, width=2, inputs=X)
