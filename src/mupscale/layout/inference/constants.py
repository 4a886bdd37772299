"""Which parameters must be rescaled for the constants of an architecture that depend on width.

Copies of an activation come out times some constant where the architecture sums over a grown axis without a
weight that makes up for it (tied readouts), or multiplies by a constant made of a size (√d_model,
1/√head_dim). Following the logarithm of that constant through the operators gives linear equations: both
sides of an addition agree, what goes into a norm or a nonlinearity has none, products add. The unknowns are
the logarithms of the parameters' folds; of all solutions the one with the fewest folds is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from mupscale.layout.flow.trace import ITEM, Step, Trace, paired
from mupscale.layout.flow.units import Unit, Units, flat
from mupscale.layout.inference import kinds
from mupscale.layout.inference.linear import sparsest
from mupscale.layout.inference.magnitude import (
    ONE,
    Entry,
    Scale,
    Variable,
    between,
    has_fractions,
    is_small,
    is_whole,
    log_ratio,
    only_value,
    raised,
    shifted,
)


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
        # By storage: views have the scale of what they view. None: zeros, which have any. Of whole numbers
        # those that count units have one.
        self.scales: dict[int, Scale | None] = {}
        self.equations: list[Scale] = []
        self.offset: dict[int, str] = {}
        self.units: dict[Variable, float] = {}
        # What is made of parameters and buffers alone, of which parameters; those that a number cuts off.
        self.made_of: dict[int, frozenset[str]] = {}
        self.cut: set[str] = set()
        self.cuts: list[tuple[Step, Scale]] = []
        # Made of numbers alone; sums of what comes out differently large, by how much.
        self.constants: set[int] = set()
        self.mixed: dict[int, Scale] = {}
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
        name = step.name.removesuffix("_")
        tensors = [t for t in step.inputs if has_fractions(t) or _key(t) in self.scales]
        counts = not all(map(has_fractions, tensors))
        outs = [t for t in step.outs if has_fractions(t) or (counts and is_whole(t))]
        changed = {_key(t) for t in step.outs}
        if step.name == "lift_fresh" or all(_key(t) in self.constants for t in step.inputs):
            self.constants |= changed
        else:
            self.constants -= changed
        if not tensors:
            self._made_of_nothing(step, other, outs)
            return
        if step.is_view and step.outs and all(_key(t) == _key(tensors[0]) for t in outs):
            return
        scales = [self._of(t, step, other) for t in tensors]
        own = [self.made_of.get(_key(t)) for t in step.inputs]  # whole numbers, too: rows may be looked up
        for out in outs:
            self.made_of.pop(_key(out), None)
            if None not in own:
                self.made_of[_key(out)] = frozenset().union(*filter(None, own))
        entry = Entry(step, other, name, tensors, scales)
        before, cuts = len(self.equations), len(self.cuts)
        self.give(outs, _RULES.get(name, _Book._nonlinear)(self, entry))
        self._mix(entry, outs, self.equations[before:])
        if len(self.cuts) > cuts:
            self.cut = self.cut.union(*filter(None, own))

    def _made_of_nothing(self, step: Step, other: Step, outs: list[Tensor]) -> None:
        """Constants that the run makes, by their values on both sides."""
        value = only_value(step.outs[0]) if step.outs else None
        if step.name == "eye":  # as copies of it would map, which sum over copies
            self.give(outs, Scale(-self.log_growth(step.dims[0][0]), {}))
        elif step.name in ("sum", "count_nonzero") and (grown := self.log_growth(step.summed)):
            self.give(step.outs, Scale(grown, {}))  # how many units are so
        elif value == 0 or step.name.startswith(("empty", "new_empty")):
            self.give(outs, None)
        elif outs and other.outs and (scale := between(step.outs[0], other.outs[0])) is not None:
            self.give(outs, scale)

    def _mix(self, e: Entry, outs: Sequence[Tensor], equations: Sequence[Scale]) -> None:
        """Follow sums whose terms would have to agree and may not, up to where they bend."""
        found = [self.mixed[key] for key in map(_key, e.tensors) if key in self.mixed]
        if e.name in kinds.ADDS and not any(map(is_small, e.values())):
            found += [difference for difference in equations if difference.constant]
        if e.name in kinds.BENDS | kinds.CUTS or e.to_whole:
            self.cuts += [(e.step, difference) for difference in found]
        elif found and e.name in kinds.LINEAR | kinds.ALIKE | {"mul", "div"}:
            self.mixed |= {_key(out): found[0] for out in outs}

    def _of(self, tensor: Tensor, step: Step, other: Step) -> Scale | None:
        """The scale of an input; of a constant that the run did not make, from its values on both sides."""
        key = _key(tensor)
        if key not in self.scales:
            scale: Scale | None = ONE
            at = next(i for i, t in enumerate(step.inputs) if t is tensor)
            if at < len(other.inputs):
                scale = between(tensor, other.inputs[at]) or ONE
            if tensor.numel() == 0 or only_value(tensor) == 0:  # zeros, and nothing at all, have any scale
                scale = None
            self.scales[key] = scale
        return self.scales[key]

    # --- What comes out, by what is done; `kinds` says of which operators.

    def _nonlinear(self, e: Entry) -> Scale | None:
        """Activations, and all that is not known to be linear."""
        for scale in e.scales:
            self.equal(scale, ONE)
        return ONE

    def _zeros(self, e: Entry) -> Scale | None:
        return None

    def _no_scale(self, e: Entry) -> Scale | None:
        if e.name in ("eq", "ne") and is_whole(e.tensors[0]):
            self._cut_off(e)
        return ONE

    def _times(self, e: Entry) -> Scale | None:
        sign = 1 if e.name == "mul" else -1
        if "rounding_mode" in e.step.kwargs:
            return self._cut_off(e)
        if len(e.scales) == 2:
            left, right = e.scales
            return None if left is None or right is None else left + right * sign
        if isinstance(e.step.args[0], Tensor):
            if e.name == "mul" and isinstance(e.step.args[1], int | float) and not e.step.args[1]:
                return None  # zeros
            return shifted(e.scales[0], sign * log_ratio(e.step.args[1], e.other.args[1]))
        return shifted(raised(e.scales[0], sign), log_ratio(e.step.args[0], e.other.args[0]))

    def _to_a_power(self, e: Entry) -> Scale | None:
        if e.name != "pow":
            return raised(e.scales[0], kinds.POWERS[e.name])
        if len(e.scales) == 1 and isinstance(power := e.step.args[1], int | float):
            return raised(e.scales[0], power)
        return self._nonlinear(e)

    def _product(self, e: Entry) -> Scale | None:
        operands = list(e.step.args)
        bias = None
        if e.name in ("addmm", "baddbmm"):
            bias, *operands = operands
        elif e.name in ("linear", "convolution") and len(operands) > 2:
            bias = operands[2]
        product: Scale | None = ONE
        for operand in operands[: 3 if e.name == "_trilinear" else 2]:
            factor = self._of(operand, e.step, e.other)
            product = None if product is None or factor is None else product + factor
        product = shifted(product, self.log_growth(e.step.summed) + e.log_ratio_of("alpha"))
        if isinstance(bias, Tensor):
            self.equal(shifted(self._of(bias, e.step, e.other), e.log_ratio_of("beta")), product)
        return product

    def _weight_norm(self, e: Entry) -> Scale | None:
        """g · v / ‖v‖, in which v may have any scale."""
        return shifted(e.scales[1], -self.log_growth(e.step.summed) / 2)

    def _softmax(self, e: Entry) -> Scale | None:
        self.equal(e.scales[0], ONE)
        return Scale(-self.log_growth(e.step.summed), {})

    def _distance(self, e: Entry) -> Scale | None:
        power = e.step.args[2] if len(e.step.args) > 2 else 2.0
        if not power:  # how many differ
            return self._nonlinear(e)
        self.equal(e.scales[0], e.scales[1])
        return shifted(e.scales[0], self.log_growth(e.step.summed) / power)

    def _attention(self, e: Entry) -> Scale | None:
        """softmax(q·k × scale + mask) v, the scale by default one over the root of their size."""
        query, key, value, *masks = e.scales
        for mask in masks:
            self.equal(mask, ONE)
        given = [s.kwargs.get("scale") or s.args[0].shape[-1] ** -0.5 for s in (e.step, e.other)]
        scores = None if query is None or key is None else query + key
        self.equal(shifted(scores, self.log_growth(e.step.summed) + log_ratio(*given)), ONE)
        return value

    def _norm(self, e: Entry) -> Scale | None:
        self.equal(e.scales[0], ONE)
        affine, statistics = e.scales[1:], list[Scale | None]()
        if "batch_norm" in e.name and isinstance(e.step.args[3], Tensor):  # the mean and variance so far
            affine, statistics = e.scales[1:-2], e.scales[-2:]
        for scale in affine[1:]:
            self.equal(scale, affine[0])
        for scale in statistics:
            self.equal(scale, ONE)
        return affine[0] if affine else ONE

    def _alike(self, e: Entry) -> Scale | None:
        if e.name in ("add", "sub", "rsub") and len(e.tensors) == 1:
            return self._with_a_number(e)
        present = [s for s in e.scales if s is not None]
        for scale in present[1:]:
            self.equal(present[0], scale)
        return present[0] if present else None

    def _with_a_number(self, e: Entry) -> Scale | None:
        at = 1 if isinstance(e.step.args[0], Tensor) else 0
        number, scale = e.step.args[at], e.scales[0]
        owner = self.offset.get(_key(e.tensors[0]))
        if owner is not None and scale is not None and number and e.step.name == "add":
            # A gain that is stored as its difference from one.
            return Scale(scale.constant, {(owner, float(number)): 1.0})
        if isinstance(number, int | float) and number:
            self.equal(scale, Scale(log_ratio(number, e.other.args[at]), {}))
        return scale

    def _linear(self, e: Entry) -> Scale | None:
        scale = e.scales[0]
        if e.name == "copy":
            scale, before = e.scales[-1], self.scale(e.step.outs[0])
            if e.step.name == "copy_" and before is not None:  # into a part of it, maybe
                self.equal(before, scale)
                scale = before
        if e.name in ("_to_copy", "clone") and (owner := self.offset.get(_key(e.tensors[0]))) is not None:
            self.offset |= {_key(out): owner for out in e.step.outs}
        if e.to_whole:
            return self._cut_off(e)
        return shifted(scale, self.log_growth(e.step.summed) if e.name in kinds.SUMS else 0.0)

    def _vector_norm(self, e: Entry) -> Scale | None:
        power = e.step.args[1] if len(e.step.args) > 1 else e.step.kwargs.get("ord")
        power = float(power) if isinstance(power, int | float) else 2.0
        grown = self.log_growth(e.step.summed)
        return shifted(e.scales[0], grown / power) if power else Scale(grown, {})

    def _count(self, e: Entry) -> Scale | None:
        """How many are not zero."""
        return Scale(self.log_growth(e.step.summed), {})

    def _renorm(self, e: Entry) -> Scale | None:
        """Rows are cut to a norm."""
        norm = shifted(e.scales[0], self.log_growth(e.step.summed) / float(e.step.args[1]))
        self._cut_at(e.step, norm, Scale(log_ratio(e.step.args[3], e.other.args[3]), {}))
        return e.scales[0]

    def _cut_off(self, e: Entry) -> Scale | None:
        """What it is cut off at, or compared with, has to be as much larger."""
        if all(_key(t) in self.constants for t in e.tensors):
            return e.scales[0]
        bounds = e.bounds()
        for bound in bounds:
            self._cut_at(e.step, e.scales[0], bound)
        return next((bound for bound in reversed(bounds) if bound is not None), e.scales[0])

    def _cut_at(self, step: Step, scale: Scale | None, bound: Scale | None) -> None:
        self.equal(scale, bound)
        self.cuts.append((step, ONE if scale is None or bound is None else scale - bound))

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
            if abs(scale.constant) > 1e-4:
                name = {ITEM: "item", "_to_copy": "a cast to whole numbers"}.get(step.name, step.name)
                return (
                    f"{step.place}: {name} compares with a fixed number, or cuts off there, what comes "
                    f"out {math.exp(scale.constant):.4g} times as large in the wide model; let it see a mean "
                    "over units and not a sum, or an activation and not a weight, or keep that width"
                )
        return None


_RULES: dict[str, Callable[[_Book, Entry], Scale | None]] = {
    name: rule
    for names, rule in (
        (kinds.ZEROS, _Book._zeros),
        (kinds.NO_SCALE, _Book._no_scale),
        (("mul", "div"), _Book._times),
        (("pow", *kinds.POWERS), _Book._to_a_power),
        (kinds.PRODUCTS, _Book._product),
        (("_weight_norm_interface",), _Book._weight_norm),
        (kinds.SOFTMAX, _Book._softmax),
        (kinds.DISTANCES, _Book._distance),
        (kinds.ATTENTION, _Book._attention),
        (kinds.NORMS, _Book._norm),
        (kinds.ALIKE, _Book._alike),
        (kinds.LINEAR, _Book._linear),
        (kinds.VECTOR_NORMS, _Book._vector_norm),
        (("count_nonzero",), _Book._count),
        (("renorm",), _Book._renorm),
        (kinds.CUTS, _Book._cut_off),
    )
    for name in names
}


def _is_unit(buffer: Tensor) -> bool:
    return buffer.ndim == 1 < buffer.numel() and abs(float(torch.linalg.vector_norm(buffer)) - 1) < 1e-4


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
