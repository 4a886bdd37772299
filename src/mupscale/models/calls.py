"""How to call a model: its inputs, in whatever form they come, and what of its outputs is a result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import dataclass, fields, is_dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Call:
    """The arguments of one call."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @staticmethod
    def of(inputs: Any) -> Call:
        """From a tensor, a tuple of arguments or a dict of named ones; floating-point tensors get float64.

        A named tuple, such as a packed sequence, is one argument.
        """
        if isinstance(inputs, Mapping):
            call = Call((), inputs)
        else:
            call = Call(inputs if isinstance(inputs, tuple) and not _is_named(inputs) else (inputs,), {})
        return call.mapped(
            lambda t: t.to(torch.complex128) if t.is_complex() else t.double() if t.is_floating_point() else t
        )

    def __call__(self, model: nn.Module) -> Any:
        return model(*self.args, **self.kwargs)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Call:
        """The call with another tensor in place of each."""
        return Call(
            tuple(_mapped(a, change) for a in self.args),
            {k: _mapped(v, change) for k, v in self.kwargs.items()},
        )

    @property
    def tensors(self) -> list[Tensor]:
        """All of its tensors, in order; also those in lists, dicts, named tuples and dataclasses."""
        found: list[Tensor] = []

        def see(tensor: Tensor) -> Tensor:
            found.append(tensor)
            return tensor

        self.mapped(see)
        return found


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if type(value) in (list, tuple):
        return type(value)(_mapped(v, change) for v in value)
    if type(value) is dict:
        return {k: _mapped(v, change) for k, v in value.items()}
    if _is_named(value):
        return type(value)(*(_mapped(v, change) for v in value))
    if is_dataclass(value) and not isinstance(value, type):
        mapped = copy(value)
        for field in fields(value):  # past __init__, which may take others, and past a frozen one's refusal
            object.__setattr__(mapped, field.name, _mapped(getattr(value, field.name), change))
        return mapped
    return value


def _is_named(value: object) -> bool:
    """Whether it is a named tuple."""
    return isinstance(value, tuple) and hasattr(value, "_fields")


def result_tensors(output: Any, within: tuple[int, ...] = ()) -> list[Tensor]:
    """What a model returned that is a result: of transformers' outputs the logits, where they have such.

    Embeddings of which only the angle counts (CLIP) are normalized, so that wide ones are no duplicates.
    """
    if any(kind.__name__ == "ModelOutput" and _is_of_transformers(kind) for kind in type(output).__mro__):
        for name in ("logits", "logits_per_image"):
            if isinstance(logits := getattr(output, name, None), Tensor):
                return [logits]
    return every_tensor(output, within)


def every_tensor(output: Any, within: tuple[int, ...] = ()) -> list[Tensor]:
    """All floating-point and complex tensors that a model returned, logits alone of parts that have such.

    Args:
        within: what the output is a part of, by ``id``: an object may hold itself.
    """
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() or output.is_complex() else []
    if id(output) in within:
        return []
    return [t for part in _parts(output) for t in result_tensors(part, (*within, id(output)))]


def kept_losses(model: nn.Module) -> list[Tensor]:
    """Numbers with gradients that modules keep of a call: losses that the training loop is to add."""
    kept = [value for module in model.modules() for value in vars(module).values()]
    return [t for t in kept if isinstance(t, Tensor) and t.ndim == 0 and t.grad_fn is not None]


def _parts(output: Any) -> Iterable[Any]:
    """What an output holds; any object may hold results, as distributions do."""
    if isinstance(output, Mapping):
        return output.values()
    if isinstance(output, list | tuple):
        return output
    if isinstance(output, nn.Module | type | FunctionType):
        return ()
    if is_dataclass(output):
        return [getattr(output, field.name) for field in fields(output)]
    if _is_of_transformers(type(output)):  # a cache, which shows in what comes next
        return ()
    return getattr(output, "__dict__", {}).values()


def _is_of_transformers(kind: type) -> bool:
    """Told without an import of it, which takes seconds that a plain module needs not wait for."""
    return kind.__module__.partition(".")[0] == "transformers"
