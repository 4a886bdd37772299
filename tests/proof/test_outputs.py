"""Whatever a model returns its results in, all of them are compared, each by its own size."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mupscale
from mupscale import GrowthError
from mupscale.models.calls import result_tensors

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


class Pair(NamedTuple):
    logits: Tensor
    value: Tensor


@dataclass(slots=True)
class Slotted:
    logits: Tensor
    value: Tensor


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.d = 8 * width
        self.i, self.o = nn.Linear(4, self.d), nn.Linear(self.d, 3)
        self.register_buffer("legal", torch.tensor([False, True, True]))

    def hidden(self, x):
        return F.gelu(self.i(x))

    def of_width(self, h):
        """A number that goes by the width, and that no scale of a weight can mend."""
        return torch.tanh(F.layer_norm(h, (self.d,)).pow(4).sum(-1, keepdim=True) / 50)


def model(give):
    class Model(Net):
        def forward(self, x):
            h = self.hidden(x)
            return give(self, h)

    return Model


WRONG = {
    "beside logits": lambda m, h: Pair(m.o(h), m.of_width(h)),
    "in a slot": lambda m, h: Slotted(m.o(h), m.of_width(h)),
    "in a distribution": lambda m, h: torch.distributions.Normal(m.o(h) * m.of_width(h), 1.0),
    "in an object": lambda m, h: SimpleNamespace(deep=[SimpleNamespace(value=m.of_width(h))], y=m.o(h)),
    "beside -1e9": lambda m, h: (m.o(h) * (1 + 0.05 * m.of_width(h))).masked_fill(~m.legal, -1e9),
    "beside the least float": lambda m, h: (m.o(h) * m.of_width(h)).masked_fill(
        ~m.legal, torch.finfo(torch.float32).min
    ),
    "beside -inf": lambda m, h: (m.o(h) * m.of_width(h)).masked_fill(~m.legal, -torch.inf),
}


@pytest.mark.parametrize("where", WRONG)
def test_a_result_that_goes_by_the_width_is_seen(where):
    with pytest.raises(GrowthError, match="outputs differ"):
        mupscale.plan(model(WRONG[where]), width=2, inputs=X)


RIGHT = {
    "beside logits": lambda m, h: Pair(m.o(h), m.o(h).square()),
    "in a distribution": lambda m, h: torch.distributions.Normal(m.o(h), F.softplus(m.o(h))),
    "beside -1e9": lambda m, h: m.o(h).masked_fill(~m.legal, -1e9),
    "added to -1e9": lambda m, h: m.o(h) + torch.where(m.legal, 0.0, -1e9),
    "beside -inf": lambda m, h: m.o(h).masked_fill(~m.legal, -torch.inf),
    "hidden, its dim first": lambda m, h: (m.o(h), h.T),
    "hidden alone": lambda m, h: (m.o(h), h.mean(0)),
}


@pytest.mark.parametrize("where", RIGHT)
def test_results_that_copies_leave_as_they_are_are_proved(where):
    assert mupscale.plan(model(RIGHT[where]), width=2, inputs=X).proved


def test_a_loss_that_a_module_keeps_is_trained_on():
    class Kept(Net):
        def forward(self, x):
            h = self.hidden(x)
            self.auxiliary = self.penalty(h)
            return self.o(h)

    class Summed(Kept):
        def penalty(self, h):
            return h.square().sum(-1).mean()

    class Mean(Kept):
        def penalty(self, h):
            return h.square().mean()

    with pytest.raises(GrowthError, match="the losses differ"):
        mupscale.plan(Summed, width=2, inputs=X)
    assert mupscale.plan(Mean, width=2, inputs=X).proved


def test_an_object_that_holds_itself_is_read_once():
    held = SimpleNamespace(value=torch.ones(2))
    held.itself = held
    assert len(result_tensors(held)) == 1
