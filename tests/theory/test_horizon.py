"""Batch size and training length: factors, what they keep, and a noisy quadratic trained under them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mupscale import GrowthError
from mupscale.theory.horizon import STEPS_RATIO, rescaled, steps_ratio

NARROW = {"lr": 1e-2, "weight_decay": 0.1, "eps": 1e-8, "betas": (0.9, 0.95), "amsgrad": False}
SIZES = st.floats(1, 1e12)
RATIOS = st.floats(1 / 64, 64)


def close(values):
    """The numbers of a group, to compare with."""
    return {key: pytest.approx(value, rel=1e-9) for key, value in values.items()}


@pytest.mark.parametrize(
    ("batch_size", "tokens", "root"),
    [
        ((64, 256), None, 2),
        ((256, 64), None, 1 / 2),
        (None, (1e9, 4e9), 1 / 2),
        ((8, 72), (1e9, 9e9), 1),
        ((8, 32), (1, 16), 1 / 2),
    ],
)
def test_the_published_factors(batch_size, tokens, root):
    """Batch × k: lr and weight decay × √k; length × k: ÷ √k; both × k: nothing."""
    wide = rescaled(NARROW, steps_ratio(batch_size, tokens))
    assert wide == close(
        {
            **NARROW,
            "lr": 1e-2 * root,
            "weight_decay": 0.1 * root,
            "eps": 1e-8 / root,
            "betas": (0.9**root**2, 0.95**root**2),
            "lr_scale": root,
            STEPS_RATIO: root**2,
        }
    )


def test_weight_decay_keeps_its_time():
    """lr · wd of a step, over the tokens of a step under another batch, over the steps of a run of another length."""
    batch, length = (rescaled(NARROW, steps_ratio(**{key: (1, 4)})) for key in ("batch_size", "tokens"))
    before = NARROW["lr"] * NARROW["weight_decay"]
    assert batch["lr"] * batch["weight_decay"] / 4 == pytest.approx(before)
    assert length["lr"] * length["weight_decay"] * 4 == pytest.approx(before)


def test_l2_stays_as_it_is():
    assert rescaled(NARROW, 4.0, decoupled=False)["weight_decay"] == NARROW["weight_decay"]


def test_betas_stay_betas():
    for ratio in (1e-4, 1e4):
        assert all(0 <= beta < 1 for beta in rescaled(NARROW, ratio)["betas"])
    assert rescaled(NARROW, 1.01)["betas"] == pytest.approx((1 - 0.1 * 1.01, 1 - 0.05 * 1.01), abs=1e-4)


@given(RATIOS, RATIOS)
def test_factors_multiply_over_a_chain(first, second):
    assert rescaled(rescaled(NARROW, first), second) == close(rescaled(NARROW, first * second))


@given(SIZES, SIZES, SIZES)
def test_ratios_multiply_over_a_chain(first, second, third):
    for key in ("batch_size", "tokens"):
        steps = [steps_ratio(**{key: pair}) for pair in ((first, second), (second, third), (first, third))]
        assert steps[0] * steps[1] == pytest.approx(steps[2])


@pytest.mark.parametrize(
    "sizes", [256, (256,), (0, 8), (8, -8), (8, math.inf), (8, math.nan), ("a", "b"), (1, 2, 3)]
)
def test_what_are_no_two_sizes_is_refused(sizes):
    for key in ("batch_size", "tokens"):
        with pytest.raises(
            GrowthError, match=f"^{key} .*: expected two numbers above 0, the narrow model's and"
        ):
            steps_ratio(**{key: sizes})
    assert steps_ratio() is None


# ---- a noisy quadratic -------------------------------------------------------------------------------------

LENGTH, LOOKS = 1600, 40  # tokens, and how often the loss is looked at
QUADRATIC = {"lr": 2e-2, "weight_decay": 0.05, "eps": 2.0, "betas": (0.9, 0.95)}


def losses(batch_size, values):
    """Of 4000 numbers that are drawn to 1 by gradients that are mostly noise; the mean, over the tokens."""
    torch.manual_seed(batch_size)
    numbers = nn.Parameter(torch.zeros(4000))
    known = {key: values[key] for key in QUADRATIC}
    optimizer, found = torch.optim.AdamW([numbers], **known), []
    for _ in range(LOOKS):
        for _ in range(LENGTH // batch_size // LOOKS):
            off = numbers.detach() - 1
            numbers.grad = off + 4 / math.sqrt(batch_size) * torch.randn_like(off)
            optimizer.step()
        found.append((numbers.detach() - 1).square().mean() / 2)
    return torch.stack(found)


def apart(one, other):
    return (one - other).square().mean().sqrt().item()


def test_under_the_rules_the_loss_over_tokens_stays_where_it_was_at_four_times_the_batch():
    """And does not without them, nor without any of those for lr, weight decay and eps."""
    before, wide = losses(1, QUADRATIC), rescaled(QUADRATIC, 4.0)
    by_rule = apart(losses(4, wide), before)
    assert by_rule < 0.1 * apart(losses(4, QUADRATIC), before)
    for key in ("lr", "weight_decay", "eps"):
        assert by_rule < 0.5 * apart(losses(4, {**wide, key: QUADRATIC[key]}), before), key
    assert apart(losses(4, wide)[-8:], before[-8:]) < 0.05 * before[-1]
