"""The wide model equals the narrow one throughout training (Ma et al. 2026)."""

import pytest
import torch
from torch.optim import SGD, Adam, AdamW

from lockstep import assert_lockstep

OPTIMIZERS = {
    "sgd": lambda params: SGD(params, lr=0.05),
    "sgd_momentum": lambda params: SGD(params, lr=0.02, momentum=0.9, nesterov=True, weight_decay=0.01),
    "sgd_dampening": lambda params: SGD(params, lr=0.02, momentum=0.9, dampening=0.3),
    "adam": lambda params: Adam(params, lr=3e-3, eps=1e-4),
    "adam_l2": lambda params: Adam(params, lr=3e-3, weight_decay=0.05),
    "adam_amsgrad": lambda params: Adam(params, lr=3e-3, amsgrad=True),
    "adam_decoupled": lambda params: Adam(params, lr=3e-3, weight_decay=0.1, decoupled_weight_decay=True),
    "adamw": lambda params: AdamW(params, lr=3e-3, weight_decay=0.1),
}
MODELS = ["mlp", "resnet", "gpt2", "llama", "llama_tied", "qwen3"]


@pytest.mark.parametrize("growth", [2, 3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", MODELS)
def test_grown_mid_training_stays_in_lockstep(name, optimizer, growth):
    assert_lockstep(name, OPTIMIZERS[optimizer], growth)


@pytest.mark.parametrize("optimizer", ["sgd_momentum", "adamw"])
@pytest.mark.parametrize("name", MODELS)
def test_clipping_is_width_invariant(name, optimizer):
    assert_lockstep(name, OPTIMIZERS[optimizer], 3, max_norm=0.05)


@pytest.mark.parametrize("name", ["gpt2_untied", "llama_biases", "mistral", "qwen2", "qwen3_tied"])
def test_other_families_stay_in_lockstep(name):
    assert_lockstep(name, OPTIMIZERS["adamw"], 2)


def test_tensor_lr_is_carried():
    assert_lockstep(
        "mlp", lambda params: AdamW(params, lr=torch.tensor(3e-3, dtype=torch.float64), foreach=False), 2
    )
