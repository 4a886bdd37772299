"""Models written for microsoft/mup: base shapes, MuReadout, its optimizers. They grow as they are.

Such a model's forward pass goes by its width relative to a base, which every parameter carries as ``infshape``:
the wide model's has to be that of a model that mup itself made wide.
"""

from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import mupscale
from lockstep import value_by_name

mup = pytest.importorskip("mup")

VOCAB, PLACES = 17, 6
LR, DECAY = 1e-2, 0.1


class MLP(nn.Module):
    """The MLP of mup's own example."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, d), nn.Linear(d, d, bias=False)
        self.readout = mup.MuReadout(d, 3, output_mult=0.7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.readout(F.tanh(self.second(F.tanh(self.first(x)))))


class ConvNet(nn.Module):
    """Convolutions with BatchNorm and a skip."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(n, d, 3, padding=1, bias=False) for n in (3, d))
        self.norms = nn.ModuleList(nn.BatchNorm2d(d) for _ in range(2))
        self.readout = mup.MuReadout(d, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norms[0](self.first(x)).relu()
        h = h + self.norms[1](self.second(h)).relu()
        return self.readout(h.mean(dim=(2, 3)))


class Transformer(nn.Module):
    """A causal transformer whose scores are divided by head_dim, as μP wants it; ``tied`` shares the readout."""

    def __init__(self, d: int, *, tied: bool = False) -> None:
        super().__init__()
        self.heads = d // 4
        self.embedding = nn.Embedding(VOCAB, d)
        self.positions = nn.Embedding(PLACES, d)
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(3))
        self.q, self.k, self.v, self.out = (nn.Linear(d, d) for _ in range(4))
        self.up, self.down = nn.Linear(d, 2 * d), nn.Linear(2 * d, d)
        self.readout = (
            mup.MuSharedReadout(self.embedding.weight, bias=False)
            if tied
            else mup.MuReadout(d, VOCAB, readout_zero_init=True)
        )

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        h = self.embedding(ids) + self.positions(torch.arange(ids.shape[1]))
        normed = self.norms[0](h)
        q, k, v = (
            p(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q, self.k, self.v)
        )
        scores = q @ k.transpose(-2, -1) * (2 / q.shape[-1])
        future = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1)
        weights = scores.masked_fill(future, float("-inf")).softmax(dim=-1)
        h = h + self.out((weights @ v).transpose(1, 2).flatten(2))
        h = h + self.down(F.gelu(self.up(self.norms[1](h))))
        return self.readout(self.norms[2](h))


def tied(d: int) -> nn.Module:
    return Transformer(d, tied=True)


def at(make, base):
    """``make(width)`` with base shapes set, as mup's users build it; ``base`` is mup's, not the narrow one."""

    def build(width: int) -> nn.Module:
        model = make(8 * width)
        mup.set_base_shapes(model, make(base), delta=make(2 * base))
        return model

    return build


IDS = torch.randint(VOCAB, (4, PLACES), generator=torch.Generator().manual_seed(1))
FLOATS = torch.randn(12, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
IMAGES = torch.randn(6, 3, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
CASES = {
    "mlp": (MLP, FLOATS),
    "conv": (ConvNet, IMAGES),
    "transformer": (Transformer, IDS),
    "tied": (tied, IDS),
}
# MuAdam's L2 inside Adam is scaled as if it were decoupled (test_against_mup.py), so it has none here.
OPTIMIZERS = {
    "MuAdamW": lambda params: mup.MuAdamW(params, lr=LR, weight_decay=DECAY),
    "MuAdam": lambda params: mup.MuAdam(params, lr=LR),
    "MuSGD": lambda params: mup.MuSGD(params, lr=LR, momentum=0.9, weight_decay=DECAY),
}


@cache
def planned(name):
    make, inputs = CASES[name]
    build = at(make, base=4)
    return build, mupscale.plan(build, width=2, inputs=inputs), inputs


@pytest.fixture(params=CASES)
def case(request):
    """(the function that builds it, a trained-looking narrow model, its plan, inputs); base half as wide."""
    build, plan, inputs = planned(request.param)
    narrow = build(1).double()
    with torch.no_grad():
        for param in narrow.parameters():
            param.add_(torch.randn_like(param), alpha=0.1)
    return build, narrow, plan, inputs


def step(model, optimizer, x):
    optimizer.zero_grad()
    out = model(x)
    target = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    loss = (out - target).square().mean()
    loss.backward()
    optimizer.step()
    return loss.item()


def test_models_of_mup_are_proved_and_keep_their_base_shapes(case):
    build, narrow, plan, inputs = case
    assert plan.proved
    expected = mup.shape.get_infshapes(build(2))
    for noise in (None, "balanced:1"):
        wide = mupscale.grow(narrow, plan, noise=noise, operator="duplicate")
        assert mupscale.verify(narrow, wide, plan, inputs)
        assert (narrow.eval()(inputs) - wide.eval()(inputs)).abs().max() < 1e-10
        for name, param in wide.named_parameters():
            assert param.infshape == expected[name], name
            assert param.infshape.shape() == list(param.shape)
            assert param.infshape.width_mult() == expected[name].width_mult()


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_optimizers_of_mup_carry_on_in_lockstep_at_the_rates_that_mup_gives(case, make):
    _, narrow, plan, inputs = case
    optimizer = make(narrow.train().parameters())
    for _ in range(3):
        step(narrow, optimizer, inputs)
    wide = mupscale.grow(narrow, plan, noise=None, operator="duplicate")
    carried = mupscale.carry_optimizer(optimizer, narrow, wide, plan)
    theirs = make(wide.parameters())  # as mup's users would make it for a model of this width
    assert type(carried) is type(theirs)
    for key in ("lr", "weight_decay"):
        assert value_by_name(wide, carried, key) == pytest.approx(value_by_name(wide, theirs, key)), key
    for i in range(8):
        a, b = step(narrow, optimizer, inputs), step(wide, carried, inputs)
        assert abs(a - b) <= 1e-10, f"step {i}: narrow {a}, wide {b}"
    assert {n for n, p in wide.named_parameters() if p.grad is not None} == {
        n for n, _ in narrow.named_parameters()
    }


def test_a_grown_model_trains_on_under_mup_itself(case):
    """Base shapes are where mup looks for them: a fresh MuAdamW finds them, and the readout's forward pass."""
    build, narrow, plan, inputs = case
    wide = mupscale.grow(narrow, plan, operator="duplicate")
    optimizer = mup.MuAdamW(wide.parameters(), lr=LR)
    before = step(wide, optimizer, inputs)
    for _ in range(20):
        after = step(wide, optimizer, inputs)
    assert after < before
    mup.set_base_shapes(wide, build(1), delta=build(3), rescale_params=False)  # the narrow one as the base
    assert wide.readout.width_mult() == 2
