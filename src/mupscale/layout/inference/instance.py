"""Tiny models to run: built in float64, on the CPU, with every weight away from zeros and ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mupscale.layout.flow.trace import Trace, trace
from mupscale.models.contents import persistent_buffers
from mupscale.models.inputs import HIDDEN_STATES, example_inputs
from mupscale.models.precision import Float64, float64
from mupscale.models.skeletons import PreTrainedConfig, model_class, quiet
from mupscale.notation.axes import Axes


def instance(config: PreTrainedConfig, *, seed: int = 0) -> nn.Module:
    """A model of a (tiny) config, in float64 throughout, without fused kernels that hide what they do."""
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    with float64(), quiet(), torch.random.fork_rng(devices=[]), _QuickDraws(), Float64():
        torch.manual_seed(seed)
        model: nn.Module = model_class(config)(config)
        return model.double().eval()


class _QuickDraws(TorchFunctionMode):
    """Draw in float32, which takes a tenth of the time: random weights need no more digits."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.normal_, Tensor.uniform_) and args[0].dtype == torch.float64:
            drawn = torch.empty(args[0].shape, dtype=torch.float32, device=args[0].device)
            return args[0].copy_(func(drawn, *args[1:], **(kwargs or {})))
        return func(*args, **(kwargs or {}))


def run(config: PreTrainedConfig) -> tuple[nn.Module, Trace]:
    """The model of a (tiny) config, and what one call of it shows."""
    model = instance(config)
    with float64(), quiet(), Float64():
        return model, trace(model, (), example_inputs(model), hidden=HIDDEN_STATES)


def randomize_(model: nn.Module, axes: Mapping[str, Axes], *, buffers: bool = True, seed: int = 0) -> None:
    """Move every parameter and persistent buffer away from the values it was made with.

    Args:
        axes: of the parameters; weights that contract a dim are drawn with variance 1/fan_in.
        buffers: whether these are moved, too.
    """
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if not param.is_floating_point() and not param.is_complex():
                continue
            noise = torch.randn(param.shape, generator=draw, dtype=param.dtype)
            dims = zip(param.shape, axes[name].dims, strict=True) if name in axes else ()
            contracted = [n for n, dim in dims if dim.contracted]
            if contracted and param.ndim > 1:
                param.copy_(noise / math.sqrt(math.prod(contracted)))
            else:
                spread = param.std().item() if param.numel() > 1 else 1.0
                param.add_(noise, alpha=0.3 * max(spread, 0.3))
    if buffers:
        move_buffers_(model, seed=seed + 1)


def move_buffers_(model: nn.Module, *, seed: int = 1) -> bool:
    """Move every persistent buffer away from the values it was made with; whether there is any.

    A running mean of zeros shows no order of channels. But what asks for an exact value, as a flag that is 1
    or a mask that is 0, finds it no more.
    """
    draw = torch.Generator().manual_seed(seed)
    moved = [buffer for buffer in persistent_buffers(model).values() if buffer.is_floating_point()]
    with torch.no_grad():
        for buffer in moved:  # variances stay positive
            buffer.add_(torch.rand(buffer.shape, generator=draw, dtype=buffer.dtype), alpha=0.3)
    return any(buffer.numel() for buffer in moved)
