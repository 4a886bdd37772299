"""Every optimizer of torch.optim, with every flag that changes its arithmetic, in lockstep or refused."""

import math
from contextlib import nullcontext

import pytest
import torch
from torch import nn, optim
from torch.overrides import TorchFunctionMode

import mupscale
from lockstep import assert_duplicates, assert_lockstep
from models import batch, build, loss_of, make_mlp, plan_source
from mupscale import GrowthError, Power, Rule
from mupscale.models.precision import Float64
from mupscale.operators.duplicate import duplicate_scaled
from mupscale.theory.registry import rule_for

# ResNet's SGD-like updates and sign-like ones are kept small: the bound is on rounding, not on a diverging run.
OPTIMIZERS = {
    "sgd": lambda p: optim.SGD(p, lr=0.02),
    "sgd nesterov l2": lambda p: optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True, weight_decay=0.01),
    "sgd dampening maximize": lambda p: optim.SGD(p, lr=1e-3, momentum=0.9, dampening=0.3, maximize=True),
    "asgd": lambda p: optim.ASGD(p, lr=0.02, lambd=1e-2, t0=12, weight_decay=0.01),
    "adam": lambda p: optim.Adam(p, lr=3e-3, eps=1e-4),
    "adam l2": lambda p: optim.Adam(p, lr=3e-3, weight_decay=0.05),
    "adam amsgrad": lambda p: optim.Adam(p, lr=3e-3, amsgrad=True),
    "adam l2 amsgrad": lambda p: optim.Adam(p, lr=3e-3, weight_decay=0.05, amsgrad=True),
    "adam decoupled": lambda p: optim.Adam(p, lr=3e-3, weight_decay=0.1, decoupled_weight_decay=True),
    "adamw tensor lr": lambda p: optim.AdamW(p, lr=torch.tensor(3e-3, dtype=torch.float64), foreach=False),
    "adam foreach": lambda p: optim.Adam(p, lr=3e-3, foreach=True),
    "adamw": lambda p: optim.AdamW(p, lr=3e-3, weight_decay=0.1),
    "adamw fused": lambda p: optim.AdamW(p, lr=3e-3, weight_decay=0.1, fused=True),
    "adamw maximize": lambda p: optim.AdamW(p, lr=1e-3, maximize=True),
    "adamax": lambda p: optim.Adamax(p, lr=3e-3, eps=1e-4, weight_decay=0.05),
    "nadam": lambda p: optim.NAdam(p, lr=3e-3, weight_decay=0.05),
    "nadam decoupled": lambda p: optim.NAdam(p, lr=3e-3, weight_decay=0.05, decoupled_weight_decay=True),
    "radam": lambda p: optim.RAdam(p, lr=3e-3, weight_decay=0.05),
    "radam decoupled": lambda p: optim.RAdam(p, lr=3e-3, weight_decay=0.05, decoupled_weight_decay=True),
    "adagrad": lambda p: optim.Adagrad(p, lr=1e-2, lr_decay=0.01, weight_decay=0.01, eps=1e-4),
    "adagrad accumulated": lambda p: optim.Adagrad(p, lr=1e-2, initial_accumulator_value=0.1),
    "adadelta": lambda p: optim.Adadelta(p, lr=0.5, weight_decay=0.01),
    "rmsprop": lambda p: optim.RMSprop(p, lr=1e-3, eps=1e-4),
    "rmsprop centered": lambda p: optim.RMSprop(p, lr=1e-3, centered=True, momentum=0.9, weight_decay=0.01),
    "rprop": lambda p: optim.Rprop(p, lr=1e-3, step_sizes=(1e-4, 2e-3)),
    "adafactor": lambda p: optim.Adafactor(p, lr=1e-2, weight_decay=0.1),
    "adafactor clamped": lambda p: optim.Adafactor(p, lr=1e-2, eps=(1e-9, 0.05), d=1.5),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("name", "growth"), [("mlp", 3), ("resnet", 2), ("llama_tied", 3)])
def test_grown_mid_training_stays_in_lockstep(name, growth, optimizer):
    assert_lockstep(name, OPTIMIZERS[optimizer], growth)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_asymmetric_state_is_the_carried_one_of_the_first_copies_alone(optimizer):
    narrow = build("llama_tied").train()
    ours, plan = OPTIMIZERS[optimizer](list(narrow.parameters())), mupscale.plan(narrow, width=3)
    for seed in range(6):  # RAdam adapts after five
        ours.zero_grad()
        loss_of(narrow, batch("llama_tied", seed)).backward()
        ours.step()
    wide = mupscale.grow(narrow, plan, noise=None, operator="duplicate")
    carried = mupscale.carry_optimizer(ours, narrow, wide, plan)
    if optimizer in ("asgd", "rprop"):  # zeros would be an average of weights, a step of no size
        with pytest.raises(GrowthError, match="cannot be zero; start with a fresh optimizer"):
            mupscale.carry_optimizer(ours, narrow, wide, plan, state="asymmetric")
        return
    asymmetric = mupscale.carry_optimizer(ours, narrow, wide, plan, state="asymmetric")
    tensors = 0
    for name, param in wide.named_parameters():
        dims, sizes = plan[name].axes.dims, plan.layout.sizes
        outputs = any(d.growth(plan.growth) > 1 for d in dims if not d.contracted)
        for key, value in carried.state[param].items():
            found = asymmetric.state[param][key]
            if getattr(value, "shape", None) != param.shape:
                continue  # counts, and Adafactor's means over rows and columns
            tensors += 1
            kept = torch.ones_like(value, dtype=torch.bool)
            for place, dim in enumerate(dims):
                if dim.growth(plan.growth) > 1 and dim.contracted != outputs:
                    seen, first = set(), []
                    for index, source in enumerate(dim.sources(sizes, plan.growth).tolist()):
                        first += [] if source in seen else [index]
                        seen.add(source)
                    later = [i for i in range(param.shape[place]) if i not in first]
                    kept.index_fill_(place, torch.tensor(later), False)
            assert 0 < kept.double().mean() < 1, name
            assert torch.equal(found, torch.where(kept, value, 0)), (name, key)
    assert tensors or optimizer in ("sgd",) or optimizer.startswith("adafactor")
    loss_of(wide, batch("llama_tied", 3)).backward()
    asymmetric.step()
    assert all(p.isfinite().all() for p in wide.parameters())


def test_asymmetric_state_makes_pure_copies_differ():
    narrow = build("llama").train()
    plan = mupscale.plan(narrow, width=2)
    optimizer = optim.AdamW(narrow.parameters(), lr=1e-2)
    loss_of(narrow, batch("llama", 0)).backward()
    optimizer.step()
    wide = mupscale.grow(narrow, plan, noise=None, operator="duplicate")
    carried = mupscale.carry_optimizer(optimizer, narrow, wide, plan, state="asymmetric")
    loss_of(wide, batch("llama", 1)).backward()
    carried.step()
    first, second = wide.model.norm.weight.detach().view(-1, 2).unbind(1)
    assert (first - second).abs().max() > 1e-4


def test_no_asymmetric_state_without_copies():
    narrow = build("llama")
    plan, optimizer = mupscale.plan(narrow, width=2), optim.AdamW(narrow.parameters())
    wide = mupscale.grow(narrow, plan, operator="zero_pad")
    with pytest.raises(
        GrowthError, match="'asymmetric' needs copies, which zero_pad makes none of; choose carried"
    ):
        mupscale.carry_optimizer(optimizer, narrow, wide, plan, operator="zero_pad", state="asymmetric")
    with pytest.raises(GrowthError, match="expected carried or asymmetric"):
        mupscale.carry_optimizer(optimizer, narrow, wide, plan, state="half")


def test_every_optimizer_of_torch_has_a_rule_or_a_refusal():
    known = {type(make([nn.Parameter(torch.zeros(2))])) for make in OPTIMIZERS.values()}
    known |= {optim.Muon, optim.SparseAdam}
    everything = {
        c for c in vars(optim).values() if isinstance(c, type) and issubclass(c, optim.Optimizer)
    } - {optim.Optimizer}
    assert everything - known == {optim.LBFGS}
    assert len(known) == 14


# ---- Muon --------------------------------------------------------------------------------------------------


class NoBfloat16(TorchFunctionMode):
    """Newton–Schulz in float64: what Muon asks of bfloat16, it gets in float64."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.bfloat16:
            return args[0].double()
        return func(*args, **(kwargs or {}))


def train_muon(adjust, growth, steps, axes=None):
    """Muon on the matrices, AdamW on the rest; returns loss differences and every matrix's relative gap."""
    narrow = build("llama").train()
    plan = mupscale.plan(narrow, width=growth, axes=axes)
    matrices = set(mupscale.hidden_matrices(plan))
    flags = {"lr": 0.01, "weight_decay": 0.1, "adjust_lr_fn": adjust}

    def optimizers(model):
        named = list(model.named_parameters())
        return [
            optim.Muon([p for n, p in named if n in matrices], **flags),
            optim.AdamW([p for n, p in named if n not in matrices], lr=1e-3),
        ]

    def step(model, both, seed):
        model.zero_grad()
        loss = loss_of(model, batch("llama", seed))
        loss.backward()
        for one in both:
            one.step()
        return loss.item()

    both = optimizers(narrow)
    for i in range(10):
        step(narrow, both, i)
    wide = mupscale.grow(narrow, plan, noise=None, operator="duplicate")
    wide_both = [mupscale.carry_optimizer(o, narrow, wide, plan) for o in both]
    before = {n: p.detach().clone() for n, p in narrow.named_parameters()}
    wide_before = {n: p.detach().clone() for n, p in wide.named_parameters()}
    gaps = [abs(step(narrow, both, i) - step(wide, wide_both, i)) for i in range(10, 10 + steps)]
    for name in matrices:
        p = plan.params[name]
        moved = (narrow.get_parameter(name) - before[name]).detach()
        wide_moved = (wide.get_parameter(name) - wide_before[name]).detach()
        expected = duplicate_scaled(moved, p.axes, plan.layout.sizes, plan.growth, p.weight_scale)
        gaps.append(((wide_moved - expected).norm() / expected.norm()).item())
    return narrow, wide, plan, gaps[:steps], gaps[steps:]


@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("growth", [2, 3])
def test_muon_is_exact_in_float64(adjust, growth):
    with Float64(), NoBfloat16():
        narrow, wide, plan, losses, updates = train_muon(adjust, growth, steps=20, axes={"d_ff": 3})
    assert max(losses) <= 1e-10
    assert max(updates) <= 1e-10
    assert_duplicates(narrow, wide, plan)


def test_muon_in_bfloat16_is_off_by_less_than_a_thousandth_when_doubled():
    with Float64():
        _, _, _, _, updates = train_muon("original", 2, steps=1)
    assert max(updates) <= 1e-3


@pytest.mark.parametrize("growth", [3, 4])
def test_muon_in_bfloat16_is_off_by_its_own_rounding_at_other_factors(growth):
    """Longer sums and inputs over √m round differently, by as much as bfloat16 does against float64."""
    with Float64():
        narrow, _, _, _, updates = train_muon("original", growth, steps=1)
        gradient = torch.randn_like(narrow.model.layers[0].mlp.up_proj.weight)
        rounded, exact = (_orthogonalize(gradient, mode) for mode in (nullcontext(), NoBfloat16()))
    own = ((rounded - exact).norm() / exact.norm()).item()
    assert max(updates) <= 5 * own


def _orthogonalize(gradient, mode):
    """One step of Muon at lr 1 without momentum: the orthogonalized gradient."""
    param = nn.Parameter(torch.zeros_like(gradient))
    param.grad = gradient.clone()
    with mode:
        optim.Muon([param], lr=1.0, weight_decay=0.0, momentum=0.0).step()
    return param.detach()


def test_muon_takes_matrices_only():
    plan = mupscale.plan(make_mlp, width=2)
    with pytest.raises(GrowthError, match=r"Muon takes matrices.*give that to AdamW"):
        mupscale.param_groups(make_mlp(2), plan, optim.Muon, lr=1e-2)
    groups = mupscale.param_groups(
        make_mlp(2), plan, optim.Muon, lr=1e-2, only=mupscale.hidden_matrices(plan)
    )
    assert [n for g in groups for n in g["param_names"]] == ["0.weight", "2.weight"]
    optim.Muon(groups)


# ---- sparse gradients, first steps, optimizers from elsewhere ----------------------------------------------


def test_sparse_adam_on_an_embedding():
    def make(width):
        return nn.Sequential(nn.Embedding(11, 6 * width, sparse=True), nn.Flatten(), nn.Linear(12 * width, 3))

    torch.manual_seed(0)
    narrow = make(1).double()
    plan = mupscale.plan(narrow, to=make(3), hints={"2.weight": "3 [2 channels]", "0.weight": "11 channels"})

    def optimizers(model):
        return optim.SparseAdam(list(model[0].parameters()), lr=1e-2), optim.Adam(
            model[2].parameters(), lr=1e-2
        )

    def step(model, both, seed):
        generator = torch.Generator().manual_seed(seed)
        x, y = torch.randint(11, (5, 2), generator=generator), torch.randint(3, (5,), generator=generator)
        model.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        for one in both:
            one.step()
        return loss.item()

    both = optimizers(narrow)
    for i in range(10):
        step(narrow, both, i)
    wide = mupscale.grow(narrow, plan, noise=None, operator="duplicate")
    wide_both = [mupscale.carry_optimizer(o, narrow, wide, plan) for o in both]
    for i in range(10, 30):
        assert abs(step(narrow, both, i) - step(wide, wide_both, i)) <= 1e-10
    assert_duplicates(narrow, wide, plan)


def test_radam_is_refused_while_it_is_not_adaptive_yet():
    with pytest.raises(GrowthError, match="after 2 steps RAdam still takes steps of momentum"):
        assert_lockstep("mlp", lambda p: optim.RAdam(p, lr=1e-3), 2, before=2)
    assert_lockstep("mlp", lambda p: optim.RAdam(p, lr=1e-3), 2, before=5)


@pytest.mark.parametrize(
    "optimizer",
    [
        k
        for k in OPTIMIZERS
        if k not in ("adamw tensor lr", "radam", "radam decoupled", "adagrad accumulated")
    ],
)
def test_groups_from_scratch_stay_in_lockstep_too(optimizer):
    """Fresh groups from `param_groups` on a pure copy train as the narrow model does from its first step."""
    narrow = build("mlp")
    plan = mupscale.plan(plan_source("mlp", narrow), width=3)
    wide = mupscale.grow(narrow, plan, noise=None, operator="duplicate")
    fresh = OPTIMIZERS[optimizer](list(narrow.parameters()))
    given = {k: v for k, v in fresh.param_groups[0].items() if k not in ("params", "lr")}
    lr = fresh.param_groups[0]["lr"]
    twin = type(fresh)(
        mupscale.param_groups(wide, plan, type(fresh), lr=lr, **given), **_constructor(fresh, given)
    )
    for seed in range(10):
        losses = []
        for model, optimizer_ in ((narrow, fresh), (wide, twin)):
            model.zero_grad()
            loss = loss_of(model, batch("mlp", seed))
            loss.backward()
            optimizer_.step()
            losses.append(loss.item())
        assert abs(losses[0] - losses[1]) <= 1e-10, seed


def _constructor(optimizer, given):
    """Flags that a class reads from its constructor and not from its groups."""
    return {k: given[k] for k in ("fused",) if given.get(k)}


class Lion(optim.Optimizer):
    """Chen et al. 2023, arXiv 2302.06675: the sign of an interpolated momentum, with decoupled weight decay."""

    def __init__(self, params, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                average = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                update = average.lerp(p.grad, 1 - group["betas"][0])
                p.sub_(group["lr"] * torch.sign(update))
                average.lerp_(p.grad, 1 - group["betas"][1])


def test_an_optimizer_from_elsewhere_is_registered():
    with pytest.raises(GrowthError, match=r"'Lion' has no scaling rule; .* register it with mupscale"):
        assert_lockstep("mlp", lambda p: Lion(p, lr=1e-3), 2)
    mupscale.register_optimizer(Lion, Rule(degree=0, state={"exp_avg": 1}, decoupled=True))
    for name in ("mlp", "resnet"):
        assert_lockstep(name, lambda p: Lion(p, lr=1e-4, weight_decay=0.1), 3)


def test_a_rule_holds_of_subclasses_that_take_the_same_steps():
    class Named(optim.Adagrad):
        """Its `step` is there after the first one is made: torch's, wrapped."""

    class Trusting(optim.SGD):
        """You et al. 2017, arXiv 1708.03888: by a ratio of norms, which growth scales otherwise."""

        def step(self, closure=None):
            for p in (p for group in self.param_groups for p in group["params"]):
                p.grad.mul_(p.norm() / p.grad.norm())
            return super().step(closure)

    for kind in (Named, optim.SGD):
        assert_lockstep("mlp", lambda p, kind=kind: kind(p, lr=1e-3), 2)
    with pytest.raises(GrowthError, match="'Trusting' .* of which that of SGD may not hold; register it"):
        assert_lockstep("mlp", lambda p: Trusting(p, lr=1e-3), 2)
    mupscale.register_optimizer(Trusting, Rule(degree=0, state={}))
    assert not rule_for(Trusting, {}).degree


def test_powers_are_powers():
    p = mupscale.plan(make_mlp, width=4).params["2.weight"]
    assert Power(grad=2, weight=-1)(p) == pytest.approx(p.grad_scale**2 / p.weight_scale)
    assert Power()(p) == 1
    assert math.isclose(Power(weight=1)(p), 0.25)


def one_wide(step=True, frozen=False):
    make = lambda width: nn.Sequential(nn.Linear(3, 1 * width), nn.Tanh(), nn.Linear(1 * width, 2))  # noqa: E731
    narrow, plan = make(1), mupscale.plan(make, width=3)
    narrow[0].bias.requires_grad_(not frozen)
    return narrow, mupscale.grow(narrow, plan, operator="duplicate"), plan


def test_radam_is_refused_of_a_parameter_that_has_no_state_yet():
    narrow, wide, plan = one_wide()
    optimizer = optim.RAdam(narrow.parameters())
    with pytest.raises(GrowthError, match="^0.weight: after 0 steps RAdam still takes steps of momentum"):
        mupscale.carry_optimizer(optimizer, narrow, wide, plan)
    for _ in range(6):
        narrow[0].weight.grad = torch.ones_like(narrow[0].weight)
        optimizer.step()
    with pytest.raises(GrowthError, match="^0.bias: after 0 steps RAdam"):
        mupscale.carry_optimizer(optimizer, narrow, wide, plan)


def test_a_frozen_parameter_needs_no_state():
    narrow, wide, plan = one_wide(frozen=True)
    optimizer = optim.RAdam(narrow.parameters())
    for _ in range(6):
        narrow(torch.ones(2, 3)).sum().backward()
        optimizer.step()
    assert wide[0].bias not in mupscale.carry_optimizer(optimizer, narrow, wide, plan).state


def test_factored_state_over_a_dim_of_size_one_that_grows_is_refused():
    narrow, wide, plan = one_wide()
    optimizer = optim.Adafactor(narrow.parameters())
    narrow(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    with pytest.raises(
        GrowthError, match="^0.weight: optimizer state 'col_var' is reduced over a dim of size 1"
    ):
        mupscale.carry_optimizer(optimizer, narrow, wide, plan)
