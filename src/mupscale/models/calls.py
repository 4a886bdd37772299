"""How to call a model: its inputs, in whatever form they come, and what of its outputs is a result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, is_dataclass
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
        """From a tensor, a tuple of arguments or a dict of named ones; floating-point tensors get float64."""
        if isinstance(inputs, Mapping):
            call = Call((), inputs)
        else:
            call = Call(inputs if isinstance(inputs, tuple) else (inputs,), {})
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
        """All of its tensors, in order; also those in lists and dicts."""
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
    return {k: _mapped(v, change) for k, v in value.items()} if type(value) is dict else value


def result_tensors(output: Any) -> list[Tensor]:
    """What a model returned that is a result: its logits where it has such, else every tensor.

    Embeddings of which only the angle counts (CLIP) are normalized, so that wide ones are no duplicates.
    """
    for name in ("logits", "logits_per_image"):
        if isinstance(logits := getattr(output, name, None), Tensor):
            return [logits]
    return every_tensor(output)


def every_tensor(output: Any) -> list[Tensor]:
    """All floating-point and complex tensors that a model returned, logits alone of parts that have such."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() or output.is_complex() else []
    values: Iterable[Any] = ()
    if isinstance(output, Mapping):
        values = output.values()
    elif isinstance(output, list | tuple):
        values = output
    elif is_dataclass(output):
        values = vars(output).values()
    return [t for value in values for t in result_tensors(value)]
