"""θ↑ = λ · Pad₀(θ) + N(0, σ_μP²): shrink, pad, perturb (Mallik et al. 2024, arXiv 2411.07340).

The random term is a fresh μP initialization at the wide width, `mupscale.init_`'s own. λ = 0.4 is the
paper's; λ = 0 is `init_` bit for bit, λ = 1 without the random term a plain pad. The function is not kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from numbers import Real
from typing import TypeAlias

from torch import Tensor

from mupscale.errors import GrowthError
from mupscale.notation.axes import pad, padded_rows
from mupscale.notation.dims import Growth, Sizes
from mupscale.operators.noise import exact_text
from mupscale.theory.scaling import Scaling


@dataclass(frozen=True)
class Shrink:
    """λ by parameter name: one value for all, and others where a pattern says so.

    Attributes:
        value: λ of the parameters that no pattern matches.
        patterns: λ by shell pattern over parameter names; of several that match, the last counts.
    """

    value: float
    patterns: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def parse(cls, given: ShrinkLike, default: float) -> Shrink:
        """Read a number, a mapping from patterns (``"*"``: all others), or words as on the command line.

        Args:
            default: λ of what no pattern matches, where nothing is said of it.

        Raises:
            GrowthError: a value is not a number of at least 0.

        >>> Shrink.parse(["0.4", "*.mlp.*=0.6"], 0.4).of("model.layers.0.mlp.up_proj.weight")
        0.6
        """
        if isinstance(given, Shrink):
            return given
        if isinstance(given, Real | Tensor):
            return cls(_checked(given))
        if isinstance(given, str):
            given = [given]
        if not isinstance(given, Mapping) and not (
            isinstance(given, Sequence) and all(isinstance(word, str) for word in given)
        ):
            raise _not_a_number(given)
        if not isinstance(given, Mapping):
            patterns = [word.rpartition("=")[0] for word in given]
            if len(set(patterns)) != len(patterns):
                raise GrowthError(f"shrink {' '.join(given)}: two values for the same parameters; give one")
            given = {pattern or "*": value for pattern, _, value in (word.rpartition("=") for word in given)}  # type: ignore[misc]
        values = {pattern: _checked(value) for pattern, value in given.items()}
        return cls(values.pop("*", default), values)

    def of(self, name: str) -> float:
        """λ of a parameter."""
        return next((v for p, v in reversed([*self.patterns.items()]) if fnmatchcase(name, p)), self.value)

    def check_patterns(self, names: Sequence[str]) -> None:
        """Refuse a pattern that no name matches."""
        for pattern in self.patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise GrowthError(
                    f"shrink pattern {pattern!r} matches no parameter; expected names such as {names[0]}"
                )

    def __str__(self) -> str:
        return " ".join([exact_text(self.value), *(f"{p}={exact_text(v)}" for p, v in self.patterns.items())])


ShrinkLike: TypeAlias = "Shrink | float | Tensor | Mapping[str, float] | Sequence[str]"


def _checked(value: object) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):  # the last: a tensor of several numbers
        number = math.nan
    if not 0 <= number < math.inf:
        raise _not_a_number(value)
    return number


def _not_a_number(value: object) -> GrowthError:
    return GrowthError(
        f"shrink {' '.join(repr(value).split())}: expected a number of at least 0, or PATTERN=NUMBER such as "
        "'*.mlp.*=0.6'"
    )


def zero_pad(
    tensor: Tensor,
    scaling: Scaling,
    sizes: Sizes,
    growth: Growth,
    *,
    shrink: float,
    fresh: Tensor,
    fresh_mean: float | Tensor,
    rows: slice | None = None,
) -> Tensor:
    """``fresh`` + λ · Pad₀(θ − its fresh mean), in the precision of ``fresh``.

    The mean is 0 for weights. A gain starts at 1: what is padded is how far it has come from there, so that
    λ moves it between fresh and trained, and new channels are not silent.

    Args:
        tensor: θ. Integers are only padded.
        scaling: its scaling; of its scales only the fold acts, as it belongs to the architecture.
        shrink: λ.
        fresh: a fresh wide parameter, as `mupscale.init_` makes it, or its mean alone; changed in place.
        fresh_mean: mean of a fresh narrow one, or all of it.
        rows: make these rows of it alone, which ``fresh`` then has alone.
    """
    if not tensor.is_floating_point():
        return pad(tensor, scaling.axes, sizes, growth).clone()
    if shrink == 0:
        return fresh
    axes, there = scaling.axes, None
    if rows is not None:
        mine, there, axes = padded_rows(axes, sizes, growth, rows)
        tensor = tensor[mine]
    learned = pad((tensor.to(fresh.dtype) - fresh_mean) * (shrink * scaling.fold), axes, sizes, growth)
    return fresh.add_(learned) if there is None else fresh.index_add_(0, there, learned)
