"""Whether saved optimizer state is one that its optimizer steps with: a file may hold anything."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mupscale.errors import GrowthError, one_line
from mupscale.theory.registry import class_of_state
from mupscale.theory.rules import RATES

# Where and how a step is computed, which does not change what the state is.
_ANYWHERE = {"foreach": None, "fused": None, "capturable": False, "differentiable": False}


def check_groups(saved: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The parameter groups of a saved optimizer, each with the indices of its parameters.

    Raises:
        GrowthError: it is no optimizer's, or a group holds what none does.
    """
    groups = saved.get("param_groups")
    if not isinstance(groups, list) or not groups or not isinstance(saved.get("state"), dict):
        raise GrowthError("expected the state dict of a torch optimizer, with state and param_groups")
    seen: set[int] = set()
    for number, group in enumerate(groups):
        place = f"group {number}"
        if not isinstance(group, dict) or not all(isinstance(key, str) for key in group):
            raise GrowthError(f"{place}: expected a dict of named values")
        for key, kind in (("params", int), ("param_names", str)):
            entries = group.get(key, [] if key == "param_names" else None)
            if not isinstance(entries, list) or not all(type(entry) is kind for entry in entries):
                raise GrowthError(f"{place}: {key} should be a list of {kind.__name__}")
        if len({*group["params"]} - seen) < len(group["params"]):
            raise GrowthError(f"{place}: expected every parameter once, in one group")
        seen |= {*group["params"]}
        for key in (*RATES, "lr_scale", "weight_decay"):
            value = group.get(key, 0.0)
            if isinstance(value, tuple | list) or len([*_numbers(value)]) != 1:
                raise GrowthError(f"{place}: {key} is {group[key]!r}, expected a number")
        for key, value in group.items():
            few = value if isinstance(value, tuple | list) else [value]
            if key not in ("params", "param_names") and not all(map(_is_value, few)):
                raise GrowthError(f"{place}: {key} should be a number, or a few")
            if odd := [n for n in _numbers(value) if not math.isfinite(n)]:
                raise GrowthError(f"{place}: {key} is {odd[0]}, expected a finite number")
    return groups


def own_state(group: Mapping[str, Any], number: int, ndim: int) -> dict[str, Any]:
    """What the optimizer of a group, with its values, has for a parameter of ``ndim`` dims after a step.

    Nothing is known of optimizers from elsewhere, whose steps may need more than a gradient.

    Raises:
        GrowthError: it does not take these values.
    """
    optimizer_class = class_of_state(group)
    if not optimizer_class.__module__.startswith("torch.optim"):
        return {}
    accepted = inspect.signature(optimizer_class).parameters
    values = {
        k: v for k, v in {**group, **_ANYWHERE}.items() if k in accepted and k in group and k != "params"
    }
    param = nn.Parameter(torch.zeros((2,) * ndim))
    param.grad = torch.full_like(param, 1e-3)
    if optimizer_class is torch.optim.SparseAdam:
        param.grad = param.grad.to_sparse()
    try:
        with torch.no_grad():
            optimizer = optimizer_class([param], **values)
            optimizer.step()
    except Exception as error:  # of many kinds, for values that are not what they should be
        reason = one_line(error, limit=160)
        raise GrowthError(
            f"group {number}: {optimizer_class.__name__} refuses its values ({reason})"
        ) from None
    return dict(optimizer.state[param])


def check_entries(name: str, state: Any, own: Mapping[str, Any]) -> None:
    """Refuse the state of a parameter that is not of the kind which its optimizer has.

    Raises:
        GrowthError: names what is missing, or of another kind.
    """
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise GrowthError(f"{name}: expected its optimizer state as a dict of named values")
    for key, value in own.items():
        if value is None:
            continue
        found = state.get(key)
        if found is None:
            raise GrowthError(f"{name}: optimizer state {key!r} is missing")
        if not isinstance(value, Tensor) or not value.ndim:
            if isinstance(found, Tensor) and found.numel() != 1:
                raise GrowthError(f"{name}: optimizer state {key!r} should be a single number")
            if (
                not (numbers := [*_numbers(found)])
                or not math.isfinite(numbers[0])
                or (key == "step" and numbers[0] < 0)
            ):
                shown = numbers[0] if numbers else repr(found)
                raise GrowthError(f"{name}: optimizer state {key!r} is {shown}, expected a finite number")
        elif not isinstance(found, Tensor) or not found.is_floating_point() or found.layout != torch.strided:
            raise GrowthError(f"{name}: optimizer state {key!r} should be a tensor of floating point numbers")
        elif found.ndim != value.ndim:
            raise GrowthError(f"{name}: optimizer state {key!r} has {found.ndim} dims, expected {value.ndim}")


def check_values(name: str, key: str, value: Tensor, degree: object) -> Tensor:
    """Refuse numbers that no step comes through: NaN, infinity, a mean of squares below zero.

    Raises:
        GrowthError: names them.
    """
    if value.numel():
        least, largest = (float(extreme) for extreme in torch.aminmax(value))
        if not math.isfinite(least) or not math.isfinite(largest):
            raise GrowthError(f"{name}: optimizer state {key!r} holds NaN or infinity, expected numbers")
        if degree == 2 and least < 0:
            raise GrowthError(f"{name}: optimizer state {key!r} is {least:.3g}, expected a mean of squares")
    return value


def check_scheduler(state: Any) -> None:
    """Refuse the state of a scheduler that is more than plain values by name, in lists and dicts of such.

    Raises:
        GrowthError: it is no scheduler's.
    """

    def is_plain(value: Any) -> bool:
        if isinstance(value, dict):
            return all(isinstance(k, str | int) and is_plain(v) for k, v in value.items())
        return all(map(is_plain, value)) if isinstance(value, tuple | list) else _is_value(value)

    named = isinstance(state, dict) and all(isinstance(key, str) for key in state)
    if not named or not is_plain(state) or not isinstance(state.get("_schedulers", []), list):
        raise GrowthError("expected the state dict of a torch scheduler, plain values by name")
    for part in state.get("_schedulers", []):
        check_scheduler(part)


def _is_value(value: Any) -> bool:
    """A number, a word, a flag."""
    if isinstance(value, Tensor):
        return value.numel() == 1 and value.layout == torch.strided
    return value is None or isinstance(value, bool | int | float | str)


def _numbers(value: Any) -> Iterator[float]:
    """The numbers in a value: one, or of a tuple or list."""
    if isinstance(value, tuple | list):
        for entry in value:
            yield from _numbers(entry)
    elif isinstance(value, float | int) and not isinstance(value, bool):
        yield _as_float(value)
    elif isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        yield float(value)


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf
