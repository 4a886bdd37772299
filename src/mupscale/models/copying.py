"""Copies of a model that are copies throughout, and that run in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import CellType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mupscale.errors import GrowthError, said_as
from mupscale.models.contents import attribute_tensors


def copied(model: nn.Module) -> nn.Module:
    """A deep copy that keeps what `copy.deepcopy` alone loses.

    That is: attributes and gradient hooks of parameters (mup's ``infshape``), functions over the module
    itself (a lambda of its ``__init__`` goes on reading the original), and tensors that are computed of
    others (old weight norm's).

    Raises:
        GrowthError: the module holds something that cannot be copied, or a lazy parameter.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise GrowthError(
                f"{name}: has no shape yet, as its module is lazy; call the model once first, model(x), in a "
                "function make before it returns the model"
            )
    memo: dict[int, Any] = {}
    for _, _, tensor in attribute_tensors(model):
        if not tensor.is_leaf:
            memo[id(tensor)] = tensor.detach().clone().requires_grad_(tensor.requires_grad)
    mend = (
        "; plan it from a function, mupscale.plan(make, width=..., inputs=...), which is called again instead"
    )
    with said_as(f"{type(model).__name__}: cannot be copied", mend):
        for param in model.parameters():
            copy.deepcopy(param, memo).__dict__.update(copy.deepcopy(param.__dict__, memo))
        twin: nn.Module = copy.deepcopy(model, memo)
        for param in model.parameters():
            own, trained = memo[id(param)], param.requires_grad
            for register, hook in gradient_hooks(param):
                own.requires_grad_(True)  # a frozen one takes no hook
                register(own, _rebound(copy.deepcopy(hook, memo), memo))
            own.requires_grad_(trained)
    for module in twin.modules():
        for key, value in vars(module).items():
            vars(module)[key] = _rebound(value, memo)
    return twin


def gradient_hooks(param: nn.Parameter) -> list[tuple[Callable[..., Any], Any]]:
    """The hooks on a parameter's gradient, each with how it is registered."""
    return [
        *((nn.Parameter.register_hook, hook) for hook in (param._backward_hooks or {}).values()),
        *(
            (nn.Parameter.register_post_accumulate_grad_hook, hook)
            for hook in (param._post_accumulate_grad_hooks or {}).values()
        ),
    ]


def _rebound(value: Any, memo: dict[int, Any]) -> Any:
    """Functions over parts of the original, over those of the copy instead; also inside lists and dicts."""
    if isinstance(value, FunctionType) and value.__closure__:
        inside = [content(cell) for cell in value.__closure__]
        if any(isinstance(held, torch.optim.Optimizer) for held in inside):
            raise GrowthError(
                f"{value.__qualname__}: a hook or function of the module steps an optimizer, which a copy of "
                "the module would step, too; take it off, and put it on again after growing"
            )
        moved = [memo.get(id(held), held) for held in inside]
        if all(a is b for a, b in zip(inside, moved, strict=True)):
            return value
        cells = tuple(map(CellType, moved))
        bound = FunctionType(
            value.__code__, value.__globals__, value.__name__, value.__defaults__, closure=cells
        )
        bound.__kwdefaults__, bound.__dict__ = value.__kwdefaults__, value.__dict__
        return bound
    if type(value) is list:
        value[:] = [_rebound(v, memo) for v in value]
    elif isinstance(value, dict):
        for key, v in value.items():
            value[key] = _rebound(v, memo)
    return value


def content(cell: CellType) -> Any:
    """What a function has closed over; None where that was never filled."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def doubled(model: nn.Module) -> nn.Module:
    """The model itself, all that it holds in float64 or complex128: plain attributes, too."""

    def double(tensor: Tensor) -> Tensor:
        if tensor.is_complex():
            return tensor.to(torch.complex128)
        return tensor.double() if tensor.is_floating_point() else tensor

    for module, key, tensor in list(attribute_tensors(model)):
        vars(module)[key] = double(tensor.detach())
    model._apply(double)  # type: ignore[no-untyped-call]
    return model
