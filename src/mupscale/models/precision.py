"""Run float64 models in float64 throughout, so that equality can be proved and not blurred by rounding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class Float64(TorchFunctionMode):
    """Inside this mode every request for float32 means float64.

    Stock transformers code computes norms, rotary tables and losses in float32 whatever the model's dtype,
    which would blur a proof in float64 to 1e-7.

    >>> with Float64():
    ...     torch.ones(1, dtype=torch.float64).float().dtype
    torch.float64
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.float:
            return args[0].to(torch.float64)
        double = [torch.float64 if a is torch.float32 else a for a in args]
        named = {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        return func(*double, **named)


@contextmanager
def float64() -> Iterator[None]:
    """Make float64 the dtype of new tensors that ask for none."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
