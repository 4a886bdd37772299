"""By what constant all entries of a tensor come out larger, as its logarithm."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mupscale.layout.flow.trace import Step
from mupscale.layout.inference import kinds

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


@dataclass(frozen=True)
class Entry:
    """A step, that of the other side, and the scales of the numbers that go in."""

    step: Step
    other: Step
    name: str  # what is done in place does the same
    tensors: list[Tensor]
    scales: list[Scale | None]

    def log_ratio_of(self, key: str) -> float:
        return log_ratio(self.step.kwargs.get(key, 1), self.other.kwargs.get(key, 1))

    def numbers(self) -> Iterator[tuple[float, float]]:
        """The numbers among the arguments that are not zero, with those of the other side."""
        for own, others in (
            (self.step.args, self.other.args),
            (self.step.kwargs.values(), self.other.kwargs.values()),
        ):
            for number, other in zip(own, others, strict=False):
                if isinstance(number, int | float) and not isinstance(number, bool) and number:
                    yield number, other

    def values(self) -> list[float | None]:
        return [number for number, _ in self.numbers()] + [only_value(t) for t in self.tensors]

    @property
    def to_whole(self) -> bool:
        """Whether fractions become whole numbers."""
        casts = self.name in ("_to_copy", "copy") and is_whole(self.step.outs[0])
        return casts and self.tensors[0].is_floating_point()

    def bounds(self) -> list[Scale | None]:
        """The scales of all at which it cuts off: of other tensors, of numbers, of the numbers of its own."""
        rest = zip(self.tensors[1:], self.scales[1:], strict=True)
        found = [scale for tensor, scale in rest if not is_small(only_value(tensor))]
        for tensor, others in zip(self.step.inputs, self.other.inputs, strict=False):
            if is_whole(tensor) and only_value(tensor) != 0 and not any(tensor is t for t in self.tensors):
                found.append(between(tensor, others) or ONE)
        # Smaller ones guard against zero; where an iteration stops may be almost as small.
        least = {kinds.COMPARISONS: 5e-6, kinds.CLAMPS: 1e-4}
        low = next((low for names, low in least.items() if self.name in names), None)
        for number, other in self.numbers():
            if low is None or low <= abs(number) < 1e30:  # larger ones guard against overflow
                found.append(Scale(log_ratio(number, other), {}))
        return [*found, ONE] if self.name in kinds.STEPS or self.to_whole else found


def is_small(number: float | None) -> bool:
    """Whether it is next to nothing: a guard against a division by zero."""
    return number is not None and 0 < abs(number) < 1e-4


def has_fractions(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def is_whole(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() and not tensor.is_complex() and tensor.dtype != torch.bool


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
