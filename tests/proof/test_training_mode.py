"""What shows in training alone, or not at random draws, or at exact values of buffers alone, is seen, too."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import mupscale
from mupscale import GrowthError

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two layers, with something done to the hidden one."""

    def __init__(self, width):
        super().__init__()
        self.d = 8 * width
        self.first, self.last = nn.Linear(4, self.d), nn.Linear(self.d, 3)
        self.more()

    def more(self):
        pass

    def forward(self, x):
        return self.last(self.hidden(F.gelu(self.first(x))))

    def hidden(self, h):
        return h

    def wrong(self, h):
        """A number that goes by the width, for which no weight can make up."""
        return torch.tanh(F.layer_norm(h, (self.d,)).pow(4).sum(-1, keepdim=True) / 50)


def planned(make, **options):
    return mupscale.plan(make, width=2, inputs=X, **options)


class AtOne(Net):
    def more(self):
        self.register_buffer("on", torch.tensor(1.0))

    def hidden(self, h):
        return torch.where(self.on == 1, h + self.wrong(h), h)


class AtTwo(Net):
    def more(self):
        self.register_buffer("temperature", torch.tensor(2.0))

    def hidden(self, h):
        return h + self.wrong(h) if float(self.temperature) == 2.0 else h


class TrainedAtOne(Net):
    def more(self):
        self.register_buffer("on", torch.tensor(1.0))

    def hidden(self, h):
        return h + self.wrong(h) if self.training and float(self.on) == 1.0 else h


@pytest.mark.parametrize("make", [AtOne, AtTwo, TrainedAtOne])
def test_what_asks_for_the_value_of_a_buffer_finds_it(make):
    with pytest.raises(GrowthError, match="is not exact"):
        planned(make)


class OffOne(AtOne):
    def hidden(self, h):
        return torch.where(self.on == 1, h, h + self.wrong(h))


def test_buffers_may_also_take_other_values():
    with pytest.raises(GrowthError, match="outputs differ by"):
        planned(OffOne)


class Masked(nn.Module):
    """nanoGPT's attention, whose mask is a buffer that is compared with 0."""

    def __init__(self, width):
        super().__init__()
        self.qkv, self.proj = nn.Linear(8 * width, 24 * width), nn.Linear(8 * width, 8 * width)
        self.embed, self.head = nn.Embedding(20, 8 * width), nn.Linear(8 * width, 20)
        self.heads = 2 * width
        self.register_buffer("bias", torch.tril(torch.ones(6, 6)).view(1, 1, 6, 6))

    def forward(self, tokens):
        x = self.embed(tokens)
        q, k, v = (t.unflatten(-1, (self.heads, 4)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        scores = (q @ k.mT / math.sqrt(4)).masked_fill(self.bias == 0, -math.inf)
        return self.head(x + self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(-2)))


def test_a_mask_that_is_a_buffer_is_proved():
    assert mupscale.plan(Masked, width=2, inputs=torch.arange(12).reshape(2, 6)).proved


class Gathered(Net):
    def more(self):
        self.register_buffer("n", torch.ones(()))

    def hidden(self, h):
        if self.training:
            self.n.lerp_(h.detach().pow(2).sum(-1).mean(), 0.1)
            return h
        return h / self.n


class GatheredMean(Gathered):
    def hidden(self, h):
        if self.training:
            self.n.lerp_(h.detach().pow(2).mean(), 0.1)
            return h
        return h / self.n


def test_what_training_gathers_is_read_in_evaluation():
    with pytest.raises(GrowthError, match=r"after 5 steps of AdamW the losses differ in evaluation"):
        planned(Gathered)
    assert planned(GatheredMean).proved


class Signs(Net):
    def more(self):
        self.middle = nn.Linear(self.d, self.d)

    def hidden(self, h):
        weight = self.middle.weight
        if self.training:
            weight = weight + (weight.sign() * weight.abs().mean() - weight).detach()
        return F.linear(h, weight, self.middle.bias)


def test_noise_that_changes_what_training_computes_is_left_out():
    plan = planned(Signs)
    assert not plan["middle.weight"].linear
    narrow = Signs(1).double()
    wide = mupscale.grow(narrow, plan, operator="duplicate", noise="balanced:1")
    x = X.double()
    assert (narrow.train()(x) - wide.train()(x)).abs().max() < 1e-12


class OwnMean(Net):
    """Divides by the mean square of the batch in training, and by a fixed one in evaluation."""

    def more(self):
        self.register_buffer("mean", torch.ones(()))

    def hidden(self, h):
        mean = h.pow(2).mean() if self.training else self.mean
        return h / mean.sqrt()


class Usual(Net):
    """Batch norm, dropout and noise over hidden units, and noise that is the same in every width."""

    def more(self):
        self.norm, self.drop = nn.BatchNorm1d(self.d), nn.Dropout(0.3)

    def hidden(self, h):
        h = self.drop(self.norm(h))
        if self.training:
            h = h + 0.1 * torch.randn_like(h) * torch.rand(len(h), 1, dtype=h.dtype)
        return h


def test_expand_is_proved_in_training_mode_too():
    narrow = OwnMean(1)
    with pytest.raises(GrowthError, match="in training mode outputs differ"):
        mupscale.grow(narrow, planned(OwnMean), operator="expand", shrink=1, noise="default")
    plan, narrow = planned(Usual), Usual(1).eval()
    assert plan.proved
    assert plan["last.weight"].linear
    wide = mupscale.grow(narrow, plan, operator="expand", shrink=1, noise="default").eval()
    assert (narrow(X) - wide(X)).abs().max() < 1e-5


def test_what_a_batch_norm_over_few_values_does_to_rounding_is_no_difference():
    class Deep(Net):
        def more(self):
            self.blocks = nn.Sequential(
                *(nn.Sequential(nn.Linear(self.d, self.d), nn.BatchNorm1d(self.d)) for _ in range(6))
            )

        def hidden(self, h):
            return self.blocks(h)

    plan = mupscale.plan(Deep, width=2, inputs=X[:3])
    assert plan.proved
    assert plan["blocks.1.0.weight"].linear


class WrongOdds(Net):
    def hidden(self, h):
        return h * torch.bernoulli(self.wrong(h).abs())


class TrainedByWrongOdds(Net):
    def hidden(self, h):
        return h * torch.bernoulli(self.wrong(h).abs()) if self.training else h


class WrongChoice(Net):
    def more(self):
        self.rows = nn.Embedding(5, self.d)

    def hidden(self, h):
        odds = torch.ones(len(h), 5, dtype=h.dtype) + 0.01 * self.wrong(h) * torch.arange(5)
        return h + self.rows(torch.multinomial(odds, 1)[:, 0])


class RightOdds(Net):
    """A probability for every unit, and one for every place."""

    def more(self):
        self.gates, self.gate = nn.Linear(self.d, self.d), nn.Linear(self.d, 1)

    def hidden(self, h):
        h = h * torch.bernoulli(self.gates(h).sigmoid())
        return h * torch.bernoulli(self.gate(h).sigmoid())


@pytest.mark.parametrize("make", [WrongOdds, TrainedByWrongOdds, WrongChoice])
def test_probabilities_that_go_by_the_width_are_seen(make):
    with pytest.raises(GrowthError, match="odds differ by"):
        planned(make)


def test_probabilities_that_grow_with_the_units_are_proved():
    assert planned(RightOdds).proved


class WrongNoise(Net):
    """The noise is the same in both, and what it is multiplied by goes by the width."""

    def hidden(self, h):
        if self.training:
            h = h * (1 + 0.1 * torch.randn(len(h), 1, dtype=h.dtype) * h.norm(dim=-1, keepdim=True))
        return h


class WrongNoiseAmongOther(WrongNoise):
    def hidden(self, h):
        return super().hidden(h) + 0.1 * torch.randn_like(h) * self.training


@pytest.mark.parametrize("make", [WrongNoise, WrongNoiseAmongOther])
def test_only_draws_that_cannot_be_the_same_stand_still(make):
    with pytest.raises(GrowthError, match="the losses differ by"):
        planned(make)
