"""The rules: what the hyperparameters and the state of an optimizer become for a parameter of scales s and c.

An optimizer whose update is homogeneous of degree p in the gradients stays in lockstep with the narrow one,
Δθ↑ = s · dup(Δθ), exactly when

    lr↑    = lr · s / c^p
    eps↑   = eps · c                   eps is added to a root-mean-square of gradients
    wd↑    = wd · c / s                coupled: L2, inside the gradient
    wd↑    = wd · lr / lr↑             decoupled: AdamW
    state↑ = c^q · dup(state)          q = 1 momentum, 2 second moments

(Ma et al. 2026, arXiv 2602.10545; with "narrow" read as "base width", Yang et al. 2021, Tables 3 and 8.)
All of these are powers of c and s, so a `Rule` is a handful of exponents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mupscale.errors import GrowthError
from mupscale.theory.scaling import Scaling

# The learning rates of a group: its own, and those that schedulers of torch keep there (OneCycleLR, SWALR).
RATES = ("lr", "initial_lr", "max_lr", "min_lr", "swa_lr")
SCHEDULED = (*RATES[1:], "max_momentum", "base_momentum")  # all that these keep there


@dataclass(frozen=True)
class Power:
    """The scale c^grad · s^weight."""

    grad: int = 0
    weight: int = 0

    def __call__(self, p: Scaling) -> float:
        return float(p.grad_scale**self.grad * p.weight_scale**self.weight)


Scale = Callable[[Scaling], float]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How one optimizer scales.

    Attributes:
        degree: p, the degree of its update in the gradients.
        state: by name of a state tensor, its degree q in the gradients, or its scale where it lives elsewhere
            (``Power(weight=1)``: in parameter space). Names that are missing here and in ``copied`` are
            refused.
        copied: state that does not scale: step counters.
        reduced: by name of a state tensor, the dim that it is reduced over, where it is.
        decoupled: whether weight decay acts on the parameter and not through the gradient.
        eps: the degree of ``eps`` in the gradients.
        values: scales of other values of a parameter group, and of entries of tuples; None leaves an entry.
        lr: the scale of the learning rate, where it is not s / c^p.
        ready: (state of a parameter, group) → why it cannot be carried yet, or None.
        looks_at_values: whether a step or the state depends on the parameter's own value, beside weight
            decay. Where a model adds a constant to a parameter before use, that value does not scale.
        horizon: whether its values go by batch size and training length as AdamW's do, by the rules in
            `mupscale.theory.horizon`; no others are published for both.
    """

    degree: int
    state: Mapping[str, int | Scale]
    copied: frozenset[str] = frozenset({"step"})
    reduced: Mapping[str, int] = field(default_factory=dict)
    decoupled: bool = False
    eps: int = 1
    values: Mapping[str, Scale | tuple[Scale | None, ...]] = field(default_factory=dict)
    lr: Scale | None = None
    ready: Callable[[Mapping[str, Any], Mapping[str, Any]], str | None] = lambda state, group: None
    looks_at_values: bool = False
    horizon: bool = False

    def lr_scale(self, p: Scaling) -> float:
        """lr↑ / lr = s / c^p."""
        return self.lr(p) if self.lr is not None else Power(grad=-self.degree, weight=1)(p)

    def weight_decay_scale(self, p: Scaling) -> float:
        """wd↑ / wd: lr/lr↑ when decoupled, c/s when coupled."""
        return 1 / self.lr_scale(p) if self.decoupled else Power(grad=1, weight=-1)(p)

    def state_scale(self, key: str, p: Scaling) -> float:
        """What a state tensor is multiplied by."""
        scale = self.state[key]
        return Power(grad=scale)(p) if isinstance(scale, int) else scale(p)

    def group(self, name: str, p: Scaling, group: Mapping[str, Any]) -> dict[str, Any]:
        """A parameter group's values, without its parameters, as they become for ``name`` at scaling ``p``.

        ``lr_scale`` accumulates, so that a model grown twice keeps its ratio to the first.

        Raises:
            GrowthError: the parameter is a folded gain that is stored as its difference from a constant, and
                is to decay or to step by its own value.
        """
        if p.offset and (group.get("weight_decay") or self.looks_at_values):
            mend = "another optimizer" if self.looks_at_values else "no weight decay (decay=[...] without it)"
            raise GrowthError(
                f"{name}: the model adds {p.offset:g} to it before use, and growth scales the sum, so that "
                f"decay or a step by its value would act otherwise than in the narrow model; give it {mend}"
            )
        wide = {k: v for k, v in group.items() if k not in ("params", "param_names")}
        scales: dict[str, Scale | tuple[Scale | None, ...]] = {
            **dict.fromkeys(RATES, self.lr_scale),
            "weight_decay": self.weight_decay_scale,
            "eps": Power(grad=self.eps),
            **self.values,
        }
        for key, scale in scales.items():
            if key in wide:
                wide[key] = _scaled(wide[key], scale, p)
        wide["lr_scale"] = wide.get("lr_scale", 1.0) * self.lr_scale(p)
        return wide

    def takes_over(self, key: str, value: Any) -> bool:
        """Whether a piece of state is copied as it is."""
        return key in self.copied or value is None

    def check(
        self, name: str, state: Mapping[str, Any], group: Mapping[str, Any], narrow_shape: tuple[int, ...]
    ) -> None:
        """Refuse a parameter's state that cannot be carried: it is unknown, another's, or too young."""
        for key, value in state.items():
            if not self.takes_over(key, value):
                self._check_piece(name, key, value, narrow_shape)
        if reason := self.ready(state or {"step": 0}, group):  # of a parameter that never had a gradient
            raise GrowthError(f"{name}: {reason}")

    def _check_piece(self, name: str, key: str, value: Any, narrow_shape: tuple[int, ...]) -> None:
        # Factored state (Adafactor) has size 1 in the dims that it is reduced over.
        if key not in self.state:
            raise GrowthError(
                f"{name}: optimizer state {key!r} has no scaling rule, expected {', '.join(self.state)}; "
                f"register one that names it, as state={{{key!r}: 1}} or copied={{{key!r}}}"
            )
        if not isinstance(value, Tensor) or not value.ndim:  # a single number
            return
        fits = value.ndim == len(narrow_shape) and all(
            n in (1, full) for n, full in zip(value.shape, narrow_shape, strict=True)
        )
        if not fits:
            raise GrowthError(
                f"{name}: optimizer state {key!r} has shape {tuple(value.shape)}, the parameter "
                f"{narrow_shape}; it is not of this model"
            )


def _scaled(value: Any, scale: Scale | tuple[Scale | None, ...], p: Scaling) -> Any:
    if isinstance(scale, tuple):
        return tuple(v if s is None or v is None else v * s(p) for v, s in zip(value, scale, strict=True))
    return value * scale(p)
