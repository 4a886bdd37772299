"""Optimizers of other packages: in lockstep, or refused."""

import lion_pytorch
import pytest
import pytorch_optimizer
import schedulefree

import mupscale
from lockstep import assert_lockstep
from models import make_mlp
from mupscale import GrowthError


def trained(optimizer):
    optimizer.train()  # schedule-free ones have modes, as modules do
    return optimizer


OPTIMIZERS = {
    "lion": lambda p: lion_pytorch.Lion(p, lr=1e-4, weight_decay=0.1),
    "lion, decay without the rate": lambda p: lion_pytorch.Lion(
        p, lr=1e-4, weight_decay=1e-3, decoupled_weight_decay=True
    ),
    "lion of pytorch_optimizer": lambda p: pytorch_optimizer.Lion(p, lr=1e-4, weight_decay=0.1),
    "lion, l2": lambda p: pytorch_optimizer.Lion(p, lr=1e-4, weight_decay=0.1, weight_decouple=False),
    "ademamix": lambda p: pytorch_optimizer.AdEMAMix(p, lr=1e-3, weight_decay=0.1, weight_decouple=True),
    "ademamix, l2, uphill": lambda p: pytorch_optimizer.AdEMAMix(p, lr=1e-4, weight_decay=0.1, maximize=True),
    "ademamix, fixed decay": lambda p: pytorch_optimizer.AdEMAMix(
        p, lr=1e-3, weight_decay=1e-3, weight_decouple=True, fixed_decay=True, eps=1e-4
    ),
    "schedule-free adamw": lambda p: trained(
        schedulefree.AdamWScheduleFree(p, lr=3e-3, weight_decay=0.1, warmup_steps=15)
    ),
    "schedule-free adamw, weighed otherwise": lambda p: trained(
        schedulefree.AdamWScheduleFree(p, lr=3e-3, weight_lr_power=1.0, warmup_steps=15)
    ),
    "schedule-free sgd": lambda p: trained(
        schedulefree.SGDScheduleFree(p, lr=0.02, weight_decay=0.01, warmup_steps=15)
    ),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ["mlp", "llama_tied"])
def test_grown_mid_training_stays_in_lockstep(name, optimizer):
    assert_lockstep(name, OPTIMIZERS[optimizer], 3)


def test_what_counts_entries_is_refused():
    plan = mupscale.plan(make_mlp, width=2)
    with pytest.raises(GrowthError, match="cautious: depends on the number of entries of a parameter"):
        mupscale.param_groups(make_mlp(2), plan, pytorch_optimizer.Lion, lr=1e-3, cautious=True)


def test_an_optimizer_that_turns_gradients_is_refused():
    plan = mupscale.plan(make_mlp, width=2)
    with pytest.raises(
        GrowthError, match="'SOAP' has no scaling rule: its preconditioners over a whole dim lose full rank"
    ):
        mupscale.param_groups(make_mlp(2), plan, pytorch_optimizer.SOAP, lr=1e-3)
