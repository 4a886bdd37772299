"""The public path over random modules: plan, grow, carry the optimizer, train on. Right, or refused.

A module is right when the wide one computes what the narrow one does, holds what it holds, and has the same
losses over some steps of AdamW. Whatever else than that or a `GrowthError` comes out is a failure.
"""

import copy
import math
from collections import Counter

import hypothesis
import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import nn

import mupscale
from mupscale import GrowthError
from mupscale.proof.deviations import grown_outputs
from random_modules import Recipe, inputs_of, make, recipes

TOLERANCE = 1e-10
OPTIMIZERS = {
    "AdamW": lambda params: torch.optim.AdamW(params, lr=1e-2, weight_decay=0.1),
    "Adam": lambda params: torch.optim.Adam(params, lr=1e-2, amsgrad=True),
    "SGD": lambda params: torch.optim.SGD(params, lr=1e-3, momentum=0.9, weight_decay=0.01),
}


def still(model: nn.Module) -> float:
    """Switch dropout off, which draws other numbers at another width; what it was in all."""
    total = 0.0
    for module in model.modules():
        for name in ("p", "dropout"):
            if isinstance(getattr(module, name, None), float):
                total += getattr(module, name)
                setattr(module, name, 0.0)
    return total


def shared(model: nn.Module) -> set[frozenset[str]]:
    """The names that stand for one tensor, and places outside of all modules where it is kept."""
    names: dict[int, set[str]] = {}
    for name, param in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(param), set()).add(name)
    for path, module in model.named_modules(remove_duplicate=False):
        kept = getattr(module, "kept", {})
        for key, param in kept.items() if isinstance(kept, dict) else enumerate(kept):
            names.setdefault(id(param), set()).add(f"{path}.kept[{key}]")
    return set(map(frozenset, names.values()))


def like(plan: mupscale.Plan, narrow: torch.Tensor) -> torch.Tensor:
    """The narrow model's output, or a target for it, as the wide model has it: hidden states have grown."""
    return grown_outputs([narrow], plan)[0]


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, target: torch.Tensor) -> float:
    optimizer.zero_grad()
    loss = (model(x) - target).square().mean()
    loss.backward()
    optimizer.step()
    return loss.item()


def hold(recipe: Recipe) -> str:
    """Take a module along the public path; "proved", "not proved" or what it is refused for.

    Raises:
        AssertionError: it came out wrong.
    """
    torch.manual_seed(0)
    build, x = make(recipe), inputs_of(recipe)
    narrow = build(1).double()
    with torch.no_grad():
        for tensor in (*narrow.parameters(), *narrow.buffers()):
            if tensor.is_floating_point() and tensor.ndim:  # away from zeros, ones and fresh tables
                tensor.add_(torch.randn_like(tensor), alpha=0.1)
    before = copy.deepcopy(narrow.state_dict())
    shown = x if recipe.planned_on == "random" else torch.zeros_like(x)
    try:
        if recipe.planned_from == "make":
            plan = mupscale.plan(build, width=recipe.width, inputs=shown)
        else:
            plan = mupscale.plan(narrow, to=build(recipe.width), inputs=shown)
        if not plan.proved:
            mupscale.grow(narrow, plan, operator="duplicate")
            return "not proved"
    except GrowthError as error:
        return f"refused: {error}"
    assert all(torch.equal(tensor, before[n]) for n, tensor in narrow.state_dict().items())
    assert mupscale.Plan.from_json(plan.to_json()).params == plan.params
    return grown_and_trained(narrow, recipe, plan, x)


def grown_and_trained(narrow: nn.Module, recipe: Recipe, plan: mupscale.Plan, x: torch.Tensor) -> str:
    if recipe.thawed:
        narrow.requires_grad_(True)
    pure, noisy = (
        mupscale.grow(narrow, plan, noise=noise, operator="duplicate") for noise in (None, "default")
    )
    for wide in (pure, noisy):
        assert shared(wide) == shared(narrow), "other names share a tensor"
        assert [p.requires_grad for p in wide.parameters()] == [p.requires_grad for p in narrow.parameters()]
        assert {t.dtype for t in wide.parameters()} == {torch.float64}
    dropout = [still(model) for model in (narrow, pure, noisy)]
    assert dropout[0] == dropout[1] == dropout[2], "the wide model has another dropout"
    for model in (narrow, pure, noisy):
        model.eval()
    with torch.no_grad():
        expected = narrow(x)
        for wide in (pure, noisy):
            error = (wide(x) - like(plan, expected)).abs().max().item()
            assert error <= TOLERANCE * max(1.0, expected.abs().max()), f"outputs differ by {error:.3g}"

    narrow.train()
    trained = [p for p in narrow.parameters() if p.requires_grad]
    if not trained:
        return "proved"
    optimizer = OPTIMIZERS[recipe.optimizer](trained)
    target = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for _ in range(2):
        step(narrow, optimizer, x, target)
    wide = mupscale.grow(narrow, plan, noise=None, operator="duplicate")
    still(wide)
    wide_target = like(plan, target)
    try:
        wide_optimizer = mupscale.carry_optimizer(optimizer, narrow, wide, plan)
    except GrowthError as error:  # weight decay of a gain that is stored as its difference from one
        return f"refused: {error}"
    report = mupscale.verify(narrow, wide, plan, x, optimizer=wide_optimizer)
    assert report, f"{report}"
    for i in range(5):
        a, b = step(narrow, optimizer, x, target), step(wide, wide_optimizer, x, wide_target)
        assert abs(a - b) <= TOLERANCE * max(1.0, abs(a)), f"step {i}: narrow {a}, wide {b}"
    return "proved"


def outcomes_of(count: int, seed: int) -> Counter[str]:
    """How many of so many modules were proved, and so on; hypothesis shows the plainest that is wrong."""
    outcomes: Counter[str] = Counter()

    @hypothesis.seed(seed)
    @settings(max_examples=count, database=None, suppress_health_check=[HealthCheck.too_slow])
    @hypothesis.given(recipes())
    def each(recipe: Recipe) -> None:
        outcomes[hold(recipe).partition(":")[0]] += 1

    each()
    return outcomes


def test_modules_are_right_or_refused():
    outcomes = outcomes_of(40, seed=0)
    assert outcomes["proved"] >= 0.7 * outcomes.total(), outcomes


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 21))
def test_two_thousand_modules_are_right_or_refused(seed):
    outcomes = outcomes_of(100, seed)
    assert outcomes["proved"] >= 0.55 * outcomes.total(), outcomes


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(head="query"),
        Recipe(blocks=("experts",), norm="rms"),
        Recipe(blocks=("conv", "places"), inputs="images", d_model=6, groups="two"),
        Recipe(blocks=("lstm",), norm="batch", width=3),
        Recipe(blocks=("attention", "mlp"), inputs="tokens", head="tied", last_norm=True, norm="layer"),
    ],
)
@pytest.mark.parametrize(
    ("operator", "noise"),
    [
        *(
            ("duplicate", f"{kind}:0.2")
            for kind in ("relative", "gaussian", "spectral", "interpolate", "hadamard")
        ),
        *((operator, "default") for operator in ("hyperclone", "net2net", "aki", "zero_pad")),
    ],
)
def test_other_operators_and_noise_grow_what_people_write(recipe, operator, noise):
    torch.manual_seed(0)
    build, x = make(recipe), inputs_of(recipe)
    narrow, plan = build(1).double().eval(), mupscale.plan(build, width=recipe.width, inputs=x)
    wide = mupscale.grow(narrow, plan, operator=operator, noise=noise)
    assert shared(wide) == shared(narrow)
    difference = (wide(x) - narrow(x)).abs().max()
    assert difference.isfinite()
    assert difference < TOLERANCE or operator != "hyperclone"
    if operator == "duplicate":  # what is drawn goes with its strength, and by √t where it is mixed in
        kind, pure = noise.partition(":")[0], mupscale.grow(narrow, plan, operator=operator, noise=None)
        twice = mupscale.grow(narrow, plan, operator=operator, noise=f"{kind}:0.4")
        mixed = kind == "interpolate"
        for name, copied in pure.named_parameters():
            once, double = (
                (
                    noisy.get_parameter(name)
                    - (math.sqrt(1 - t) if mixed and plan[name].has_noise else 1) * copied
                ).norm()
                for noisy, t in ((wide, 0.2), (twice, 0.4))
            )
            assert (once > 0) == plan[name].has_noise, name
            torch.testing.assert_close(double, once * (math.sqrt(2) if mixed else 2), rtol=1e-4, atol=0)
