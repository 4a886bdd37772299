"""What a rule is, and which operator has which: what torch's operators say about the dims of their tensors.

A rule gets a `Call` with the dims of the inputs and gives the dims of the output, or nothing where it knows
none. What is not ruled on is left open: inference then knows less, and the proof that follows decides. The
rules themselves stand in `rules_views` and `rules_sums`: a handful for a few hundred operators.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor

from mupscale.layout.flow.units import Conflict, Unit, Units, size_of, unify

Dims = list[Units]
Rule = Callable[["Call"], "Dims | list[Dims] | None"]
_R = TypeVar("_R", bound=Rule)


@dataclass
class Call:
    """One operator at work: its arguments, what it gave, and how to ask for the dims of a tensor.

    Attributes:
        mark: takes a dim, as (tensor, index), as one that a product contracts, or only some units of it.
        summed: the units that are summed over.
        pending: units to fix once the output is used, with the reason.
    """

    name: str
    args: Sequence[Any]
    kwargs: dict[str, Any]
    out: Any
    dims_of: Callable[[Tensor], Dims]
    mark: Callable[[tuple[Tensor, int], Units | None], None]
    place: str
    summed: list[Unit] = field(default_factory=list)
    pending: list[tuple[Units, str]] = field(default_factory=list)

    def dims(self, i: int) -> Dims:
        return self.dims_of(self.args[i])

    def get(self, i: int, name: str, default: Any = None) -> Any:
        return self.args[i] if len(self.args) > i else self.kwargs.get(name, default)

    def contract(self, *where: tuple[Tensor, int], part: Units | None = None) -> None:
        """Say that these dims, which are one and the same, are multiplied and summed over.

        Args:
            part: the units of it that are, where not all of them are.
        """
        tensor, dim = where[0]
        self.summed += self.dims_of(tensor)[dim] if part is None else part
        for each in where:
            self.mark(each, part)

    @property
    def tensors(self) -> list[Tensor]:
        found: list[Tensor] = []
        for value in (*self.args, *self.kwargs.values()):
            found += [
                v for v in (value if isinstance(value, list | tuple) else [value]) if isinstance(v, Tensor)
            ]
        return found

    def axis(self, value: int, ndim: int | None = None) -> int:
        return value % (self.args[0].ndim if ndim is None else ndim)

    def new(self, what: str, out: Tensor | None = None) -> Dims:
        """Dims of the output, of which the operator says what their indices are."""
        return fresh(self.out if out is None else out, f"{self.name} makes {what} in {self.place}")

    def same(self, a: Units, b: Units) -> Units:
        """Say that two dims are one; where they cannot be, only that what they are made of stays."""
        try:
            unify(a, b)
        except Conflict:
            self.fix((*a, *b), f"{self.name} cuts or regroups it")
            return (Unit(size_of(a), f"it comes out of {self.name}"),)
        return a

    def fix_once_used(self, units: Units, why: str) -> None:
        """Fix units as soon as an operator reads the output: many a slice is taken for its shape alone."""
        self.pending.append((units, f"{why} in {self.place}"))

    def fix(self, units: Units, why: str) -> None:
        for unit in units:
            unit.fix(f"{why} in {self.place}")


RULES: dict[str, Rule] = {}


def rule(names: str) -> Callable[[_R], _R]:
    """Make a function the rule of the operators of these names."""

    def register(function: _R) -> _R:
        RULES.update(dict.fromkeys(names.split(), function))
        return function

    return register


def fresh(tensor: Tensor, why: str | None = None) -> Dims:
    """Units of which nothing is known, one a dim."""
    return [(Unit(n, why),) if n != 1 else () for n in tensor.shape]


def pointwise(call: Call) -> Dims:
    """Dims that broadcast together are the same."""
    out: Dims = [() for _ in call.out.shape]
    for tensor in call.tensors:
        if tensor.ndim > call.out.ndim:
            continue
        for i, units in enumerate(call.dims_of(tensor), start=call.out.ndim - tensor.ndim):
            if tensor.shape[i - call.out.ndim] == 1:
                continue
            if out[i]:
                out[i] = call.same(out[i], units)
            else:
                out[i] = units
    return out
