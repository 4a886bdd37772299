"""Which optimizer has which rule: those of `torch.optim`, of other packages, and a place to register more."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn, optim

from mupscale.errors import GrowthError
from mupscale.theory.elsewhere import ELSEWHERE, REFUSED_ELSEWHERE, RuleOf
from mupscale.theory.horizon import STEPS_RATIO
from mupscale.theory.rules import SCHEDULED, Power, Rule, Scale
from mupscale.theory.scaling import Scaling

_REGISTRY: dict[type[optim.Optimizer], RuleOf] = {}
_REFUSED: dict[type[optim.Optimizer], str] = {
    optim.LBFGS: "its steps come from inner products over all parameters together, in which some "
    "parameters have more copies than others",
}


def register_optimizer(optimizer_class: type[optim.Optimizer], rule: RuleOf) -> None:
    """Say how an optimizer from elsewhere scales.

    Args:
        optimizer_class: it and its subclasses, as far as those have no rule nor steps of their own.
        rule: its `Rule`, or a function from a parameter group's values (flags) to one.

    Raises:
        GrowthError: the rule is neither.

    >>> class Lion(torch.optim.Optimizer):
    ...     "Updates by the sign of a momentum: degree 0, one state tensor, no eps, decoupled weight decay."
    >>> register_optimizer(Lion, Rule(degree=0, state={"exp_avg": 1}, decoupled=True))
    >>> rule_for(Lion, {}).decoupled
    True
    """
    if not isinstance(rule, Rule) and not callable(rule):
        raise GrowthError(
            f"rule of {optimizer_class.__name__}: expected a mupscale.Rule, such as Rule(degree=0, "
            f"state={{'exp_avg': 1}}), or a function from a group's values to one, found {rule!r}"
        )
    _REGISTRY[optimizer_class] = rule


def rule_for(optimizer_class: type[optim.Optimizer], group: Mapping[str, Any]) -> Rule:
    """The rule of an optimizer class under the flags of one of its parameter groups.

    Raises:
        GrowthError: there is no rule for the class, or there can be none.

    >>> rule_for(torch.optim.Adam, {"decoupled_weight_decay": True}).decoupled
    True
    """
    for base in optimizer_class.__mro__:
        known = (base.__module__.partition(".")[0], base.__name__)
        if (rule := _REGISTRY.get(base) or ELSEWHERE.get(known)) is not None:
            if not _steps_as(optimizer_class, base):
                raise GrowthError(
                    f"optimizer {optimizer_class.__name__!r} has no scaling rule: its steps are its own, of "
                    f"which that of {base.__name__} may not hold; register it with "
                    "mupscale.register_optimizer"
                )
            return rule if isinstance(rule, Rule) else rule(group)
        if reason := _REFUSED.get(base) or REFUSED_ELSEWHERE.get(known):
            raise GrowthError(
                f"optimizer {optimizer_class.__name__!r} has no scaling rule: {reason}; choose another, such "
                "as AdamW"
            )
    raise GrowthError(
        f"optimizer {optimizer_class.__name__!r} has no scaling rule; expected one of "
        f"{', '.join(sorted(c.__name__ for c in _REGISTRY))}, or of other packages "
        f"{', '.join(sorted({f'{package}.{name}' for package, name in ELSEWHERE}))}, or register it with "
        "mupscale.register_optimizer"
    )


def _steps_as(optimizer_class: type, base: type) -> bool:
    """Whether a subclass takes the steps of ``base``: torch puts wrapped ones into it."""

    def method(owner: type, name: str) -> Any:
        return inspect.unwrap(getattr(owner, name, None))  # type: ignore[arg-type]

    names = ("step", "_init_group", "update_step")  # what torch's and bitsandbytes' steps are made of
    return all(method(optimizer_class, name) is method(base, name) for name in names)


def optimizer_names() -> dict[str, type[optim.Optimizer]]:
    """The optimizers that have a rule, by lower-case name."""
    return {c.__name__.lower(): c for c in _REGISTRY}


def class_of_state(group: Mapping[str, Any]) -> type[optim.Optimizer]:
    """The class of a saved optimizer, which does not name it, from the values that a group of it holds.

    Raises:
        GrowthError: the group is of no optimizer that has a rule, or of Adam or AdamW without a sign which.
    """
    keys = set(group) - {"params", "param_names", "lr_scale", STEPS_RATIO, *SCHEDULED}
    if "amsgrad" in keys and "decoupled_weight_decay" not in keys:
        if group["weight_decay"]:
            raise GrowthError(
                "saved by a torch too old to say whether it is Adam or AdamW, whose weight decay scales "
                "differently; save it again with torch 2.7 or later"
            )
        return optim.Adam
    for optimizer_class in _REGISTRY:
        if keys == _default_values(optimizer_class).keys():
            return optimizer_class
    raise GrowthError(
        f"not the state of an optimizer that has a scaling rule ({', '.join(sorted(optimizer_names()))})"
    )


def _default_values(optimizer_class: type[optim.Optimizer]) -> dict[str, Any]:
    try:
        return optimizer_class([nn.Parameter(torch.zeros(1, 1))], lr=1e-3).defaults  # type: ignore[call-arg]
    except TypeError:  # registered, and built in another way
        return {}


# ---- torch.optim -------------------------------------------------------------------------------------------

_MOMENTS: dict[str, int | Scale] = {"exp_avg": 1, "exp_avg_sq": 2}
_IN_PARAMETER_SPACE = Power(weight=1)


def _adam_like(**fields: Any) -> Callable[[Mapping[str, Any]], Rule]:
    rule = Rule(degree=0, **{"state": _MOMENTS, **fields})
    return lambda group: replace(rule, decoupled=bool(group.get("decoupled_weight_decay")))


def _radam_ready(state: Mapping[str, Any], group: Mapping[str, Any]) -> str | None:
    """RAdam's first steps, before its variance is rectified, are plain momentum: of degree 1, not 0."""
    beta2, step = group["betas"][1], float(state["step"]) + 1
    rho = 2 / (1 - beta2) - 1 - 2 * step * beta2**step / (1 - beta2**step)
    if rho > 5:
        return None
    return (
        f"after {step - 1:.0f} steps RAdam still takes steps of momentum, which scale differently; "
        "carry it over a few steps later"
    )


def _muon(group: Mapping[str, Any]) -> Rule:
    """orth(c·dup(G)) = dup(orth(G)) / √m: lr↑ = lr · s · √m · r / r↑, r torch's adjustment of lr by shape."""

    def adjustment(shape: tuple[int, ...]) -> float:
        rows, columns = shape
        if group.get("adjust_lr_fn") in (None, "original"):
            return math.sqrt(max(1, rows / columns))
        return 0.2 * math.sqrt(max(rows, columns))

    def lr(p: Scaling) -> float:
        if len(p.shape) != 2:
            raise GrowthError(f"Muon takes matrices, not a parameter of shape {p.shape}; give that to AdamW")
        return p.weight_scale * math.sqrt(p.own_copies) * adjustment(p.shape) / adjustment(p.wide_shape)

    return Rule(
        degree=0,
        state={"momentum_buffer": 1},
        decoupled=True,
        lr=lr,
        # It stands beside the norm of the whole matrix.
        values={"eps": lambda p: p.grad_scale * math.sqrt(p.own_copies)},
    )


_TORCH: dict[type[optim.Optimizer], RuleOf] = {
    optim.SGD: Rule(degree=1, state={"momentum_buffer": 1}),
    # eta is its learning rate as it has decayed; lambd·lr must stay as it is.
    optim.ASGD: Rule(
        degree=1,
        state={"eta": Power(grad=-1, weight=1), "ax": _IN_PARAMETER_SPACE},
        copied=frozenset({"step", "mu"}),
        values={"lambd": Power(grad=1, weight=-1)},
        looks_at_values=True,
    ),
    optim.Adam: _adam_like(state={**_MOMENTS, "max_exp_avg_sq": 2}, horizon=True),
    optim.AdamW: Rule(degree=0, state={**_MOMENTS, "max_exp_avg_sq": 2}, decoupled=True, horizon=True),
    optim.Adamax: Rule(degree=0, state={"exp_avg": 1, "exp_inf": 1}),
    optim.NAdam: _adam_like(copied=frozenset({"step", "mu_product"})),
    optim.RAdam: _adam_like(ready=_radam_ready),
    optim.Adagrad: Rule(degree=0, state={"sum": 2}),
    # √(acc_delta + eps) / √(square_avg + eps) · gradient, with one eps for both: of degree 1.
    optim.Adadelta: Rule(degree=1, eps=2, state={"square_avg": 2, "acc_delta": 2}),
    optim.RMSprop: Rule(degree=0, state={"square_avg": 2, "grad_avg": 1, "momentum_buffer": 0}),
    optim.Rprop: Rule(
        degree=0,
        state={"prev": 1, "step_size": _IN_PARAMETER_SPACE},
        values={"step_sizes": (_IN_PARAMETER_SPACE, _IN_PARAMETER_SPACE)},
    ),
    # Steps are relative to the root mean square of the parameter, which brings the factor s by itself. Exact
    # as long as no second moment is as small as its clamp, eps[0].
    optim.Adafactor: Rule(
        degree=0,
        state={"row_var": 2, "col_var": 2, "variance": 2},
        reduced={"row_var": -1, "col_var": -2},
        decoupled=True,
        lr=Power(),
        values={"eps": (Power(grad=2), _IN_PARAMETER_SPACE)},
        looks_at_values=True,
    ),
    optim.Muon: _muon,
    optim.SparseAdam: Rule(degree=0, state=_MOMENTS),
}
_REGISTRY.update(_TORCH)
