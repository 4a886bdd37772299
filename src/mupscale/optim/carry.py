"""Carry an optimizer over: every group's values rescaled, every state tensor duplicated and scaled."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mupscale.errors import GrowthError
from mupscale.operators import duplicate_scaled
from mupscale.optim.groups import merge_groups
from mupscale.optim.rules import Rule, rule_for
from mupscale.planning import Plan


def carry_optimizer(
    optimizer: torch.optim.Optimizer, narrow: nn.Module, wide: nn.Module, plan: Plan
) -> torch.optim.Optimizer:
    """The optimizer of the wide model, in the state that the narrow model's has reached.

    Args:
        optimizer: optimizes ``narrow``; SGD, Adam or AdamW.
        narrow, wide: the models before and after growing by ``plan``.

    Returns:
        A new optimizer of the same class. Learning rates are scaled from their present values; attach a new
        scheduler, or go on with `set_lr`.

    Raises:
        GrowthError: the optimizer has no rule, holds a parameter that is not the narrow model's, or holds
            state that the rule does not know.
    """
    names = {id(p): n for n, p in narrow.named_parameters()}
    wide_params = dict(wide.named_parameters())
    carried: list[tuple[str, Tensor, Rule]] = []
    grown_params = []
    for group in optimizer.param_groups:
        rule = rule_for(type(optimizer), group)
        for param in group["params"]:
            if id(param) not in names:
                raise GrowthError(
                    f"the optimizer holds a parameter of shape {tuple(param.shape)} that is not in the model"
                )
            name = names[id(param)]
            carried.append((name, param, rule))
            grown_params.append((name, wide_params[name], rule.group(plan[name], group)))
    accepted = inspect.signature(type(optimizer)).parameters
    defaults = {k: v for k, v in optimizer.defaults.items() if k in accepted}
    grown = type(optimizer)(merge_groups(grown_params), **defaults)
    for name, param, rule in carried:
        if param in optimizer.state:
            state = grow_state(name, optimizer.state[param], plan, rule, tuple(param.shape))
            device = wide_params[name].device
            grown.state[wide_params[name]] = {
                k: v.to(device) if _has_dims(v) else v for k, v in state.items()
            }
    return grown


def grow_state(
    name: str, state: Mapping[str, Any], plan: Plan, rule: Rule, narrow_shape: tuple[int, ...]
) -> dict[str, Any]:
    """One parameter's optimizer state, grown: state↑ = c^q · dup(state); step counters are copied.

    Raises:
        GrowthError: a state tensor is unknown to the rule, or does not have the parameter's shape.
    """
    grown: dict[str, Any] = {}
    for key, value in state.items():
        if key == "step" or value is None:
            grown[key] = value.clone() if isinstance(value, Tensor) else value
            continue
        check_state(name, key, value, rule, narrow_shape)
        grown[key] = grow_state_tensor(name, key, value, plan, rule)
    return grown


def check_state(name: str, key: str, value: Tensor, rule: Rule, narrow_shape: tuple[int, ...]) -> None:
    """Refuse a state tensor that the rule does not know or that is not of this parameter."""
    if key not in rule.state:
        raise GrowthError(
            f"{name}: optimizer state {key!r} has no scaling rule; expected {', '.join(rule.state)}"
        )
    if tuple(value.shape) != narrow_shape:
        raise GrowthError(
            f"{name}: optimizer state {key!r} has shape {tuple(value.shape)}, the parameter {narrow_shape}; "
            "it is not of this model"
        )


def grow_state_tensor(name: str, key: str, value: Tensor, plan: Plan, rule: Rule) -> Tensor:
    """c^q · dup(state), in the dtype that the state has."""
    scale = plan[name].grad_scale ** rule.state[key]
    return duplicate_scaled(value, plan[name], plan.layout.sizes, plan.growth, scale=scale).to(value.dtype)


def _has_dims(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0
