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


class CutRows(Deeper):
    """Rows of a weight are cut to a norm, as braindecode's layers do."""

    def hidden(self, h):
        self.middle.weight.data = torch.renorm(self.middle.weight.data, p=2, dim=0, maxnorm=3.0)
        return self.middle(h)


@pytest.mark.parametrize(
    ("kind", "operator"),
    [
        (CutByNorm, "gt"),
        (CutWeight, "clamp"),
        (CutByTable, "gt"),
        (CutInPython, "item"),
        (CutRows, "renorm"),
    ],
)
def test_a_number_that_cuts_off_what_grows_is_refused_though_no_run_reaches_it(kind, operator):
    with pytest.raises(
        GrowthError, match=f"{kind.__name__}: the model: {operator} compares with a fixed number"
    ):
        mupscale.plan(kind, width=2, inputs=X)


class Beside(nn.Module):
    """What some sum over hidden units comes to, beside an output that lets no weight make up for it."""

    def __init__(self, width, found):
        super().__init__()
        self.first, self.last, self.found = nn.Linear(8, 16 * width), nn.Linear(16 * width, 3), found

    def forward(self, x):
        h = F.gelu(self.first(x))
        return self.last(h) + self.found(h)


def norm(h):
    return h.norm(dim=-1, keepdim=True)


def positive(h):
    return (h > 0).sum(-1, keepdim=True)


HIDDEN = {
    "relu": lambda h: F.relu(norm(h) - 50),
    "abs": lambda h: (50 - norm(h) * 2).abs() + norm(h) * 2,
    "gt": lambda h: (norm(h) - 50 > 0).double(),
    "clamp_min": lambda h: (norm(h) - 50).clamp_min(0.0),
    "sign": lambda h: torch.sign(norm(h) - 50),
    "huber_loss": lambda h: F.huber_loss(norm(h), 0 * norm(h), reduction="none", delta=50) - norm(h) ** 2 / 2,
    "smooth_l1_loss": lambda h: (
        F.smooth_l1_loss(norm(h), 0 * norm(h), reduction="none", beta=50) * 100 - norm(h) ** 2
    ),
    "minimum": lambda h: torch.minimum(norm(h), torch.tensor(50.0)) - norm(h),
    "floor": lambda h: torch.floor(norm(h) / 50),
    "ceil": lambda h: torch.ceil(norm(h) / 50),
    "trunc": lambda h: torch.trunc(norm(h) / 50),
    "round": lambda h: torch.round(norm(h) / 50),
    "frac": lambda h: torch.frac(norm(h) / 50) - norm(h) / 50,
    "remainder": lambda h: norm(h) % 50 - norm(h),
    "div": lambda h: norm(h).div(50, rounding_mode="floor"),
    "floor_divide": lambda h: norm(h) // 50,
    "hardsigmoid": lambda h: F.hardsigmoid(norm(h) - 50),
    "hardswish": lambda h: F.hardswish(norm(h) - 50),
    "softshrink": lambda h: F.softshrink(norm(h) / 50),
    "a cast to whole numbers": lambda h: (norm(h) / 50).long().double(),
    "bucketize": lambda h: torch.bucketize(norm(h), torch.tensor([50.0, 100.0], dtype=h.dtype)).double(),
    "searchsorted": lambda h: torch.searchsorted(
        torch.tensor([50.0, 100.0], dtype=h.dtype), norm(h)
    ).double(),
    "item": lambda h: float(max(norm(h.detach()).flatten().tolist()) > 50),
    "lt": lambda h: (norm(h) < 1e-5).double(),
}
COUNTED = {
    "gt": lambda h: (positive(h) > 30).double(),
    "ge": lambda h: (positive(h) >= torch.tensor(30)).double(),
    "lt": lambda h: (torch.arange(30, 36)[:, None] < positive(h)).double(),
    "eq": lambda h: (positive(h) == 31).double(),
    "floor_divide": lambda h: (positive(h) // 100).double(),
    "item": lambda h: float(int((h > 0).sum()) > 6 * 31),
}


@pytest.mark.parametrize(
    ("operator", "found"),
    [*HIDDEN.items(), *COUNTED.items(), ("item", lambda h: float(norm(h.detach()).numpy().max() > 50))],
)
def test_a_sum_that_bends_or_is_rounded_out_of_sight_is_refused(operator, found):
    with pytest.raises(GrowthError, match=f"Beside: the model: {operator} compares with a fixed number"):
        mupscale.plan(lambda width: Beside(width, found), width=2, inputs=0.3 * X)


SIZE = torch.tensor(7.5)
ALIKE = {
    "counts beside sizes": lambda h: (positive(h) > h.shape[-1] // 2).double(),
    "shares": lambda h: ((h > 0).double().mean(-1, keepdim=True) > 0.5).double(),
    "counts over sizes": lambda h: (positive(h) / h.shape[-1] > 0.5).double(),
    "sums beside sizes": lambda h: (h.sum(-1, keepdim=True) > 0.1 * h.shape[-1]).double(),
    "sums of both sides": lambda h: torch.maximum(norm(h), 2 * norm(h.relu())) / norm(h),
    "remainders of both sides": lambda h: norm(h) % norm(h.relu()) / norm(h),
    "how many times": lambda h: norm(h).div(norm(h.relu()) / 9, rounding_mode="floor"),
    "rounded means": lambda h: torch.round(10 * h.square().mean(-1, keepdim=True)),
    "casts of means": lambda h: (50 * h.square().mean(-1, keepdim=True)).long().double(),
    "buckets of means": lambda h: torch.bucketize(h.mean(-1, keepdim=True), SIZE.to(h.dtype)[None]).double(),
    "guarded": lambda h: F.relu(norm(h) + 1e-13) / torch.maximum(norm(h), torch.tensor(1e-13)),
    "largest entries": lambda h: h.amax(-1, keepdim=True) + h.max(-1, keepdim=True).values.round(),
    "numbers by themselves": lambda h: (
        h.mean(-1, keepdim=True) * int((torch.tensor(h.shape[-1]).sqrt() / 100).ceil())
    ),
    "nothing": lambda h: F.relu(h.tanh() + 0 * norm(h)).mean(-1, keepdim=True),
}


@pytest.mark.parametrize("found", ALIKE.values(), ids=ALIKE)
def test_what_changes_alike_on_both_sides_is_not(found):
    plan = mupscale.plan(lambda width: Beside(width, found), width=2, inputs=X)
    narrow = Beside(1, found)
    with torch.no_grad():
        narrow.first.weight.mul_(20)
    assert mupscale.verify(narrow, mupscale.grow(narrow, plan, operator="duplicate"), plan, X)


@pytest.mark.parametrize("p", [1, 2, 4, float("inf")])
def test_vectors_divided_by_any_norm_of_theirs_grow(p):
    class Normed(Net):
        def hidden(self, h):
            return F.normalize(h, p=p, dim=-1) + h / torch.linalg.vector_norm(h, p, dim=-1, keepdim=True)

    assert mupscale.plan(Normed, width=2, inputs=X).proved


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
