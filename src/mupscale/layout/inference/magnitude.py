"""By what constant all entries of a tensor come out larger, as its logarithm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Variable = tuple[str, float]  # a parameter, and the constant that is added to it before it is used


@dataclass(frozen=True)
class Scale:
    """log of the constant: an affine expression in the unknown folds."""

    constant: float
    folds: Mapping[Variable, float]

    def __add__(self, other: Scale) -> Scale:
        folds = dict(self.folds)
        for variable, power in other.folds.items():
            folds[variable] = folds.get(variable, 0.0) + power
        return Scale(self.constant + other.constant, {v: p for v, p in folds.items() if p})

    def __mul__(self, power: float) -> Scale:
        return Scale(self.constant * power, {v: p * power for v, p in self.folds.items()})

    def __sub__(self, other: Scale) -> Scale:
        return self + other * -1


ONE = Scale(0.0, {})


def shifted(scale: Scale | None, constant: float) -> Scale | None:
    return scale if scale is None or not constant else Scale(scale.constant + constant, scale.folds)


def raised(scale: Scale | None, power: float) -> Scale | None:
    return None if scale is None else scale * power


def log_ratio(narrow: Any, wide: Any) -> float:
    numbers = isinstance(narrow, int | float) and isinstance(wide, int | float)
    return math.log(wide / narrow) if numbers and narrow * wide > 0 else 0.0


def between(narrow: Tensor, wide: Tensor) -> Scale | None:
    """By how much one constant is larger than another; None where that is no one number."""
    a, b = only_value(narrow), only_value(wide)
    return Scale(math.log(b / a), {}) if a and b and a * b > 0 and math.isfinite(b / a) else None


def only_value(tensor: Tensor) -> float | None:
    """The value of a tensor whose entries are all alike."""
    if tensor.numel() == 0 or tensor.is_complex() or tensor.dtype == torch.bool:
        return None
    tensor = tensor.detach()
    first = tensor.flatten()[0]
    return float(first) if bool((tensor == first).all()) else None
