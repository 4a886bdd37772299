"""Names that wrappers change, names of no parameter, and values that are none, in groups and in what is saved."""

import pytest
import torch
from torch import nn
from transformers import Trainer

import mupscale
from models import build, make_mlp
from mupscale import GrowthError
from mupscale.optim.groups import merge_groups

MATRICES = ["0.weight", "2.weight", "4.weight"]


class Wrapped(nn.Module):
    """Puts the names behind `module.`, as DDP does, which needs processes."""

    def __init__(self, module):
        super().__init__()
        self.module = module


WRAPPERS = {"plain": lambda model: model, "compiled": torch.compile, "ddp": Wrapped}


def made(wrap=WRAPPERS["plain"], width=2):
    return mupscale.plan(make_mlp, width=width), wrap(make_mlp(width))


def adamw(plan, wide, **values):
    return mupscale.param_groups(wide, plan, torch.optim.AdamW, **{"lr": 1e-2, "weight_decay": 0.1, **values})


@pytest.mark.parametrize("name", WRAPPERS)
def test_what_decays_and_what_is_taken_goes_by_the_models_own_names(name):
    plan, wide = made(WRAPPERS[name])
    for decay in (MATRICES, [n for n, p in wide.named_parameters() if p.ndim == 2]):
        decays = {
            plan.own_name(n): group["weight_decay"]
            for group in adamw(plan, wide, decay=decay)
            for n in group["param_names"]
        }
        assert {n for n, value in decays.items() if value} == {*MATRICES}
    taken = adamw(plan, wide, only=mupscale.hidden_matrices(plan))
    assert {plan.own_name(n) for g in taken for n in g["param_names"]} == {*mupscale.hidden_matrices(plan)}


def test_tied_and_frozen_parameters_may_be_named():
    narrow = build("llama_tied")
    plan = mupscale.plan(narrow, width=2)
    wide = mupscale.grow(narrow, plan, operator="duplicate").requires_grad_(False)
    (group,) = adamw(plan, wide, only=["lm_head.weight"], decay=["lm_head.weight"])
    assert group["param_names"] == ["model.embed_tokens.weight"]
    assert group["weight_decay"] > 0


def test_the_trainer_names_what_modules_lack():
    plan, wide = made()
    wide[2].register_parameter("scale", None)
    decay = Trainer.get_decay_parameter_names(None, wide)
    assert "2.scale" in decay
    assert sum(len(g["params"]) for g in adamw(plan, wide, decay=decay) if g["weight_decay"]) == 3


@pytest.mark.parametrize("what", ["decay", "only"])
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["0.wieght"], "'0.wieght' is no parameter of the model; give names of named_parameters"),
        ("0.weight", "expected names of parameters, as .*, found '0.weight'"),
        ([nn.Parameter(torch.ones(1))], "expected names of parameters"),
    ],
)
def test_what_names_no_parameter_is_refused(what, names, message):
    with pytest.raises(GrowthError, match=f"^{what}: {message}"):
        adamw(*made(), **{what: names})


@pytest.mark.parametrize("saved", WRAPPERS)
@pytest.mark.parametrize("loading", WRAPPERS)
def test_state_is_loaded_by_name_whatever_wraps_the_model(saved, loading):
    (plan, theirs), (_, ours) = made(WRAPPERS[saved]), made(WRAPPERS[loading])
    theirs, ours = (torch.optim.AdamW(adamw(plan, wide)) for wide in (theirs, ours))
    params = [(n, p) for g in theirs.param_groups for n, p in zip(g["param_names"], g["params"], strict=True)]
    for number, (_, param) in enumerate(params):
        param.grad = torch.full_like(param, number + 1.0)
    theirs.step()
    ours.param_groups.reverse()
    mupscale.load_by_name(ours).load_state_dict(theirs.state_dict())
    expected = {plan.own_name(n): theirs.state[p]["exp_avg"] for n, p in params}
    for group in ours.param_groups:
        for name, param in zip(group["param_names"], group["params"], strict=True):
            assert torch.equal(ours.state[param]["exp_avg"], expected[plan.own_name(name)])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": "1e-3"}, "lr: expected a number from 0 on, found '1e-3'"),
        ({"lr": -1.0}, "lr: expected a number from 0 on, found -1.0"),
        ({"weight_decay": -0.1}, "weight_decay: expected a number from 0 on, found -0.1"),
        ({"embedding_lr": float("nan")}, "embedding_lr: expected a number from 0 on, found nan"),
        ({"lr": 0.0, "embedding_lr": 1.0}, "lr: 0 has no ratio to embedding_lr; give lr above 0"),
        ({"betas": 0.9, "batch_size": (1, 2)}, "AdamW: does not take .*betas=0.9: .*; give values that it"),
        (
            {"betas": (0.9, 2.0)},
            r"AdamW: does not take .*Invalid beta parameter at index 1: 2.0; give values",
        ),
    ],
)
def test_values_that_an_optimizer_does_not_take_are_refused(values, message):
    with pytest.raises(GrowthError, match=f"^{message}") as caught:
        adamw(*made(), **values)
    assert "\n" not in str(caught.value)


def test_a_decay_of_embeddings_that_would_not_act_is_refused():
    plan, wide = made()
    with pytest.raises(GrowthError, match="weight_decay: Rprop has no such value"):
        mupscale.param_groups(wide, plan, torch.optim.Rprop, lr=1e-2, embedding_weight_decay=0.1)


@pytest.mark.parametrize("given", [None, torch.optim.AdamW, "adamw"])
def test_what_is_no_optimizer_is_not_carried(given):
    plan, wide = made()
    with pytest.raises(GrowthError, match="carry_optimizer: expected the narrow model's optimizer, such as"):
        mupscale.carry_optimizer(given, make_mlp(1), wide, plan, operator="duplicate")


def test_groups_may_hold_any_value():
    """Equal ones make one group, also where they cannot be hashed."""
    values = [{"plan": {"steps": [3, 4]}}, {"plan": {"steps": [3, 4]}}, {"plan": {"steps": [3, 5]}}]
    values += [{"plan": torch.ones(2)}, {"plan": torch.ones(2)}, {"plan": {1, 2}}]
    groups = merge_groups((str(n), n, value) for n, value in enumerate(values))
    assert [group["params"] for group in groups] == [[0, 1], [2], [3, 4], [5]]


def test_models_of_other_sizes_than_the_plans_are_not_carried():
    plan = mupscale.plan(make_mlp, width=2)
    narrow, wide = make_mlp(1), make_mlp(2)
    for theirs, ours in ((narrow, make_mlp(4)), (narrow, narrow), (make_mlp(2), wide)):
        optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-2)
        with pytest.raises(
            GrowthError, match=r"0\.weight: .*(build the wide model in the sizes|give the two)"
        ):
            mupscale.carry_optimizer(optimizer, theirs, ours, plan, operator="duplicate")


def test_a_model_that_was_initialized_is_no_longer_a_grown_one():
    plan, narrow = mupscale.plan(make_mlp, width=2), make_mlp(1)
    wide = torch.compile(mupscale.grow(narrow, plan))
    optimizer = torch.optim.AdamW(narrow.parameters(), lr=1e-2)
    assert mupscale.carry_optimizer(optimizer, narrow, wide, plan)
    mupscale.init_(wide, plan)
    with pytest.raises(GrowthError, match="say what it was grown with"):
        mupscale.carry_optimizer(optimizer, narrow, wide, plan)
