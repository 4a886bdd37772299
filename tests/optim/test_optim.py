"""Groups, learning rates, clipping and carrying, apart from lockstep (which proves them together)."""

import copy

import pytest
import torch
from torch import nn
from transformers import Trainer

import mupscale
from models import batch, build, loss_of, make_mlp, plan_source
from mupscale import GrowthError
from mupscale.optim import Together, hidden_matrices
from mupscale.theory.horizon import STEPS_RATIO, rescaled

OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def values(group):
    return tuple((k, v) for k, v in sorted(group.items()) if k not in ("params", "param_names"))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ["llama", "llama_tied", "gpt2", "qwen3", "resnet"])
def test_groups_are_complete_and_no_two_alike(name, optimizer):
    narrow = build(name)
    plan = mupscale.plan(plan_source(name, narrow), width=2)
    wide = mupscale.grow(narrow, plan, operator="duplicate")
    groups = mupscale.param_groups(wide, plan, OPTIMIZERS[optimizer], lr=1e-2, weight_decay=0.1)
    assert len({values(g) for g in groups}) == len(groups) <= 4
    assert sorted(n for g in groups for n in g["param_names"]) == sorted(
        n for n, _ in wide.named_parameters()
    )
    for group in groups:
        pairs = zip(group["param_names"], group["params"], strict=True)
        assert all(wide.get_parameter(n) is p for n, p in pairs)
        assert group["lr"] == pytest.approx(1e-2 * group["lr_scale"])
    OPTIMIZERS[optimizer](groups)


def test_groups_of_an_untied_llama_are_three():
    """Hidden weights, vectors and embedding, readout: as few as the theory allows."""
    narrow = build("llama")
    plan = mupscale.plan(narrow, width=2)
    groups = mupscale.param_groups(
        mupscale.grow(narrow, plan, operator="duplicate"), plan, torch.optim.AdamW, lr=1.0, weight_decay=0.1
    )
    assert [(g["lr"], g["eps"], g["weight_decay"]) for g in groups] == [
        (1.0, 5e-9, 0.1),
        (0.5, 5e-9, 0.2),
        (0.5, 1e-8, 0.2),
    ]


def test_decay_follows_the_names_given():
    narrow = build("gpt2")
    plan = mupscale.plan(narrow, width=2)
    wide = mupscale.grow(narrow, plan, operator="duplicate")
    decay = Trainer.get_decay_parameter_names(None, wide)
    groups = mupscale.param_groups(wide, plan, torch.optim.AdamW, lr=1e-3, weight_decay=0.1, decay=decay)
    for group in groups:
        for name in group["param_names"]:
            assert (group["weight_decay"] > 0) == (name in decay), name


def test_set_lr_keeps_the_ratios():
    plan = mupscale.plan(make_mlp, width=4)
    optimizer = torch.optim.AdamW(mupscale.param_groups(make_mlp(4), plan, torch.optim.AdamW, lr=1e-2))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    optimizer.step()
    scheduler.step()
    assert {g["lr"] / g["lr_scale"] for g in optimizer.param_groups} == {5e-3}
    mupscale.set_lr(optimizer, 3e-3)
    for group in optimizer.param_groups:
        assert group["lr"] == group["initial_lr"] == 3e-3 * group["lr_scale"]


def test_lr_scale_accumulates_over_growths():
    narrow, optimizer = make_mlp(1), None
    optimizer = torch.optim.AdamW(narrow.parameters(), lr=1e-2)
    for width in (2, 4):
        plan = mupscale.plan(narrow, to=make_mlp(width))
        wide = mupscale.grow(narrow, plan, operator="duplicate")
        narrow, optimizer = wide, mupscale.carry_optimizer(optimizer, narrow, wide, plan)
    scales = {n: g["lr_scale"] for g in optimizer.param_groups for n in g["param_names"]}
    assert scales["2.weight"] == 0.25
    assert scales["2.bias"] == 1


@pytest.mark.parametrize("name", ["mlp", "gpt2", "llama_tied", "resnet"])
def test_the_weighed_norm_is_the_narrow_norm(name):
    narrow = build(name)
    plan = mupscale.plan(plan_source(name, narrow), width=3)
    wide = mupscale.grow(narrow, plan, noise=None, operator="duplicate")
    for model in (narrow, wide):
        loss_of(model, batch(name, 0)).backward()
    expected = torch.nn.utils.clip_grad_norm_(narrow.parameters(), 1e-3)
    assert mupscale.clip_grad_norm_(wide, plan, 1e-3).item() == pytest.approx(expected.item(), rel=1e-6)
    assert mupscale.clip_grad_norm_(wide, plan, 1e9).item() == pytest.approx(1e-3, rel=1e-3)


def test_carrying_keeps_class_flags_steps_and_dtypes():
    narrow = make_mlp(1)
    optimizer = torch.optim.AdamW(narrow.parameters(), lr=1e-2, betas=(0.8, 0.9), amsgrad=True, foreach=False)
    loss_of(narrow, (torch.randn(4, 7), torch.randint(5, (4,)))).backward()
    optimizer.step()
    plan = mupscale.plan(make_mlp, width=2)
    wide = mupscale.grow(narrow, plan, operator="duplicate")
    carried = mupscale.carry_optimizer(optimizer, narrow, wide, plan)
    assert type(carried) is torch.optim.AdamW
    for group in carried.param_groups:
        assert (group["betas"], group["amsgrad"], group["foreach"]) == ((0.8, 0.9), True, False)
    state = carried.state[wide[2].weight]
    assert set(state) == {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"}
    assert state["step"] == 1
    assert state["step"] is not optimizer.state[narrow[2].weight]["step"]
    assert state["exp_avg"].shape == wide[2].weight.shape


def test_moments_have_the_dtype_of_the_model_and_counts_their_own():
    """In bfloat16 a count would stand still at 256."""
    narrow, plan = make_mlp(1).bfloat16(), mupscale.plan(make_mlp, width=2)
    optimizer = torch.optim.AdamW(narrow.parameters(), lr=1e-2)
    loss_of(narrow, (torch.randn(4, 7).bfloat16(), torch.randint(5, (4,)))).backward()
    optimizer.step()
    wide = mupscale.grow(narrow, plan, operator="duplicate")
    for state in mupscale.carry_optimizer(optimizer, narrow, wide, plan).state.values():
        assert {key: value.dtype for key, value in state.items()} == {
            "step": torch.float32, "exp_avg": torch.bfloat16, "exp_avg_sq": torch.bfloat16,
        }  # fmt: skip


def test_optimizers_without_a_rule_and_foreign_parameters_are_refused():
    narrow, plan = make_mlp(1), mupscale.plan(make_mlp, width=2)
    wide = mupscale.grow(narrow, plan, operator="duplicate")
    with pytest.raises(GrowthError, match="'LBFGS' has no scaling rule: its steps come from inner products"):
        mupscale.param_groups(wide, plan, torch.optim.LBFGS, lr=1.0)
    with pytest.raises(
        GrowthError, match=r"shape \(3,\), which is not in the narrow model; give the model that it trains"
    ):
        mupscale.carry_optimizer(torch.optim.SGD([nn.Parameter(torch.ones(3))], lr=1.0), narrow, wide, plan)
    optimizer = torch.optim.SGD(narrow.parameters(), lr=1.0)
    optimizer.state[narrow[0].weight]["curvature"] = torch.ones_like(narrow[0].weight)
    with pytest.raises(GrowthError, match="0.weight: optimizer state 'curvature' has no scaling rule"):
        mupscale.carry_optimizer(optimizer, narrow, wide, plan)


def test_a_model_of_other_sizes_than_the_plans_is_refused():
    """The narrow one, given for the wide, would train by rates that are not its own."""
    narrow = make_mlp(1)
    plan = mupscale.plan(make_mlp, width=2)
    with pytest.raises(GrowthError, match="the plan gives shape .*, found"):
        mupscale.param_groups(narrow, plan, torch.optim.AdamW, lr=1e-3)
    for param in narrow.parameters():
        param.grad = torch.ones_like(param)
    with pytest.raises(GrowthError, match="build the wide model in the sizes of the plan"):
        mupscale.clip_grad_norm_(narrow, plan, 1.0)


def test_what_is_no_optimizer_and_no_rule_is_refused():
    plan = mupscale.plan(make_mlp, width=2)
    with pytest.raises(GrowthError, match="optimizer 'adamw': expected its class, such as torch.optim.AdamW"):
        mupscale.param_groups(make_mlp(2), plan, "adamw", lr=1e-3)
    with pytest.raises(GrowthError, match="rule of AdamW: expected a mupscale.Rule"):
        mupscale.register_optimizer(torch.optim.AdamW, {"momentum": 1})


def test_embeddings_have_knobs_of_their_own():
    narrow = build("gpt2_untied")
    plan = mupscale.plan(narrow, width=4)
    wide = mupscale.grow(narrow, plan, operator="duplicate")
    groups = mupscale.param_groups(
        wide,
        plan,
        torch.optim.AdamW,
        lr=1e-3,
        weight_decay=0.1,
        embedding_lr=1e-2,
        embedding_weight_decay=0.0,
    )
    found = {n: (g["lr"], g["weight_decay"], g["lr_scale"]) for g in groups for n in g["param_names"]}
    assert found["transformer.wte.weight"] == found["transformer.wpe.weight"] == (1e-2, 0.0, 10.0)
    assert found["transformer.h.0.mlp.c_fc.weight"] == (2.5e-4, 0.4, 0.25)
    assert found["lm_head.weight"] == (2.5e-4, 0.4, 0.25)
    optimizer = torch.optim.AdamW(groups)
    mupscale.set_lr(optimizer, 2e-3)
    assert {g["lr"] for g in optimizer.param_groups if "transformer.wte.weight" in g["param_names"]} == {2e-2}


def test_numbers_in_the_state_are_scaled_or_refused_too():
    narrow, plan = make_mlp(1), mupscale.plan(make_mlp, width=4)
    wide = mupscale.grow(narrow, plan, operator="duplicate")

    class Scalar(torch.optim.Optimizer):
        """Keeps a plain number beside each parameter."""

        def __init__(self, params, lr=1.0):
            super().__init__(params, {"lr": lr})

    optimizer = Scalar(narrow.parameters())
    optimizer.state[narrow[2].weight] = {"step": 3, "length": 8.0}
    mupscale.register_optimizer(Scalar, mupscale.Rule(degree=0, state={"length": mupscale.Power(weight=1)}))
    carried = mupscale.carry_optimizer(optimizer, narrow, wide, plan)
    assert carried.state[wide[2].weight] == {"step": 3, "length": 2.0}
    mupscale.register_optimizer(Scalar, mupscale.Rule(degree=0, state={}))
    with pytest.raises(GrowthError, match="2.weight: optimizer state 'length' has no scaling rule"):
        mupscale.carry_optimizer(optimizer, narrow, wide, plan)


def test_values_that_the_optimizer_does_not_know_are_refused():
    """torch keeps unknown keys of a group and ignores them: a weight decay of Rprop would never act."""
    plan = mupscale.plan(make_mlp, width=2)
    with pytest.raises(GrowthError, match="weight_decay: Rprop has no such value"):
        mupscale.param_groups(make_mlp(2), plan, torch.optim.Rprop, lr=1e-2, weight_decay=0.1)
    groups = mupscale.param_groups(make_mlp(2), plan, torch.optim.Rprop, lr=1e-2, weight_decay=0.0)
    assert all("weight_decay" not in group for group in groups)


def test_optimizers_that_step_together_can_be_copied():
    """The copy has parameters, groups and state of its own, and goes on as the original does."""
    torch.manual_seed(0)
    model = nn.Linear(3, 3)
    both = Together([torch.optim.Muon([model.weight], lr=0.1), torch.optim.AdamW([model.bias], lr=0.1)])
    copied_model, copied = copy.deepcopy((model, both))
    for m, optimizer in ((model, both), (copied_model, copied)):
        for _ in range(2):
            m(torch.ones(2, 3)).sum().backward()
            optimizer.step()
    assert copied_model.weight is not model.weight
    assert torch.equal(copied_model.weight, model.weight)
    assert torch.equal(copied_model.bias, model.bias)
    assert len(copied.state) == len(both.state) == 2


# ---- batch size and tokens ---------------------------------------------------------------------------------


def groups_by_name(plan, optimizer_class=torch.optim.AdamW, **values):
    """The values of every parameter of the wide MLP."""
    groups = mupscale.param_groups(make_mlp(4), plan, optimizer_class, lr=1e-2, **values)
    return {
        name: {k: v for k, v in g.items() if k not in ("params", "param_names")}
        for g in groups
        for name in g["param_names"]
    }


@pytest.mark.parametrize(
    ("sizes", "ratio"),
    [
        ({"batch_size": (64, 256)}, 4),
        ({"tokens": (1e9, 4e9)}, 1 / 4),
        ({"batch_size": (4, 64), "tokens": (1, 4)}, 4),
    ],
)
@pytest.mark.parametrize("optimizer_class", [torch.optim.AdamW, torch.optim.Adam])
def test_batch_size_and_tokens_scale_what_width_has_scaled(optimizer_class, sizes, ratio):
    """Each by itself and once: the factors of the one on the groups of the other; no more groups than before."""
    plan = mupscale.plan(make_mlp, width=4)
    values = {"weight_decay": 0.1, "eps": 1e-6, "betas": (0.8, 0.9), "decay": {"0.weight", "2.weight"}}
    by_width = groups_by_name(plan, optimizer_class, **values)
    both = groups_by_name(plan, optimizer_class, **values, **sizes)
    decoupled = optimizer_class is torch.optim.AdamW
    for name, group in by_width.items():
        wanted = rescaled(group, ratio, decoupled=decoupled)
        assert both[name] == {key: pytest.approx(value) for key, value in wanted.items()}, name
    assert by_width["0.bias"]["weight_decay"] == both["0.bias"]["weight_decay"] == 0
    assert len({*map(str, both.values())}) == len({*map(str, by_width.values())})


def test_without_batch_size_and_tokens_nothing_is_said_of_them():
    plan = mupscale.plan(make_mlp, width=4)
    group = groups_by_name(plan)["2.weight"]
    assert group == {"lr": 2.5e-3, "eps": 2.5e-9, "weight_decay": 0.04, "lr_scale": 0.25}
    equal = groups_by_name(plan, batch_size=(64, 64), tokens=(1e9, 1e9))["2.weight"]
    assert equal == {**group, "betas": (0.9, 0.999), STEPS_RATIO: 1.0}


def test_learning_rates_are_said_as_the_narrow_models_at_its_own_batch_size():
    plan = mupscale.plan(make_mlp, width=4)
    groups = mupscale.param_groups(make_mlp(4), plan, torch.optim.AdamW, lr=1e-2, batch_size=(64, 256))
    optimizer = torch.optim.AdamW(groups)
    mupscale.set_lr(optimizer, 3e-3)
    found = {name: g["lr"] for g in optimizer.param_groups for name in g["param_names"]}
    assert (found["0.weight"], found["2.weight"]) == (6e-3, 1.5e-3)


def test_the_embeddings_own_values_go_by_batch_size_too():
    narrow = build("gpt2_untied")
    plan = mupscale.plan(narrow, width=4)
    own = {"embedding_lr": 1e-2, "embedding_weight_decay": 0.2}
    groups = mupscale.param_groups(
        mupscale.grow(narrow, plan, operator="duplicate"),
        plan,
        torch.optim.AdamW,
        lr=1e-3,
        batch_size=(1, 4),
        **own,
    )
    group = next(g for g in groups if "transformer.wte.weight" in g["param_names"])
    assert (group["lr"], group["weight_decay"], group["lr_scale"]) == (2e-2, 0.4, 20.0)


@pytest.mark.parametrize(
    "optimizer_class",
    [torch.optim.SGD, torch.optim.Muon, torch.optim.RMSprop, torch.optim.NAdam, torch.optim.Adafactor],
)
def test_batch_size_and_tokens_are_refused_where_no_rule_is_published(optimizer_class):
    plan = mupscale.plan(make_mlp, width=2)
    for sizes in ({"batch_size": (64, 256)}, {"tokens": (1e9, 4e9)}):
        with pytest.raises(GrowthError) as caught:
            mupscale.param_groups(make_mlp(2), plan, optimizer_class, lr=1e-2, **sizes)
        assert str(caught.value).startswith(
            f"{optimizer_class.__name__}: no rule is published for both batch"
        )
        assert "\n" not in str(caught.value)


def test_a_registered_optimizer_says_whether_it_goes_by_the_rules_of_adamw():
    class Mine(torch.optim.AdamW):
        """AdamW under a name of its own."""

    plan = mupscale.plan(make_mlp, width=4)
    for horizon in (True, False):
        mupscale.register_optimizer(Mine, mupscale.Rule(degree=0, state={}, decoupled=True, horizon=horizon))
        if horizon:
            assert groups_by_name(plan, Mine, tokens=(1, 4)) == groups_by_name(plan, tokens=(1, 4))
        else:
            with pytest.raises(GrowthError, match="Mine: no rule is published"):
                groups_by_name(plan, Mine, tokens=(1, 4))


def test_what_is_loaded_by_name_was_scaled_by_the_same_batch_size_and_tokens():
    """Loading brings the saved values along. Who says no sizes goes on with those, as with the learning rate."""
    plan = mupscale.plan(make_mlp, width=2)

    def optimizer(**sizes):
        groups = mupscale.param_groups(make_mlp(2), plan, torch.optim.AdamW, lr=1e-2, **sizes)
        return mupscale.load_by_name(torch.optim.AdamW(groups))

    saved, plain = optimizer(batch_size=(1, 4)).state_dict(), optimizer().state_dict()
    for loading in (optimizer(batch_size=(2, 8)), optimizer()):
        loading.load_state_dict(saved)
        assert {g["lr_scale"] for g in loading.param_groups} == {2.0, 1.0}
    for state, sizes in ((saved, {"batch_size": (1, 8)}), (plain, {"tokens": (1, 4)})):
        with pytest.raises(GrowthError, match="0.weight: saved with values for another batch size or number"):
            optimizer(**sizes).load_state_dict(state)


def test_an_optimizer_is_carried_on_with_its_batch_size_and_tokens():
    plan = mupscale.plan(make_mlp, width=2)
    middle, wide = make_mlp(2), make_mlp(4)
    groups = mupscale.param_groups(middle, plan, torch.optim.AdamW, lr=1e-2, batch_size=(1, 4))
    further = mupscale.plan(middle, to=wide)
    carried = mupscale.carry_optimizer(torch.optim.AdamW(groups), middle, wide, further, operator="duplicate")
    at_once = groups_by_name(mupscale.plan(make_mlp, width=4), batch_size=(1, 4))
    for group in carried.param_groups:
        for name in group["param_names"]:
            assert {key: group[key] for key in at_once[name]} == at_once[name]


def stepped(model, name):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loss_of(model, batch(name, 0)).backward()
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("how", [lambda wide: wide, copy.deepcopy, torch.compile])
def test_the_state_goes_by_what_the_wide_model_was_grown_with(how):
    """Nothing has to be said twice, nor can be said wrongly."""
    narrow = build("llama")
    optimizer, plan = stepped(narrow, "llama"), mupscale.plan(narrow, width=2)
    wide = how(mupscale.grow(narrow, plan, operator="expand"))
    carried = mupscale.carry_optimizer(optimizer, narrow, wide, plan)
    names = {plan.unwrapped(name): param for name, param in wide.named_parameters()}
    state = carried.state[names["model.layers.0.mlp.up_proj.weight"]]
    assert not state["exp_avg"][48:].any()
    assert mupscale.verify(narrow, wide, plan)
    with pytest.raises(GrowthError, match="was grown with expand"):
        mupscale.carry_optimizer(optimizer, narrow, wide, plan, operator="duplicate")
    with pytest.raises(GrowthError, match="was grown with expand"):
        mupscale.verify(narrow, wide, plan, operator="duplicate")


def test_of_a_model_that_was_not_grown_here_it_has_to_be_said():
    plan = mupscale.plan(make_mlp, width=2)
    narrow, wide = make_mlp(1).double(), make_mlp(2).double()
    optimizer = stepped(narrow, "mlp")
    with pytest.raises(GrowthError, match="say what it was grown with"):
        mupscale.carry_optimizer(optimizer, narrow, wide, plan)
    assert mupscale.carry_optimizer(optimizer, narrow, wide, plan, operator="zero_pad").state


def test_what_is_no_plan_or_model_is_refused_in_one_line():
    narrow, wide = make_mlp(1), make_mlp(2)
    plan, optimizer = mupscale.plan(make_mlp, width=2), torch.optim.AdamW(narrow.parameters())
    for call in (
        lambda plan: mupscale.init_(wide, plan),
        lambda plan: mupscale.param_groups(wide, plan, torch.optim.AdamW, lr=1e-3),
        lambda plan: mupscale.clip_grad_norm_(wide, plan, 1.0),
        lambda plan: mupscale.carry_optimizer(optimizer, narrow, wide, plan),
        lambda plan: mupscale.verify(narrow, wide, plan),
        hidden_matrices,
    ):
        with pytest.raises(GrowthError, match="^plan: expected what mupscale.plan.* gives, found NoneType"):
            call(None)
    for call in (
        lambda: mupscale.init_(None, plan),
        lambda: mupscale.param_groups(None, plan, torch.optim.AdamW, lr=1e-3),
        lambda: mupscale.clip_grad_norm_(None, plan, 1.0),
        lambda: mupscale.carry_optimizer(optimizer, narrow, None, plan),
        lambda: mupscale.carry_optimizer(optimizer, None, wide, plan),
        lambda: mupscale.verify(None, wide, plan),
        lambda: mupscale.verify(narrow, None, plan),
    ):
        with pytest.raises(GrowthError, match="^(wide|narrow|model): expected a torch.nn.Module, found None"):
            call()
    with pytest.raises(GrowthError, match="^set_lr: expected an optimizer, found NoneType"):
        mupscale.set_lr(None, 1e-3)
