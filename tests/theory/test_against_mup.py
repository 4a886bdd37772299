"""microsoft/mup as the reference: the same rules, and where it differs, why.

mup divides the readout's output by its width multiplier k in the forward pass and keeps the weight itself
large; here the weight is small and the module stock. With θ = θ_mup / k both are the same function, a learning
rate for θ_mup counts 1/k for Adam and 1/k² for SGD, and a standard deviation 1/k.
"""

import pytest
import torch
from torch import nn

import mupscale
from lockstep import value_by_name

mup = pytest.importorskip("mup")

WIDTHS = (16, 8)
FACTORS = [(4, 4), (8, 2), (2, 8)]
LR, DECAY = 0.1, 0.01
NAMES = ["0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias"]
READOUT = "4.weight"


def mlp(first, second, readout=nn.Linear):
    return nn.Sequential(
        nn.Linear(5, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), readout(second, 3)
    )


def pair(factors):
    """(mup's wide model with its base shapes set, our plan, the readout's width multiplier)."""
    wide = tuple(w * f for w, f in zip(WIDTHS, factors, strict=True))
    base, delta, theirs = (mlp(*sizes, mup.MuReadout) for sizes in (WIDTHS, (w + 1 for w in WIDTHS), wide))
    mup.set_base_shapes(theirs, base, delta=delta)
    return theirs, mupscale.plan(mlp(*WIDTHS), to=mlp(*wide)), factors[1]


def ours_by_name(plan, optimizer_class, key, **values):
    wide = mlp(*(s[0] for s in (plan.wide_shape("0.bias"), plan.wide_shape("2.bias"))))
    groups = mupscale.param_groups(wide, plan, optimizer_class, lr=LR, **values)
    return {name: group[key] for group in groups for name in group["param_names"]}


@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize(
    ("make", "ours", "power"),
    [(mup.MuSGD, torch.optim.SGD, 2), (mup.MuAdam, torch.optim.Adam, 1), (mup.MuAdamW, torch.optim.AdamW, 1)],
)
def test_learning_rates_are_equal(make, ours, power, factors):
    theirs, plan, k = pair(factors)
    expected = value_by_name(theirs, make(theirs.parameters(), lr=LR), "lr")
    expected[READOUT] /= k**power
    assert ours_by_name(plan, ours, "lr") == pytest.approx(expected)


@pytest.mark.parametrize("factors", [(16, 16), (32, 8)])
def test_init_scales_are_equal(factors):
    torch.manual_seed(0)
    theirs, plan, k = pair(factors)
    ours = mlp(*(s[0] for s in (plan.wide_shape("0.bias"), plan.wide_shape("2.bias"))))
    for name, p in theirs.named_parameters():
        if name.endswith("weight"):
            drawn = [mup.init.normal_(p, std=1.0).detach().clone() for _ in range(50)]
            scale = torch.stack(drawn).std().item() / (k if name == READOUT else 1)
            assert plan.params[name].init_scale == pytest.approx(scale, rel=0.05), name
    assert {n for n, _ in ours.named_parameters()} == set(NAMES)


@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize(("make", "ours"), [(mup.MuSGD, torch.optim.SGD), (mup.MuAdamW, torch.optim.AdamW)])
def test_shrinking_per_step_is_equal(make, ours, factors):
    """lr · weight decay is what a weight loses a step, whatever it is multiplied by in the forward pass."""
    theirs, plan, _ = pair(factors)
    optimizer = make(theirs.parameters(), lr=LR, weight_decay=DECAY)
    rates, decays = (value_by_name(theirs, optimizer, key) for key in ("lr", "weight_decay"))
    our_rates, our_decays = (
        ours_by_name(plan, ours, key, weight_decay=DECAY) for key in ("lr", "weight_decay")
    )
    for name in NAMES:
        assert our_rates[name] * our_decays[name] == pytest.approx(rates[name] * decays[name]), name


def test_l2_inside_adam_differs_because_mup_scales_it_as_if_it_were_decoupled():
    """Adam's L2 term competes with the gradient, which shrinks by c: a hidden weight's must not grow by k."""
    theirs, plan, _ = pair((4, 4))
    optimizer = mup.MuAdam(theirs.parameters(), lr=LR, weight_decay=DECAY)
    assert value_by_name(theirs, optimizer, "weight_decay")["2.weight"] == pytest.approx(4 * DECAY)
    assert ours_by_name(plan, torch.optim.Adam, "weight_decay", weight_decay=DECAY)[
        "2.weight"
    ] == pytest.approx(DECAY)


def test_eps_differs_because_mup_leaves_it():
    """Gradients shrink by c with width, and eps stands beside their root mean square: it must shrink too."""
    theirs, plan, _ = pair((4, 4))
    optimizer = mup.MuAdam(theirs.parameters(), lr=LR, eps=1e-6)
    assert set(value_by_name(theirs, optimizer, "eps").values()) == {1e-6}
    ours = ours_by_name(plan, torch.optim.Adam, "eps", eps=1e-6)
    assert {n: ours[n] for n in ("0.bias", "2.weight", READOUT)} == pytest.approx(
        {"0.bias": 2.5e-7, "2.weight": 2.5e-7, READOUT: 1e-6}
    )
