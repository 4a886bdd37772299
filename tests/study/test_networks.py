"""The plain networks of studies grow exactly, at rest and in training."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

import mupscale
from mupscale import GrowthError
from mupscale.study.data.flops import training_flops
from mupscale.study.runs.networks import mlp, resnet18

MLP = partial(mlp, inputs=6, classes=3)
RESNET = partial(resnet18, channels=2, classes=3)


def batch(make: Callable[[int], nn.Module], seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (8, 6) if make is MLP else (8, 2, 8, 8)
    inputs = torch.randn(shape, generator=generator, dtype=torch.float64)
    return {"inputs": inputs, "labels": torch.randint(3, (8,), generator=generator)}


@pytest.mark.parametrize("make", [MLP, RESNET], ids=["mlp", "resnet18"])
@pytest.mark.parametrize(
    "optimizer_class",
    [
        partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.01),
        partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.1),
    ],
    ids=["sgd", "adamw"],
)
def test_growth_keeps_logits_and_training(
    make: Callable[[int], nn.Module], optimizer_class: Callable[..., torch.optim.Optimizer]
) -> None:
    torch.manual_seed(0)
    narrow = make(4).double()
    optimizer = optimizer_class(narrow.parameters())

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> float:
        optimizer.zero_grad()
        loss = model(**batch(make, seed))["loss"]
        loss.backward()
        optimizer.step()
        return loss.item()

    for seed in range(3):
        step(narrow, optimizer, seed)
    plan = mupscale.plan(lambda factor: make(4 * factor), width=2)
    noisy = mupscale.grow(narrow, plan, operator="duplicate")
    wide = mupscale.grow(narrow, plan, noise=None, operator="duplicate")
    with torch.no_grad():
        for model in (noisy, wide):
            logits = [m.eval()(batch(make, 9)["inputs"])["logits"] for m in (narrow, model)]
            torch.testing.assert_close(*logits, rtol=1e-10, atol=1e-12)
    wide_optimizer = mupscale.carry_optimizer(optimizer, narrow.train(), wide.train(), plan)
    for seed in range(3, 7):
        assert step(wide, wide_optimizer, seed) == pytest.approx(step(narrow, optimizer, seed), abs=1e-9)


@pytest.mark.parametrize("make", [MLP, RESNET], ids=["mlp", "resnet18"])
def test_mup_initialization_keeps_the_size_of_hidden_features(make: Callable[[int], nn.Module]) -> None:
    sizes = []
    for factor in (1, 4):
        plan = mupscale.plan(lambda f: make(8 * f), width=factor)
        model = mupscale.init_(make(8 * factor).double(), plan, seed=3)
        features = model.body(batch(make, 0)["inputs"])
        sizes.append(features.square().mean().sqrt().item())
    assert 0.5 < sizes[1] / sizes[0] < 2


def test_usual_resnet18_has_the_usual_size() -> None:
    network = resnet18(64, channels=3, classes=100)
    assert sum(p.numel() for p in network.parameters()) == 11_220_132
    batch = {"inputs": torch.empty(1, 3, 32, 32), "labels": torch.zeros(1, dtype=torch.long)}
    # 0.56e9 multiply-adds forward; backward twice that.
    assert training_flops(network, batch) == pytest.approx(3 * 2 * 0.556e9, rel=0.01)


def test_bad_input_is_named() -> None:
    with pytest.raises(GrowthError, match="layers is 1, expected at least 2"):
        mlp(8, inputs=2, classes=2, layers=1)
