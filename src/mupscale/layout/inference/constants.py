"""Which parameters must be rescaled for the constants of an architecture that depend on width.

Copies of an activation come out times some constant where the architecture sums over a grown axis without a
weight that makes up for it (tied readouts), or multiplies by a constant made of a size (√d_model,
1/√head_dim). Following the logarithm of that constant through the operators gives linear equations: both
sides of an addition agree, what goes into a norm or a nonlinearity has none, products add. The unknowns are
the logarithms of the parameters' folds; of all solutions the one with the fewest folds is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mupscale.layout.flow.trace import ITEM, Step, Trace, paired
from mupscale.layout.flow.units import Unit, Units, flat
from mupscale.layout.inference import kinds
from mupscale.layout.inference.linear import sparsest

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


def folds(
    narrow: Trace, wide: Trace, growth: Callable[[Unit], float]
) -> tuple[dict[Variable, float], frozenset[str], str | None]:
    """log of the fold of every parameter that needs one; an empty dict where none does, or none would do.

    And the parameters that are cut off at some value before they are used, or compared with one: with noise
    in them, other entries would be. And what comes out larger where it is cut off, if no fold mends that.

    Args:
        narrow, wide: traces of the two sides, for the constants in them.
        growth: the factor by which a unit of the narrow side grows.
    """
    book = _Book(narrow, growth)
    for step, other in paired(narrow.steps, wide.steps):
        book.write(step, other)
    for tensor in narrow.outputs:
        book.equal(book.scale(tensor), ONE)
    return book.units | book.solved(), frozenset(book.cut), book.refused


class _Book:
    def __init__(self, trace: Trace, growth: Callable[[Unit], float]) -> None:
        self.trace = trace
        self.growth = growth
        # By storage: views have the scale of what they view. None: zeros, which have any.
        self.scales: dict[int, Scale | None] = {}
        self.equations: list[Scale] = []
        self.offset: dict[int, str] = {}
        self.units: dict[Variable, float] = {}
        # What is made of parameters and buffers alone, of which parameters; those that a number cuts off.
        self.made_of: dict[int, frozenset[str]] = {}
        self.cut: set[str] = set()
        self.cuts: list[tuple[Step, Scale | None]] = []
        self.refused: str | None = None
        for name, tensor in trace.tensors.items():
            self.made_of[_key(tensor)] = frozenset({name} & trace.parameters)
            if name in trace.parameters:
                fan_in = sum(
                    self.log_growth(units)
                    for i, units in enumerate(trace.dims[name])
                    if (name, i) in trace.contracted and name not in trace.lookups
                )
                self.scales[_key(tensor)] = Scale(-fan_in, {(name, 0.0): 1.0})
                self.offset[_key(tensor)] = name
            elif _is_unit(tensor) and (grown := sum(map(self.log_growth, trace.dims[name]))):
                # A vector of length one, as power iteration keeps them, stays one.
                self.units[name, 0.0] = -grown / 2
                self.scales[_key(tensor)] = Scale(-grown / 2, {})

    def log_growth(self, units: Units) -> float:
        return sum(math.log(self._grown(u)) for u in flat(units))

    def _grown(self, unit: Unit) -> float:
        if unit.segments:
            return max(math.prod(self._grown(u) for u in flat((s,))) for s in unit.segments)
        return self.growth(unit)

    def scale(self, tensor: Tensor) -> Scale | None:
        return self.scales.get(_key(tensor), ONE)

    def equal(self, a: Scale | None, b: Scale | None) -> None:
        if a is not None and b is not None:
            difference = a - b
            if difference.folds or abs(difference.constant) > 1e-9:
                self.equations.append(difference)

    def give(self, tensors: Sequence[Tensor], scale: Scale | None) -> None:
        for tensor in tensors:
            self.scales[_key(tensor)] = scale

    def write(self, step: Step, other: Step) -> None:
        name = step.name.removesuffix("_") if step.name not in kinds.ALIKE | kinds.LINEAR else step.name
        tensors = [t for t in step.inputs if t.is_floating_point() or t.is_complex()]
        outs = [t for t in step.outs if t.is_floating_point() or t.is_complex()]
        if not tensors:
            value = _constant(step.outs[0]) if step.outs else None
            if step.name == "eye":  # as copies of it would map, which sum over copies
                self.give(outs, Scale(-self.log_growth(step.dims[0][0]), {}))
            elif value == 0 or step.name.startswith(("empty", "new_empty")):
                self.give(outs, None)
            elif outs and other.outs and (ratio := _ratio(step.outs[0], other.outs[0])) is not None:
                self.give(outs, Scale(math.log(ratio), {}))
            return
        if step.is_view and step.outs and all(_key(t) == _key(tensors[0]) for t in outs):
            return
        scales = [self._of(t, step, other) for t in tensors]
        own = [self.made_of.get(_key(t)) for t in step.inputs]  # whole numbers, too: rows may be looked up
        for out in outs:
            self.made_of.pop(_key(out), None)
            if None not in own:
                self.made_of[_key(out)] = frozenset().union(*filter(None, own))
        if name == ITEM or (name in kinds.CUTS and _cuts_off(step)):
            self.cut = self.cut.union(*filter(None, own))
            self._compared(step, scales)
        if step.name.startswith(("zeros", "new_zeros", "empty", "new_empty")):
            self.give(outs, None)
        elif name in kinds.NO_SCALE:
            self.give(outs, ONE)
        elif name == "mul" or name == "div":
            sign = 1 if name == "mul" else -1
            if len(scales) == 2:
                left, right = scales
                self.give(outs, None if left is None or right is None else left + right * sign)
            elif isinstance(step.args[0], Tensor):
                self.give(outs, _plus(scales[0], sign * _log_ratio(step.args[1], other.args[1])))
            else:
                self.give(outs, _plus(_power(scales[0], sign), _log_ratio(step.args[0], other.args[0])))
        elif name == "pow" and len(tensors) == 1 and isinstance(step.args[1], int | float):
            self.give(outs, _power(scales[0], step.args[1]))
        elif name in kinds.POWERS:
            self.give(outs, _power(scales[0], kinds.POWERS[name]))
        elif name in kinds.PRODUCTS:
            self._product(step, other, name)
        elif name == "_weight_norm_interface":  # g · v / ‖v‖, in which v may have any scale
            self.give(outs[:1], _plus(scales[1], -self.log_growth(step.summed) / 2))
        elif name in kinds.SOFTMAX:
            self.equal(scales[0], ONE)
            self.give(outs, Scale(-self.log_growth(step.summed), {}))
        elif name in kinds.DISTANCES and (power := step.args[2] if len(step.args) > 2 else 2.0):
            self.equal(scales[0], scales[1])
            self.give(outs, _plus(scales[0], self.log_growth(step.summed) / power))
        elif name in kinds.ATTENTION:
            self._attention(step, other, scales, outs)
        elif name in kinds.NORMS:
            self.equal(scales[0], ONE)
            affine, statistics = scales[1:], list[Scale | None]()
            if "batch_norm" in name and isinstance(step.args[3], Tensor):  # the mean and variance so far
                affine, statistics = scales[1:-2], scales[-2:]
            for scale in affine[1:]:
                self.equal(scale, affine[0])
            for scale in statistics:
                self.equal(scale, ONE)
            self.give(outs, affine[0] if affine else ONE)
        elif name in kinds.ALIKE:
            self._alike(step, other, name, tensors, scales, outs)
        elif name in kinds.LINEAR or (name in ("clamp_min", "clamp") and _is_guard(step)):
            summed = self.log_growth(step.summed) if name in ("sum", "nansum") else 0.0
            if name in ("linalg_vector_norm", "norm"):
                summed = self.log_growth(step.summed) / 2
            source = scales[-1] if name == "copy_" else scales[0]
            if name == "copy_" and (before := self.scale(step.outs[0])) is not None:
                self.equal(before, source)
                source = before
            self.give(outs, _plus(source, summed))
            if name in ("_to_copy", "clone") and _key(tensors[0]) in self.offset:
                self.offset |= {_key(out): self.offset[_key(tensors[0])] for out in outs}
        elif name in kinds.COMPARISONS and len(tensors) == 1 and step.args[1] == 0:
            self.give(outs, ONE)
        elif name in kinds.COMPARISONS and len(tensors) == 2:
            self.equal(*scales)
            self.give(outs, ONE)
        else:  # softmax, activations, and all that is not known to be linear
            for scale in scales:
                self.equal(scale, ONE)
            self.give(outs, ONE)

    def _compared(self, step: Step, scales: Sequence[Scale | None]) -> None:
        """Remember what is compared with a number, or with another tensor."""
        scale, *others = scales
        if not others:
            self.cuts.append((step, scale))
        elif len(others) == 1 and scale is not None and others[0] is not None:
            self.cuts.append((step, scale - others[0]))

    def _of(self, tensor: Tensor, step: Step, other: Step) -> Scale | None:
        """The scale of an input; of a constant that the run did not make, from its values on both sides."""
        key = _key(tensor)
        if key not in self.scales:
            scale: Scale | None = ONE
            at = next(i for i, t in enumerate(step.inputs) if t is tensor)
            if at < len(other.inputs) and (ratio := _ratio(tensor, other.inputs[at])) is not None:
                scale = Scale(math.log(ratio), {})
            if tensor.numel() == 0 or _constant(tensor) == 0:  # zeros, and nothing at all, have any scale
                scale = None
            self.scales[key] = scale
        return self.scales[key]

    def _product(self, step: Step, other: Step, name: str) -> None:
        operands = list(step.args)
        bias = None
        if name in ("addmm", "baddbmm"):
            bias, *operands = operands
        elif name in ("linear", "convolution") and len(operands) > 2:
            bias = operands[2]
        factors = operands[: 3 if name == "_trilinear" else 2]
        product: Scale | None = ONE
        for factor in (self._of(operand, step, other) for operand in factors):
            product = None if product is None or factor is None else product + factor
        product = _plus(product, self.log_growth(step.summed))
        product = _plus(product, _log_ratio(step.kwargs.get("alpha", 1), other.kwargs.get("alpha", 1)))
        if isinstance(bias, Tensor) and (own := self._of(bias, step, other)) is not None:
            self.equal(
                _plus(own, _log_ratio(step.kwargs.get("beta", 1), other.kwargs.get("beta", 1))), product
            )
        self.give(step.outs, product)

    def _attention(self, step: Step, other: Step, scales: list[Scale | None], outs: list[Tensor]) -> None:
        """softmax(q·k × scale + mask) v, the scale by default one over the root of their size."""
        query, key, value, *masks = scales
        for mask in masks:
            self.equal(mask, ONE)
        given = [s.kwargs.get("scale") or s.args[0].shape[-1] ** -0.5 for s in (step, other)]
        scores = None if query is None or key is None else query + key
        self.equal(_plus(scores, self.log_growth(step.summed) + _log_ratio(*given)), ONE)
        self.give(outs, value)

    def _alike(
        self,
        step: Step,
        other: Step,
        name: str,
        tensors: list[Tensor],
        scales: list[Scale | None],
        outs: list[Tensor],
    ) -> None:
        if name in ("add", "sub", "rsub") and len(tensors) == 1:
            number = step.args[1] if isinstance(step.args[0], Tensor) else step.args[0]
            other_number = other.args[1] if isinstance(step.args[0], Tensor) else other.args[0]
            owner = self.offset.get(_key(tensors[0]))
            if owner is not None and scales[0] is not None and number and name == "add":
                # A gain that is stored as its difference from one.
                self.give(outs, Scale(scales[0].constant, {(owner, float(number)): 1.0}))
                return
            if isinstance(number, int | float) and number:
                self.equal(scales[0], Scale(_log_ratio(number, other_number), {}))
            self.give(outs, scales[0])
            return
        if name == "where" and not torch.is_tensor(step.args[0]):
            return
        present = [s for s in scales if s is not None]
        for scale in present[1:]:
            self.equal(present[0], scale)
        self.give(outs, present[0] if present else None)

    def solved(self) -> dict[Variable, float]:
        variables = list(dict.fromkeys(v for e in self.equations for v in e.folds))
        rows = {(tuple(sorted(e.folds.items())), round(e.constant, 9)) for e in self.equations}
        if not any(constant for _, constant in rows):
            return {}
        matrix = np.zeros((len(rows), len(variables)))
        right = np.zeros(len(rows))
        at = {v: i for i, v in enumerate(variables)}
        for i, (powers, constant) in enumerate(rows):
            right[i] = -constant
            if not np.isfinite(constant):  # a config that computes nothing: the proof says so
                return {}
            for variable, power in powers:
                matrix[i, at[variable]] = power
        solution = sparsest(matrix, right)
        if np.abs(matrix @ solution - right).max() > 1e-4:
            self.refused = self._wrongly_cut()
            return {}
        return {v: float(x) for v, x in zip(variables, solution, strict=True) if abs(x) > 1e-5}

    def _wrongly_cut(self) -> str | None:
        """A run may not reach the value at which something is cut off, and show nothing."""
        for step, scale in self.cuts:
            if scale is not None and abs(scale.constant) > 1e-4:
                name = "item" if step.name == ITEM else step.name
                return (
                    f"{step.place}: {name} compares with a fixed number, or cuts off there, what comes "
                    f"out {math.exp(scale.constant):.4g} times as large in the wide model; let it see a mean "
                    "over units and not a sum, or an activation and not a weight, or keep that width"
                )
        return None


def _plus(scale: Scale | None, constant: float) -> Scale | None:
    return scale if scale is None or not constant else Scale(scale.constant + constant, scale.folds)


def _power(scale: Scale | None, power: float) -> Scale | None:
    return None if scale is None else scale * power


def _log_ratio(narrow: Any, wide: Any) -> float:
    numbers = isinstance(narrow, int | float) and isinstance(wide, int | float)
    return math.log(wide / narrow) if numbers and narrow * wide > 0 else 0.0


def _ratio(narrow: Tensor, wide: Tensor) -> float | None:
    """By how much one constant is larger than another; None where that is no one number."""
    a, b = _constant(narrow), _constant(wide)
    return b / a if a and b and a * b > 0 and math.isfinite(b / a) else None


def _constant(tensor: Tensor) -> float | None:
    """The value of a tensor whose entries are all alike."""
    if tensor.numel() == 0 or tensor.is_complex() or tensor.dtype == torch.bool:
        return None
    tensor = tensor.detach()
    first = tensor.flatten()[0]
    return float(first) if bool((tensor == first).all()) else None


def _is_guard(step: Step) -> bool:
    """Whether it bounds values from below alone, by next to nothing: against a division by zero."""
    low = step.args[1] if len(step.args) > 1 else step.kwargs.get("min")
    high = step.args[2] if len(step.args) > 2 else step.kwargs.get("max")
    return high is None and isinstance(low, float) and 0 < low < 1e-4


def _cuts_off(step: Step) -> bool:
    """Whether it compares with a number that is neither 0 nor a guard against it or against overflow."""
    bounds = [v for v in (*step.args[1:], *step.kwargs.values()) if v is not None]
    return any(isinstance(v, Tensor) or 1e-4 <= abs(v) < 1e30 for v in bounds) or step.name.startswith(
        "hardtanh"
    )


def _is_unit(buffer: Tensor) -> bool:
    return buffer.ndim == 1 < buffer.numel() and abs(float(torch.linalg.vector_norm(buffer)) - 1) < 1e-4


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
