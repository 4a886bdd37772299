"""Whether two values out of checkpoints are the same, and in what they differ."""

from __future__ import annotations

import json
import math
import platform
from typing import Any

import torch
from torch import Tensor


def kind_of_machine() -> str:
    """What random numbers, and the rounding of a sum, depend on beside their seed."""
    return f"torch {torch.__version__}, {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def difference(expected: Any, found: Any, *, rounded: bool = False) -> float | str:
    """How far apart two tensors, or two plain values, are.

    Args:
        rounded: they were made on machines of two kinds, so that the last bit may be another.

    Returns:
        0 for the same, bit for bit; where they may be rounded otherwise, how far apart they are, over the
        largest number; for anything else a sentence.

    >>> difference(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5]))
    '1 of 2 numbers are others than growing gives, by up to 0.5'
    >>> difference({"rope_theta": 10000.0}, {"rope_theta": 500.0})
    'is {"rope_theta": 500.0}, and {"rope_theta": 10000.0} as growing gives it'
    """
    if not isinstance(expected, Tensor):
        # By JSON, in which tuples are lists and keys are text, as where one side was read from a file.
        a, b = (json.dumps(_by_words(value), default=str, sort_keys=True) for value in (expected, found))
        return 0.0 if a == b else f"is {_short(b)}, and {_short(a)} as growing gives it"
    if not isinstance(found, Tensor) or found.shape != expected.shape or found.dtype != expected.dtype:
        return f"is {_kind(found)}, and {_kind(expected)} as growing gives it"
    same = (expected == found) | (expected.isnan() & found.isnan())
    if same.all():
        return 0.0
    exact = torch.complex128 if expected.is_complex() else torch.float64
    mine, theirs = expected[~same].to(exact), found[~same].to(exact)
    apart = (mine - theirs).abs().nan_to_num(math.inf)
    if rounded and (expected.is_floating_point() or expected.is_complex()):
        # Computed in float32 at least, and then rounded once.
        largest = expected[expected.isfinite()].to(exact).abs().max() if expected.isfinite().any() else 0.0
        least = 4 * torch.finfo(torch.float32).eps * largest
        if (apart <= torch.finfo(expected.dtype).eps * mine.abs() + least).all():
            return float(apart.max() / largest)
    return (
        f"{apart.numel()} of {same.numel()} numbers are others than growing gives, by up to {apart.max():.3g}"
    )


def _by_words(value: Any) -> Any:
    """The same with all keys of dicts as text: those of several kinds have no order; and tensors in full."""
    if isinstance(value, Tensor):  # by itself it shows four digits
        return [str(value.dtype), value.tolist()]
    if isinstance(value, dict):
        return {str(key): _by_words(entry) for key, entry in value.items()}
    return [_by_words(entry) for entry in value] if isinstance(value, tuple | list) else value


def _kind(value: Any) -> str:
    if not isinstance(value, Tensor):
        return _short(json.dumps(_by_words(value), default=str))
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}…"
