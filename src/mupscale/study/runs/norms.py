"""How large are activations, weights and gradients? Mean absolute values (L1) and root mean squares (L2).

Both are per entry, so that they can be compared over widths. Knows modules and the Trainer's callbacks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mupscale.theory.tables import collapse


@dataclass(frozen=True, kw_only=True)
class Norm:
    """The size of one tensor at one step.

    Attributes:
        step: optimizer steps done.
        kind: activation, weight or gradient.
        name: of the module whose output it is, or of the parameter.
        l1: mean absolute value.
        l2: root mean square.
    """

    step: int
    kind: str
    name: str
    l1: float
    l2: float


def sizes(tensor: Tensor) -> tuple[float, float]:
    """Mean absolute value and root mean square.

    >>> import torch
    >>> sizes(torch.tensor([3.0, -3.0]))
    (3.0, 3.0)
    """
    values = tensor.detach().float()
    return values.abs().mean().item(), values.square().mean().sqrt().item()


@contextmanager
def watch_activations(model: nn.Module) -> Iterator[dict[str, list[tuple[float, float]]]]:
    """Sizes of the outputs of all modules that hold parameters, by name, one entry for each call."""
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)

    def hook(name: str) -> Any:
        def after(_module: nn.Module, _args: Any, output: Any) -> None:
            value = output[0] if isinstance(output, tuple) else output
            if isinstance(value, Tensor) and value.is_floating_point():
                found[name].append(sizes(value))

        return after

    handles = [
        module.register_forward_hook(hook(name))
        for name, module in model.named_modules()
        if name and any(True for _ in module.parameters())
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


class RecordNorms(TrainerCallback):  # type: ignore[misc]
    """Record the size of every activation, weight and gradient during training, every few steps.

    Example, in any `transformers.Trainer`:
        >>> norms = RecordNorms(every=10)  # Trainer(..., callbacks=[norms]), and then norms.rows()
    """

    def __init__(self, every: int = 10) -> None:
        self.every = every
        self.norms: list[Norm] = []
        self._watching = ExitStack()

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: nn.Module,
        **kwargs: Any,
    ) -> None:
        if state.global_step % self.every == 0 or state.global_step == state.max_steps - 1:
            self._activations = self._watching.enter_context(watch_activations(model))

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: nn.Module,
        **kwargs: Any,
    ) -> None:
        if not hasattr(self, "_activations"):
            return
        self._watching.close()
        step = state.global_step
        for name, calls in self._activations.items():
            l1, l2 = (sum(values) / len(calls) for values in zip(*calls, strict=True))
            self.norms.append(Norm(step=step, kind="activation", name=name, l1=l1, l2=l2))
        del self._activations
        for name, param in model.named_parameters():
            for kind, tensor in (("weight", param), ("gradient", param.grad)):
                if tensor is not None:
                    l1, l2 = sizes(tensor)
                    self.norms.append(Norm(step=step, kind=kind, name=name, l1=l1, l2=l2))

    def rows(self) -> list[list[Any]]:
        """[step, kind, name, l1, l2] as plain data: layers together, as their mean."""
        found: dict[tuple[int, str, str], list[tuple[float, float]]] = defaultdict(list)
        for n in self.norms:
            found[n.step, n.kind, collapse(f"{n.name}.").rstrip(".")].append((n.l1, n.l2))
        return [[*key, *map(fmean, zip(*sizes, strict=True))] for key, sizes in found.items()]
