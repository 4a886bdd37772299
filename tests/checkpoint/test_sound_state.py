"""Optimizer state as any optimizer saves it is taken; what none saves is one line."""

import pytest
import torch
from torch import optim
from transformers import LlamaConfig, LlamaForCausalLM

from mupscale import GrowthError
from mupscale.checkpoint.sound import check_entries, check_groups, check_scheduler, own_state
from mupscale.checkpoint.training_state import WideTrainingState, leaves
from mupscale.planner import plan

OPTIMIZERS = {
    "sgd": lambda p: optim.SGD(p, lr=0.1),
    "sgd, momentum": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam, lr a tensor": lambda p: optim.Adam(p, lr=torch.tensor(1e-3)),
    "adamw": lambda p: optim.AdamW(p, lr=1e-3),
    "amsgrad": lambda p: optim.AdamW(p, lr=1e-3, amsgrad=True),
    "lists": lambda p: optim.NAdam(p, betas=[0.9, 0.95]),
    "radam": lambda p: optim.RAdam(p, betas=(0.9, 0.95)),
    "asgd": lambda p: optim.ASGD(p),
    "rprop": lambda p: optim.Rprop(p),
    "adafactor": lambda p: optim.Adafactor(p),
    "adagrad": lambda p: optim.Adagrad(p),
    "adadelta": lambda p: optim.Adadelta(p),
    "adamax": lambda p: optim.Adamax(p),
    "rmsprop": lambda p: optim.RMSprop(p, centered=True, momentum=0.9),
}
SCHEDULERS = {
    "cosine": lambda o: optim.lr_scheduler.CosineAnnealingLR(o, 10),
    "one cycle": lambda o: optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=10),
    "plateau": lambda o: optim.lr_scheduler.ReduceLROnPlateau(o),
    "cyclic": lambda o: optim.lr_scheduler.CyclicLR(o, 0.01, 0.1),
    "one after the other": lambda o: optim.lr_scheduler.SequentialLR(
        o, [optim.lr_scheduler.LinearLR(o), optim.lr_scheduler.ExponentialLR(o, 0.9)], [3]
    ),
}


@pytest.fixture(scope="module")
def config():
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaConfig(**sizes, vocab_size=32)


def stepped(config, make, steps=8):
    model = LlamaForCausalLM(config)
    optimizer = make(model.parameters())
    for _ in range(steps):
        model(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
        optimizer.step()
    return optimizer


# RAdam's first steps scale otherwise: without a step it is refused.
@pytest.mark.parametrize(
    ("name", "steps"),
    [(name, steps) for name in OPTIMIZERS for steps in (0, 8) if (name, steps) != ("radam", 0)],
)
def test_what_an_optimizer_saves_is_taken(name, steps, config, tmp_path):
    torch.save(stepped(config, OPTIMIZERS[name], steps).state_dict(), tmp_path / "optimizer.pt")
    assert WideTrainingState.of(tmp_path, plan(config, width=2)) is not None


def test_a_sparse_one_too():
    group = optim.SparseAdam([torch.nn.Parameter(torch.zeros(2, 2))]).state_dict()["param_groups"][0]
    assert {*own_state(group, 0, 2)} == {"step", "exp_avg", "exp_avg_sq"}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_what_a_scheduler_saves_is_taken(name):
    optimizer = optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1, momentum=0.9)
    check_scheduler(SCHEDULERS[name](optimizer).state_dict())


@pytest.mark.parametrize("odd", [torch.zeros(3), object(), {1.5: 2}])
def test_what_no_scheduler_saves_is_refused(odd):
    with pytest.raises(GrowthError, match="expected the state dict of a torch scheduler"):
        check_scheduler({"last_epoch": 1, "_schedulers": [{"odd": odd}]})


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda s: s["state"].update({0: None}), "expected its optimizer state as a dict"),
        (lambda s: s["state"].update({0: []}), "expected its optimizer state as a dict"),
        (lambda s: s["state"][0].pop("step"), "optimizer state 'step' is missing"),
        (
            lambda s: s["state"][0].update(step=torch.tensor(float("nan"))),
            "'step' is nan, expected a finite number",
        ),
        (
            lambda s: s["state"][0].update(exp_avg=torch.zeros(32, 16).long()),
            "should be a tensor of floating",
        ),
        (lambda s: s["state"][0].update(exp_avg=torch.tensor(0.0)), "'exp_avg' has 0 dims, expected 2"),
        (lambda s: s["param_groups"][0].pop("params"), "params should be a list of int"),
        (lambda s: s["param_groups"][0].update(lr="x"), "lr is 'x', expected a number"),
        (lambda s: s["param_groups"][0].update(lr_scale=(1, 2)), r"lr_scale is \(1, 2\), expected a number"),
        (lambda s: s["param_groups"][0].update(initial_lr=None), "initial_lr is None, expected a number"),
        (
            lambda s: s["param_groups"][0].update(betas=(0.9, float("inf"))),
            "betas is inf, expected a finite number",
        ),
        (lambda s: s["param_groups"][0].update(capturable=[[]]), "capturable should be a number, or a few"),
        (lambda s: s["param_groups"][0].update(betas=(0.9, 2.0)), "Adam refuses its values"),
        (
            lambda s: s["param_groups"].append(s["param_groups"][0]),
            "expected every parameter once, in one group",
        ),
    ],
)
def test_what_none_saves_is_one_line(spoil, said, config, tmp_path):
    state = stepped(config, OPTIMIZERS["adamw"], 1).state_dict()
    spoil(state)
    torch.save(state, tmp_path / "optimizer.pt")
    with pytest.raises(GrowthError, match=f"optimizer.pt: .*{said}.*; --no-optimizer"):
        WideTrainingState.of(tmp_path, plan(config, width=2))


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=10),
        lambda o: optim.swa_utils.SWALR(o, 0.05),
        lambda o: optim.lr_scheduler.CyclicLR(o, 0.01, 0.1, cycle_momentum=False),
    ],
)
def test_what_schedulers_keep_in_groups_is_scaled_with_the_rates(schedule, config, tmp_path):
    model = LlamaForCausalLM(config)
    optimizer = optim.AdamW(model.parameters(), lr=0.01)
    schedule(optimizer)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    (narrow,) = optimizer.param_groups
    grown = WideTrainingState.of(tmp_path, plan(config, width=2)).optimizer["param_groups"]
    assert len({group["lr"] for group in grown}) > 1
    for group in grown:
        for key in {"max_lr", "min_lr", "swa_lr", "initial_lr"} & narrow.keys():
            assert group[key] == pytest.approx(narrow[key] * group["lr_scale"])


@pytest.mark.parametrize("wrapper", ["_orig_mod.{}", "module._orig_mod.{}", "_orig_mod.module.{}"])
def test_names_of_a_compiled_model_are_its_own(wrapper, config, tmp_path):
    made = []
    for wrapped in ("{}", wrapper):
        state = stepped(config, OPTIMIZERS["adamw"], 1).state_dict()
        names = [name for name, _ in LlamaForCausalLM(config).named_parameters()]
        state["param_groups"][0]["param_names"] = [wrapped.format(name) for name in names]
        torch.save(state, tmp_path / "optimizer.pt")
        made.append(WideTrainingState.of(tmp_path, plan(config, width=2)).optimizer["param_groups"])
    assert made[0] == made[1]


def test_a_parameter_that_is_named_twice_is_refused(config, tmp_path):
    state = stepped(config, OPTIMIZERS["adamw"], 1).state_dict()
    names = [name for name, _ in LlamaForCausalLM(config).named_parameters()]
    state["param_groups"][0]["param_names"] = [*names[:-1], names[0]]
    torch.save(state, tmp_path / "optimizer.pt")
    with pytest.raises(GrowthError, match="embed_tokens.weight' 2 times; expected every parameter once"):
        WideTrainingState.of(tmp_path, plan(config, width=2))


def test_two_values_of_one_name_are_refused():
    with pytest.raises(GrowthError, match="ema a b: two values of optimizer.pt go by this name"):
        leaves({"state": {}, "ema": {"a b": 1, "a": {"b": 2}}})


@pytest.mark.parametrize("name", ["optimizer.bin", "global_step6"])
def test_an_optimizer_in_another_form_is_not_passed_over(name, config, tmp_path):
    assert WideTrainingState.of(tmp_path, plan(config, width=2)) is None
    (tmp_path / name).mkdir()
    with pytest.raises(GrowthError, match=f"{name}: holds the optimizer in a form .*--no-optimizer"):
        WideTrainingState.of(tmp_path, plan(config, width=2))


def test_values_are_looked_at_where_they_are_read(config, tmp_path):
    for key, value, said in (
        ("exp_avg", float("nan"), "NaN or infinity"),
        ("exp_avg_sq", -1.0, "mean of squares"),
    ):
        state = stepped(config, OPTIMIZERS["adamw"], 1).state_dict()
        state["state"][0][key][0, 0] = value
        torch.save(state, tmp_path / "optimizer.pt")
        wide = WideTrainingState.of(tmp_path, plan(config, width=2)).optimizer["state"]
        with pytest.raises(GrowthError, match=said):
            list(next(e[key] for e in wide.values() if e[key].shape == (32, 32)).blocks())


def test_of_optimizers_from_elsewhere_nothing_is_known():
    check_entries("w", {"anything": 1}, {})
    with pytest.raises(GrowthError, match="expected the state dict of a torch optimizer"):
        check_groups({"param_groups": torch.zeros(2), "state": {}})
