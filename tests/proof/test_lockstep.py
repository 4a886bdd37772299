"""The wide model equals the narrow one throughout training (Ma et al. 2026)."""

import pytest
from torch.optim import SGD, AdamW

import mupscale
from lockstep import assert_lockstep
from models import batch, build, loss_of
from mupscale.models.precision import Float64

# One of each degree, with momentum and weight decay; test_every_optimizer has all others on three models.
OPTIMIZERS = {
    "sgd_momentum": lambda params: SGD(params, lr=0.02, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adamw": lambda params: AdamW(params, lr=3e-3, weight_decay=0.1),
}
MODELS = ["mlp", "resnet", "gpt2", "llama", "llama_tied", "qwen3"]


@pytest.mark.parametrize("growth", [2, 3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3"])
def test_grown_mid_training_stays_in_lockstep(name, optimizer, growth):
    assert_lockstep(name, OPTIMIZERS[optimizer], growth)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", MODELS)
def test_clipping_is_width_invariant(name, optimizer):
    assert_lockstep(name, OPTIMIZERS[optimizer], 3, max_norm=0.05)


@pytest.mark.parametrize(
    "name", ["gpt2_untied", "llama_biases", "mistral", "qwen2", "qwen3_tied", "gpt_neox"]
)
def test_other_families_stay_in_lockstep(name):
    assert_lockstep(name, OPTIMIZERS["adamw"], 2)


@pytest.mark.parametrize("name", ["gpt2", "llama_tied"])
def test_growing_again_between_steps_stays_in_lockstep(name):
    """One axis, some steps, all axes: groups and scales go on from what the first growth made them."""
    narrow = build(name).train()
    optimizer = AdamW(narrow.parameters(), lr=5e-3, weight_decay=0.1)
    model, grown, difference = narrow, optimizer, 0.0
    with Float64():
        for seed in range(18):
            if seed in (6, 9):
                plan = mupscale.plan(model, **({"axes": {"d_ff": 3}} if seed == 6 else {"width": 2}))
                wide = mupscale.grow(model, plan, noise=None, operator="duplicate")
                grown, model = mupscale.carry_optimizer(grown, model, wide, plan), wide
            losses = []
            for m, o in {narrow: optimizer, model: grown}.items():
                o.zero_grad()
                loss = loss_of(m, batch(name, seed))
                loss.backward()
                o.step()
                losses.append(loss.item())
            difference = max(difference, abs(losses[0] - losses[-1]))
    assert model.config.hidden_size == 64
    assert difference < 1e-10
