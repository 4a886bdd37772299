"""What a training step costs: a module run without its weights, and without anything reading values.

Knows torch's flop counter and what transformers' models need for that; nothing of growth or training loops.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

_COUNTED: dict[Any, int] = {}


def training_flops(model: nn.Module, batch: Mapping[str, Tensor]) -> int:
    """Count the FLOPs of one training step: forward and backward.

    The step really runs, on the `meta` device (shapes only, so any size counts in a moment), under
    `torch.utils.flop_counter.FlopCounterMode`. That counts matrix products and convolutions, at two
    operations per multiply-add. Attention of transformers' models is the eager one, whose two products are
    counted in full: the masked half is included, as is usual. Elementwise work (norms, activations, softmax,
    the optimizer's update) is not counted.

    Args:
        model: its ``forward(**batch)`` returns a dict, or a transformers output, with ``loss``; stays as it
            is.
        batch: of the training step's shapes, best on the `meta` device itself; values do not matter.

    Returns:
        Floating point operations in one step.

    Example:
        >>> from mupscale.study.runs.networks import mlp
        >>> batch = {"inputs": torch.empty(10, 8), "labels": torch.empty(10, dtype=torch.long)}
        >>> forward = 2 * 10 * (8 * 16 + 16 * 3)
        >>> training_flops(mlp(16, inputs=8, classes=3, layers=2), batch) == 3 * forward - 2 * 10 * 8 * 16
        True
    """
    if not isinstance(model, PreTrainedModel):
        return _count(model, batch)
    # Here the config says everything.
    key = (type(model), model.config.to_json_string(), *((n, v.shape) for n, v in batch.items()))
    if key not in _COUNTED:
        _COUNTED[key] = _count(model, batch)
    return _COUNTED[key]


def _count(model: nn.Module, batch: Mapping[str, Tensor]) -> int:
    shell, batch = without_weights(model).train(), {name: value.to("meta") for name, value in batch.items()}
    with FlopCounterMode(display=False) as counter:
        shell(**batch, **fixed_inputs(shell, batch))["loss"].backward()
    return int(counter.get_total_flops())


def without_weights(model: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers are on the `meta` device, and whose attention is eager.

    What is tied stays tied. No memory is taken for weights, not even in between.
    """
    empty: dict[int, Any] = {id(p): nn.Parameter(p.to("meta"), p.requires_grad) for p in model.parameters()}
    empty |= {id(b): b.to("meta") for b in model.buffers()}
    shell = copy.deepcopy(model, empty)
    if isinstance(shell, PreTrainedModel):
        shell.set_attn_implementation("eager")  # sdpa's backward pass does not know vmap
    return shell


def fixed_inputs(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Any]:
    """What spares a causal language model from reading values while it runs: `meta` and vmap have none.

    Args:
        batch: full blocks, without padding.
    """
    if not isinstance(model, PreTrainedModel) or "input_ids" not in batch:
        return {}
    ids = batch["input_ids"]
    length, lowest = ids.shape[-1], torch.finfo(model.dtype).min
    mask_TT = torch.full((length, length), lowest, dtype=model.dtype, device=ids.device).triu(1)
    return {"attention_mask": mask_TT[None, None], "use_cache": False}
