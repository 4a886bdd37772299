"""How to call a model: its inputs, in whatever form they come, and what of its outputs is a result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Call:
    """The arguments of one call."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @staticmethod
    def of(inputs: Any) -> Call:
        """From a tensor, a tuple of arguments or a dict of named ones; floating-point tensors get float64."""

        def double(value: Any) -> Any:
            return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

        if isinstance(inputs, Mapping):
            return Call((), {k: double(v) for k, v in inputs.items()})
        return Call(tuple(map(double, inputs if isinstance(inputs, tuple) else (inputs,))), {})

    def __call__(self, model: nn.Module) -> Any:
        return model(*self.args, **self.kwargs)


def result_tensors(output: Any) -> list[Tensor]:
    """What a model returned that is a result: its logits where it has such, else every tensor.

    Embeddings of which only the angle counts (CLIP) are normalized, so that wide ones are no duplicates.
    """
    for name in ("logits", "logits_per_image"):
        if isinstance(logits := getattr(output, name, None), Tensor):
            return [logits]
    return every_tensor(output)


def every_tensor(output: Any) -> list[Tensor]:
    """All floating-point tensors that a model returned, logits alone of parts that have such."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    values = (
        output.values() if isinstance(output, Mapping) else output if isinstance(output, list | tuple) else ()
    )
    return [t for value in values for t in result_tensors(value)]
