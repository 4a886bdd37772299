"""Memory that several tensors stand for, and modules that several models hold: right, refused, and left alone."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import mupscale
from mupscale import GrowthError

X = torch.randn(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class MLP(nn.Module):
    """Three layers, in float64 from the start: what is converted afterwards shares no memory any more."""

    def __init__(self, width: int) -> None:
        super().__init__()
        d = 8 * width
        self.first = nn.Linear(5, d, dtype=torch.float64)
        self.middle = nn.Linear(d, d, bias=False, dtype=torch.float64)
        self.last = nn.Linear(d, 3, dtype=torch.float64)
        self.share()

    def share(self) -> None:
        pass

    def between(self, h: torch.Tensor) -> torch.Tensor:
        return self.middle(h)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(F.gelu(self.between(F.gelu(self.first(x)))))


class TiedByData(MLP):
    """Two parameters, one memory: a tie as it should not be written, but is."""

    def share(self) -> None:
        self.other = nn.Linear(*self.middle.weight.shape, bias=False, dtype=torch.float64)
        self.other.weight.data = self.middle.weight.data

    def between(self, h: torch.Tensor) -> torch.Tensor:
        return self.other(F.gelu(self.middle(h)))


class OneTensorTwoParameters(MLP):
    def share(self) -> None:
        self.other = nn.Parameter(self.middle.weight.data)

    def between(self, h: torch.Tensor) -> torch.Tensor:
        return self.middle(h) * torch.sigmoid(h @ self.other.T)


class BufferOfAParameter(MLP):
    """What reads a parameter without a gradient: a buffer on its memory follows it as it trains."""

    def share(self) -> None:
        self.register_buffer("held", self.last.bias.detach(), persistent=False)

    def between(self, h: torch.Tensor) -> torch.Tensor:
        return self.middle(h) * self.held.mean()


class KeptBufferOfAParameter(BufferOfAParameter):
    def share(self) -> None:
        self.register_buffer("held", self.last.bias.detach())


class ViewOfAParameter(BufferOfAParameter):
    def share(self) -> None:
        self.held = self.last.bias.data[:1]


class Halves(MLP):
    """Two parameters in one piece of memory, each in its own half: they share nothing."""

    def share(self) -> None:
        d = len(self.middle.weight)
        both = torch.randn(2 * d, d, dtype=torch.float64) / 3
        self.left, self.right = nn.Parameter(both[:d]), nn.Parameter(both[d:])

    def between(self, h: torch.Tensor) -> torch.Tensor:
        return self.middle(h) + (h @ self.left.T) * (h @ self.right.T)


class OneBufferTwice(MLP):
    def share(self) -> None:
        table = torch.randn(len(self.middle.weight), dtype=torch.float64)
        self.register_buffer("table", table)
        self.register_buffer("again", table)

    def between(self, h: torch.Tensor) -> torch.Tensor:
        return self.middle(h) * self.table + self.again


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    optimizer.zero_grad()
    loss = (model(X) - torch.linspace(-1, 1, len(X), dtype=X.dtype)[:, None]).square().mean()
    loss.backward()
    optimizer.step()
    return loss.item()


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (TiedByData, "middle.weight and other.weight"),
        (OneTensorTwoParameters, "middle.weight and other"),
        *(
            (make, "held and last.bias")
            for make in (BufferOfAParameter, KeptBufferOfAParameter, ViewOfAParameter)
        ),
    ],
)
def test_two_tensors_on_one_memory_are_refused_by_name(make, names):
    with pytest.raises(GrowthError, match=f"^{names}: two tensors share one memory, .* make them one"):
        mupscale.plan(make, width=2, inputs=X)


@pytest.mark.parametrize("make", [Halves, OneBufferTwice])
def test_what_shares_memory_but_nothing_in_it_grows(make):
    torch.manual_seed(0)
    narrow = make(1)
    optimizer = torch.optim.AdamW(narrow.parameters(), lr=1e-2)
    plan = mupscale.plan(make, width=2, inputs=X)
    step(narrow, optimizer)
    wide = mupscale.grow(narrow, plan, noise=None, operator="duplicate")
    wide_optimizer = mupscale.carry_optimizer(optimizer, narrow, wide, plan)
    assert mupscale.verify(narrow, wide, plan, X, optimizer=wide_optimizer)
    for i in range(5):
        a, b = step(narrow, optimizer), step(wide, wide_optimizer)
        assert abs(a - b) <= 1e-10, f"step {i}: narrow {a}, wide {b}"


def test_memory_shared_after_planning_is_seen_too():
    class Plain(OneTensorTwoParameters):
        def share(self) -> None:
            self.other = nn.Parameter(self.middle.weight.data.clone())

    torch.manual_seed(0)
    plan = mupscale.plan(Plain, width=2, inputs=X)
    narrow = Plain(1)
    wide = mupscale.grow(narrow, plan, noise=None, operator="duplicate")
    assert mupscale.verify(narrow, wide, plan, X)
    narrow.other.data = narrow.middle.weight.data
    with pytest.raises(GrowthError, match="other"):
        mupscale.grow(narrow, plan, operator="duplicate")
    narrow = Plain(1)
    wide = mupscale.grow(narrow, plan, noise=None, operator="duplicate")
    wide.other.data = wide.middle.weight.data = wide.middle.weight.data.clone()
    assert not mupscale.verify(narrow, wide, plan, X)


BACKBONE = nn.Linear(5, 6, dtype=torch.float64)


class OnABackbone(nn.Module):
    """Holds a module from outside, as pretrained backbones are: the same one at every width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.backbone = BACKBONE
        self.first = nn.Linear(6, 8 * width, dtype=torch.float64)
        self.last = nn.Linear(8 * width, 3, dtype=torch.float64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(F.gelu(self.first(self.backbone(x))))


@pytest.mark.parametrize("trained", [True, False])
def test_a_module_that_models_of_all_widths_hold_is_left_as_it_is(trained):
    BACKBONE.requires_grad_(trained)
    before = copy.deepcopy(BACKBONE.state_dict())
    plan = mupscale.plan(OnABackbone, width=2, inputs=X)
    narrow = OnABackbone(1)
    wide = mupscale.grow(narrow, plan, operator="duplicate")
    assert mupscale.verify(narrow, wide, plan, X, steps=2)
    for name, tensor in BACKBONE.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert BACKBONE.weight.requires_grad == trained
    assert plan.proved
    assert (narrow(X) - wide(X)).abs().max() < 1e-12


@pytest.mark.parametrize("by", ["make", "modules"])
def test_planning_growing_and_verifying_leave_everything_as_it_was(by):
    torch.manual_seed(0)
    narrow, target = MLP(1), MLP(2)
    before = [copy.deepcopy(m.state_dict()) for m in (narrow, target)]
    drawn = torch.get_rng_state()
    plan = mupscale.plan(narrow, to=target, inputs=X) if by == "modules" else None
    plan = plan or mupscale.plan(lambda w: copy.deepcopy((narrow, target)[w - 1]), width=2, inputs=X)
    wide = mupscale.grow(narrow, plan, operator="duplicate")
    assert mupscale.verify(narrow, wide, plan, X, steps=2)
    assert torch.equal(torch.get_rng_state(), drawn)
    for model, state in zip((narrow, target), before, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
        assert all(p.grad is None and p.requires_grad for p in model.parameters())
    owned = {p.data_ptr() for m in (narrow, target) for p in m.parameters()}
    assert not owned & {p.data_ptr() for p in wide.parameters()}
