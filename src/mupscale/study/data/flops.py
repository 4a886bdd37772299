"""How many floating point operations a training step costs.

Knows torch's flop counter, transformers configs and plain modules; nothing of growth or training loops.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig


def training_flops(config: PretrainedConfig, *, batch_size: int, block_size: int) -> int:
    """Count the FLOPs of one training step of a causal language model: forward and backward.

    The step really runs, on the `meta` device (shapes only, so any size counts in a moment), under
    `torch.utils.flop_counter.FlopCounterMode`. That counts matrix products, at two operations per
    multiply-add. Attention is the eager one, whose two products are counted in full: the masked half is
    included, as is usual.
    Elementwise work (norms, activations, softmax, the optimizer's update) is not counted.

    Args:
        config: a transformers config of a causal language model.
        batch_size: sequences in a step.
        block_size: tokens in a sequence.

    Returns:
        Floating point operations in one step.

    Example:
        >>> from transformers import LlamaConfig
        >>> sizes = dict(num_hidden_layers=1, num_attention_heads=2, vocab_size=64)
        >>> narrow, wide = (LlamaConfig(hidden_size=d, intermediate_size=2 * d, **sizes) for d in (32, 64))
        >>> counts = [training_flops(config, batch_size=1, block_size=8) for config in (narrow, wide)]
        >>> 3 < counts[1] / counts[0] < 4
        True
    """
    return _count(config.to_json_string(), config.model_type, batch_size, block_size)


@lru_cache(maxsize=64)
def _count(config_json: str, model_type: str, batch_size: int, block_size: int) -> int:
    config = AutoConfig.for_model(**{**json.loads(config_json), "model_type": model_type})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        input_ids_BT = torch.zeros(batch_size, block_size, dtype=torch.long)
        # Given a mask, transformers does not look at values to find packed sequences, which meta tensors
        # lack.
        mask_B1TT = torch.zeros(batch_size, 1, block_size, block_size)
    model.train()
    with FlopCounterMode(display=False) as counter:
        loss = model(
            input_ids=input_ids_BT, attention_mask=mask_B1TT, labels=input_ids_BT, use_cache=False
        ).loss
        loss.backward()
    return int(counter.get_total_flops())


def module_flops(model: nn.Module, batch: Mapping[str, Tensor]) -> int:
    """Count the FLOPs of one training step of a module whose ``forward(**batch)`` returns a ``"loss"``.

    As `training_flops` counts them, on the `meta` device: matrix products and convolutions, forward and
    backward.

    Args:
        model: stays as it is.
        batch: of the training step's shapes, best on the `meta` device itself; values do not matter.

    Returns:
        Floating point operations in one step.

    Example:
        >>> from mupscale.study.runs.networks import mlp
        >>> batch = {"inputs": torch.empty(10, 8), "labels": torch.empty(10, dtype=torch.long)}
        >>> forward = 2 * 10 * (8 * 16 + 16 * 3)
        >>> module_flops(mlp(16, inputs=8, classes=3, layers=2), batch) == 3 * forward - 2 * 10 * 8 * 16
        True
    """
    on_meta = copy.deepcopy(model).to("meta").train()
    with FlopCounterMode(display=False) as counter:
        loss = on_meta(**{name: value.to("meta") for name, value in batch.items()})["loss"]
        loss.backward()
    return int(counter.get_total_flops())
