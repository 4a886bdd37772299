"""How large are activations, weights and gradients? Mean absolute values (L1) and root mean squares (L2).

Both are per entry, so that they can be compared over widths. Knows modules and the Trainer's callbacks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from statistics import fmean
from typing import Any

from torch import Tensor, nn
from transformers import TrainerCallback, TrainerState

from mupscale.theory.tables import collapse

Sizes = tuple[float, float]


def sizes(tensor: Tensor) -> Sizes:
    """Mean absolute value and root mean square.

    >>> import torch
    >>> sizes(torch.tensor([3.0, -3.0]))
    (3.0, 3.0)
    """
    values = tensor.detach().float()
    return values.abs().mean().item(), values.square().mean().sqrt().item()


@contextmanager
def watch_activations(model: nn.Module) -> Iterator[dict[str, list[Sizes]]]:
    """Sizes of the outputs of all modules that hold parameters, by name, one entry for each call."""
    found: dict[str, list[Sizes]] = defaultdict(list)

    def hook(name: str) -> Any:
        def after(_module: nn.Module, _args: Any, output: Any) -> None:
            value = output[0] if isinstance(output, tuple) else output
            if isinstance(value, Tensor) and value.is_floating_point():
                found[name].append(sizes(value))

        return after

    with ExitStack() as handles:
        for name, module in model.named_modules():
            if name and any(True for _ in module.parameters()):
                handles.enter_context(module.register_forward_hook(hook(name)))
        yield found


class RecordNorms(TrainerCallback):  # type: ignore[misc]
    """Record the size of every activation, weight and gradient during training, every few steps.

    Example, in any `transformers.Trainer`:
        >>> norms = RecordNorms(every=10)  # Trainer(..., callbacks=[norms]), and then norms.rows()
    """

    def __init__(self, every: int = 10) -> None:
        self.every = every
        self._found: dict[tuple[int, str, str], list[Sizes]] = defaultdict(list)
        self._watching = ExitStack()
        self._activations: dict[str, list[Sizes]] | None = None

    def on_step_begin(
        self, args: Any, state: TrainerState, control: Any, *, model: nn.Module, **kwargs: Any
    ) -> None:
        if state.global_step % self.every == 0 or state.global_step == state.max_steps - 1:
            self._activations = self._watching.enter_context(watch_activations(model))

    def on_pre_optimizer_step(
        self, args: Any, state: TrainerState, control: Any, *, model: nn.Module, **kwargs: Any
    ) -> None:
        if self._activations is None:
            return
        self._watching.close()
        for name, calls in self._activations.items():
            self._add(state, "activation", name, calls)
        self._activations = None
        for name, param in model.named_parameters():
            self._add(state, "weight", name, [sizes(param)])
            if param.grad is not None:
                self._add(state, "gradient", name, [sizes(param.grad)])

    def _add(self, state: TrainerState, kind: str, name: str, found: Iterable[Sizes]) -> None:
        self._found[state.global_step, kind, collapse(f"{name}.").rstrip(".")].extend(found)

    def rows(self) -> list[list[Any]]:
        """[step, kind, name, l1, l2] as plain data: layers, and calls in a step, together, as their mean."""
        return [[*key, *map(fmean, zip(*found, strict=True))] for key, found in self._found.items()]
