"""Run float64 models in float64 throughout, so that equality can be proved and not blurred by rounding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


def doubled(module: nn.Module) -> nn.Module:
    """The module itself, its floating-point tensors in float64 now, and complex ones of two such numbers."""

    def double(tensor: Tensor) -> Tensor:
        if tensor.is_complex():
            return tensor.to(torch.complex128)
        return tensor.double() if tensor.is_floating_point() else tensor

    module._apply(double)  # type: ignore[no-untyped-call]
    return module


class Float64(TorchFunctionMode):
    """Inside this mode every request for float32 means float64.

    Stock transformers code computes norms, rotary tables and losses in float32 whatever the model's dtype,
    which would blur a proof in float64 to 1e-7.

    >>> with Float64():
    ...     torch.ones(1, dtype=torch.float64).float().dtype
    torch.float64
    """

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.Tensor.float:
            return args[0].to(torch.float64)
        double = [torch.float64 if a is torch.float32 else a for a in args]
        named = {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        return func(*double, **named)
