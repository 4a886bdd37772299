"""Outputs are judged in their own units: what is small is not equal, and what is large hides nothing."""

import math

import pytest
import torch
from torch import nn

import mupscale
from mupscale import GrowthError
from mupscale.proof.deviations import apart

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
UNITS = [1e-200, 1e-20, 1.0, 1e20]


class Net(nn.Module):
    """Two layers, and what is done with the hidden one; the output comes in some unit."""

    def __init__(self, width, unit=1.0):
        super().__init__()
        self.first, self.last, self.unit = nn.Linear(8, 16 * width), nn.Linear(16 * width, 3), unit

    def forward(self, x):
        return self.last(self.hidden(self.first(x).tanh())) * self.unit

    def hidden(self, h):
        return h


class Summed(Net):
    def hidden(self, h):
        return torch.exp(-h.square().sum(-1, keepdim=True) / 3) * h


class Steeper(Net):
    def hidden(self, h):
        steep = h * h.shape[-1]
        return steep - (steep - h).detach()


@pytest.mark.parametrize("unit", UNITS)
def test_a_right_growth_is_proved_in_every_unit(unit):
    plan = mupscale.plan(lambda width: Net(width, unit), width=2, inputs=X)
    narrow = Net(1, unit)
    wide = mupscale.grow(narrow, plan, operator="duplicate")
    assert mupscale.verify(narrow, wide, plan, X, steps=3)


@pytest.mark.parametrize("unit", UNITS)
def test_a_wrong_growth_is_refused_in_every_unit(unit):
    with pytest.raises(GrowthError, match="outputs differ by"):
        mupscale.plan(lambda width: Summed(width, unit), width=2, inputs=X)
    with pytest.raises(GrowthError, match="outputs agree, but after"):
        mupscale.plan(lambda width: Steeper(width, unit), width=2, inputs=X)


@pytest.mark.parametrize("unit", UNITS)
def test_a_wrong_wide_model_is_not_equal_in_any_unit(unit):
    narrow, wide = Net(1, unit), Net(2, unit)
    plan = mupscale.plan(narrow, to=wide, inputs=X)
    report = mupscale.verify(narrow, mupscale.grow(narrow, plan, operator="zero_pad"), plan, X)
    assert not report.equal
    other = mupscale.grow(narrow, plan, operator="duplicate")
    other.unit = unit * 1.01
    assert not mupscale.verify(narrow, other, plan, X)


class Cancelling(Net):
    def forward(self, x):
        out = super().forward(x)
        return out, out.softmax(-1).sum(-1) - 1, out.new_zeros(())


def test_what_rounding_leaves_of_numbers_that_cancel_is_no_difference():
    plan = mupscale.plan(Cancelling, width=2, inputs=X)
    narrow = Cancelling(1)
    assert mupscale.verify(narrow, mupscale.grow(narrow, plan, operator="duplicate"), plan, X, steps=3)


class Two(Net):
    def __init__(self, width):
        super().__init__(width)
        self.other = nn.Linear(8, 2)

    def forward(self, x):
        return super().forward(x), self.other(x) * 1e6


def grown_two(operator, **options):
    plan, narrow = mupscale.plan(Two, width=2, inputs=X), Two(1)
    return narrow, mupscale.grow(narrow, plan, operator=operator, **options), plan


def test_a_large_output_hides_no_small_one():
    narrow, wide, plan = grown_two("zero_pad")
    wide.other.load_state_dict(narrow.other.state_dict())
    report = mupscale.verify(narrow, wide, plan, X)
    assert not report.equal
    assert report.logits_std < 1


@pytest.mark.parametrize("output", ["last", "other"])
def test_no_output_may_be_nan(output):
    narrow, wide, plan = grown_two("expand", shrink=1.0)
    assert mupscale.verify(narrow, wide, plan, X)
    with torch.no_grad():
        wide.get_submodule(output).weight.fill_(float("nan"))
    report = mupscale.verify(narrow, wide, plan, X)
    assert not report.equal
    assert report.max_abs_diff == math.inf


def test_equal_infinities_are_equal_and_no_number_is_not():
    infinite, nan = torch.tensor([1.0, -math.inf]), torch.tensor([1.0, math.nan])
    assert apart(infinite, infinite) == 0
    assert apart(infinite, -infinite) == apart(nan, nan) == math.inf


def test_one_coarse_layer_does_not_make_the_whole_tolerance_coarse():
    plan, narrow = mupscale.plan(Net, width=3, inputs=X), Net(1)
    narrow.first.bfloat16()
    wide = mupscale.grow(narrow, plan, operator="zero_pad")
    report = mupscale.verify(narrow, wide, plan, X)
    assert report.tolerance < 0.05 * report.logits_std
    wide = mupscale.grow(narrow, plan, operator="duplicate")
    assert mupscale.verify(narrow, wide, plan, X)


@pytest.mark.parametrize("steps", ["3", -1, 2.0])
def test_steps_are_a_number(steps):
    narrow, wide, plan = grown_two("duplicate")
    with pytest.raises(GrowthError, match="steps: expected a whole number"):
        mupscale.verify(narrow, wide, plan, X, steps=steps)


def test_sparse_gradients_are_trained_on():
    def make(width):
        return nn.Sequential(nn.Embedding(20, 16 * width, sparse=True), nn.Linear(16 * width, 3))

    tokens = torch.arange(12).reshape(3, 4)
    plan, narrow = mupscale.plan(make, width=2, inputs=tokens), make(1)
    assert plan.proved
    assert mupscale.verify(narrow, mupscale.grow(narrow, plan, operator="duplicate"), plan, tokens, steps=2)
