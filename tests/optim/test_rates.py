"""Learning rates after growth: those that schedulers keep, and those that differ by group."""

import pytest
import torch
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR

import mupscale
from models import batch, loss_of, make_mlp
from mupscale import GrowthError
from mupscale.optim import Together

LENGTH = 12
# Each made as it is for the narrow model: values that a resumed one does not look for in the groups are lists.
SCHEDULERS = {
    "one cycle": lambda o, **k: lr_scheduler.OneCycleLR(o, max_lr=1e-2, total_steps=LENGTH, **k),
    "three phases": lambda o, **k: lr_scheduler.OneCycleLR(
        o, max_lr=1e-2, total_steps=LENGTH, three_phase=True, **k
    ),
    "warmup": lambda o, **k: lr_scheduler.LambdaLR(o, lambda step: step / LENGTH, **k),
    "step": lambda o, **k: lr_scheduler.StepLR(o, 2, **k),
}


def step(model, optimizer, seed):
    optimizer.zero_grad()
    loss = loss_of(model, batch("mlp", seed))
    loss.backward()
    optimizer.step()
    return loss.item()


def carried(optimizer, narrow, width=2):
    plan = mupscale.plan(make_mlp, width=width)
    wide = mupscale.grow(narrow, plan, operator="duplicate", noise=None)
    return wide, mupscale.carry_optimizer(optimizer, narrow, wide, plan)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_goes_on_in_lockstep(name):
    narrow = make_mlp(1).double()
    optimizer = torch.optim.AdamW(narrow.parameters(), lr=1e-2)
    scheduler = SCHEDULERS[name](optimizer)
    for seed in range(3):
        step(narrow, optimizer, seed)
        scheduler.step()
    wide, wide_optimizer = carried(optimizer, narrow)
    further = SCHEDULERS[name](wide_optimizer, last_epoch=scheduler.last_epoch - 1)  # which a step follows
    for seed in range(3, LENGTH - 1):
        losses = step(narrow, optimizer, seed), step(wide, wide_optimizer, seed)
        assert abs(losses[0] - losses[1]) <= 1e-10, seed
        scheduler.step()
        further.step()


def test_the_rate_of_averaging_is_scaled_too():
    narrow = make_mlp(1).double()
    optimizer = torch.optim.SGD(narrow.parameters(), lr=1e-2)
    SWALR(optimizer, swa_lr=1e-3)
    for group in carried(optimizer, narrow)[1].param_groups:
        assert group["swa_lr"] == pytest.approx(1e-3 * group["lr_scale"])


def of_two_rates(model, first=1e-4, second=1e-2):
    first, second = ({"params": model[i].parameters(), "lr": lr} for i, lr in ((0, first), (2, second)))
    return torch.optim.AdamW([first, second])


def test_one_rate_does_not_take_the_place_of_several():
    narrow = make_mlp(1).double()
    wide_optimizer = carried(of_two_rates(narrow), narrow)[1]
    before = [group["lr"] for group in wide_optimizer.param_groups]
    with pytest.raises(GrowthError, match="several rates, lr / lr_scale from 0.0001 to 0.01, .*; multiply"):
        mupscale.set_lr(wide_optimizer, 1e-2)
    assert [group["lr"] for group in wide_optimizer.param_groups] == before
    for group in wide_optimizer.param_groups:  # the mend: its share of one
        group["lr_scale"] *= 0.01 if group["param_names"][0].startswith("0.") else 1
    mupscale.set_lr(wide_optimizer, 2e-2)
    assert [group["lr"] for group in wide_optimizer.param_groups] == pytest.approx([2 * lr for lr in before])


def test_several_rates_show_while_they_warm_up_from_zero():
    narrow = make_mlp(1).double()
    optimizer = of_two_rates(narrow)
    lr_scheduler.LambdaLR(optimizer, lambda step: step / LENGTH)
    with pytest.raises(GrowthError, match="several rates, initial_lr / lr_scale from 0.0001 to 0.01"):
        mupscale.set_lr(carried(optimizer, narrow)[1], 1e-2)


def test_one_rate_may_be_zero_or_at_a_floor():
    """A floor that is equal for all groups says nothing of the rates that they started from."""
    plan = mupscale.plan(make_mlp, width=4)
    narrow = make_mlp(1)
    groups = mupscale.param_groups(make_mlp(4), plan, torch.optim.AdamW, lr=1e-2)
    fresh = torch.optim.AdamW(groups)
    tensors = torch.optim.AdamW(narrow.parameters(), lr=torch.tensor(1e-2))
    for optimizer in (fresh, carried(tensors, narrow)[1]):
        for lr in (0.0, 3e-3):
            mupscale.set_lr(optimizer, lr)
            assert all(float(g["lr"]) == pytest.approx(lr * g["lr_scale"]) for g in optimizer.param_groups)
    scheduler = lr_scheduler.CosineAnnealingLR(fresh, 2, eta_min=1e-3)
    for _ in range(2):
        fresh.step()
        scheduler.step()
    assert len({group["lr"] for group in fresh.param_groups}) == 1
    mupscale.set_lr(fresh, 5e-3)
    assert {group["lr"] / group["lr_scale"] for group in fresh.param_groups} == {5e-3}


def test_optimizers_that_step_together_have_one_rate_or_none_is_set():
    plan, wide = mupscale.plan(make_mlp, width=2), make_mlp(2)
    only = mupscale.hidden_matrices(plan)
    rest = [name for name, _ in wide.named_parameters() if name not in only]

    def both(lr):
        kinds = ((torch.optim.Muon, only, lr), (torch.optim.AdamW, rest, 1e-3))
        return Together(k(mupscale.param_groups(wide, plan, k, lr=lr, only=n)) for k, n, lr in kinds)

    mupscale.set_lr(both(1e-3), 2e-3)
    optimizer = both(2e-2)
    with pytest.raises(GrowthError, match="several rates"):
        mupscale.set_lr(optimizer, 2e-3)
    for part, lr in zip(optimizer.parts, (2e-2, 1e-3), strict=True):
        mupscale.set_lr(part, lr / 2)
        assert {group["lr"] / group["lr_scale"] for group in part.param_groups} == {lr / 2}
    assert {group["lr"] / group["lr_scale"] for group in optimizer.param_groups} == {1e-2, 5e-4}


@pytest.mark.parametrize("lr", ["1e-3", -1.0, float("inf"), None, True])
def test_a_rate_is_a_number(lr):
    optimizer = torch.optim.AdamW(make_mlp(1).parameters())
    with pytest.raises(GrowthError, match="set_lr: expected a number from 0 on, found"):
        mupscale.set_lr(optimizer, lr)
