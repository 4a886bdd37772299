"""The rules: lr, eps, weight decay and state of a wide parameter, from its scales s and c.

An optimizer whose update is homogeneous of degree p in the gradients stays in lockstep with the narrow one,
Δθ↑ = s · dup(Δθ), exactly when

    lr↑    = lr · s / c^p
    eps↑   = eps · c                   eps is added to a root-mean-square of gradients
    wd↑    = wd · c / s                coupled: L2, inside the gradient
    wd↑    = wd · lr / lr↑             decoupled: AdamW
    state↑ = c^q · dup(state)          q = 1 momentum, 2 second moments

(Ma et al. 2026, arXiv 2602.10545; with "narrow" read as "base width", Yang et al. 2021, Tables 3 and 8.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from mupscale.errors import GrowthError
from mupscale.planning import Scaling


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How one optimizer scales.

    Attributes:
        degree: p, the degree of its update in the gradients.
        state: q by name of state tensor. Anything else in the state that is not a step counter is unknown.
        decoupled: whether weight decay acts on the parameter and not through the gradient.
    """

    degree: int
    state: Mapping[str, int]
    decoupled: bool = False

    def lr_scale(self, p: Scaling) -> float:
        """lr↑ / lr = s / c^p."""
        return float(p.weight_scale / p.grad_scale**self.degree)

    def weight_decay_scale(self, p: Scaling) -> float:
        """wd↑ / wd: lr/lr↑ when decoupled, c/s when coupled."""
        return 1 / self.lr_scale(p) if self.decoupled else p.grad_scale / p.weight_scale

    def group(self, p: Scaling, group: Mapping[str, Any]) -> dict[str, Any]:
        """A parameter group's values, without its parameters, as they become at scaling ``p``.

        ``lr_scale`` accumulates, so that a model grown twice keeps its ratio to the first.
        """
        scale = self.lr_scale(p)
        wide = {k: v for k, v in group.items() if k not in ("params", "param_names")}
        wide |= {k: wide[k] * scale for k in ("lr", "initial_lr") if k in wide}
        if "weight_decay" in wide:
            wide["weight_decay"] *= self.weight_decay_scale(p)
        if "eps" in wide:
            wide["eps"] *= p.grad_scale
        wide["lr_scale"] = wide.get("lr_scale", 1.0) * scale
        return wide


_SGD = Rule(degree=1, state={"momentum_buffer": 1})
_ADAM_STATE = {"exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2}
_ADAM = Rule(degree=0, state=_ADAM_STATE)
_ADAMW = Rule(degree=0, state=_ADAM_STATE, decoupled=True)


def rule_for(optimizer_class: type[torch.optim.Optimizer], group: Mapping[str, Any]) -> Rule:
    """The rule of an optimizer class under the flags of one of its parameter groups.

    Raises:
        GrowthError: there is no rule for the class.

    >>> rule_for(torch.optim.Adam, {"decoupled_weight_decay": True}).decoupled
    True
    """
    if issubclass(optimizer_class, torch.optim.SGD):
        return _SGD
    if issubclass(optimizer_class, torch.optim.AdamW):
        return _ADAMW
    if issubclass(optimizer_class, torch.optim.Adam):
        return _ADAMW if group.get("decoupled_weight_decay") else _ADAM
    raise GrowthError(
        f"optimizer {optimizer_class.__name__!r} has no scaling rule; "
        "expected SGD, Adam or AdamW of torch.optim"
    )


def rule_of_state(groups: list[Mapping[str, Any]]) -> Rule:
    """The rule of a saved optimizer, which does not name its class, from what its groups hold.

    Raises:
        GrowthError: the groups are of no optimizer that has a rule, or of Adam or AdamW without a sign which.
    """
    keys = set(groups[0]) if groups else set()
    if {"momentum", "dampening", "nesterov"} <= keys:
        return _SGD
    if {"betas", "eps", "amsgrad"} <= keys:
        if "decoupled_weight_decay" not in keys and any(g["weight_decay"] for g in groups):
            raise GrowthError(
                "saved by a torch too old to say whether it is Adam or AdamW, whose weight decay scales "
                "differently; save it again with torch 2.7 or later"
            )
        return _ADAMW if groups[0].get("decoupled_weight_decay") else _ADAM
    raise GrowthError("not the state of SGD, Adam or AdamW of torch.optim, which alone have scaling rules")
