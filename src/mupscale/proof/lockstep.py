"""Two models trained side by side: the wide one has to stay what the narrow one becomes."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mupscale.errors import GrowthError
from mupscale.models.calls import Call, kept_losses, result_tensors
from mupscale.models.chance import SameChance, unlike
from mupscale.models.copying import copied
from mupscale.models.skeletons import transformers_config
from mupscale.optim import param_groups
from mupscale.proof.deviations import filled, grown_call, size
from mupscale.theory.manifest import Plan

LOSS_TOLERANCE = 1e-9
STEPS = 5
_LOUD = 1e4

Pair = tuple[nn.Module, nn.Module]
Optimizers = tuple[torch.optim.Optimizer, torch.optim.Optimizer]

_KINDS: tuple[tuple[Any, dict[str, Any]], ...] = (
    (torch.optim.AdamW, {"lr": 1e-3, "weight_decay": 0.1}),
    (torch.optim.SGD, {"lr": 1e-3, "momentum": 0.9}),
)


def in_lockstep(narrow: nn.Module, wide: nn.Module, plan: Plan, call: Call) -> str | None:
    """What is wrong after some steps of AdamW or of SGD; None where the losses agree.

    What is random in training is drawn alike in both; where that is not possible, it stands still.
    """
    found = _Lockstep(narrow, wide, plan, call).tried()
    if found.failure is not None and any(found.unlike.values()):
        found = _Lockstep(narrow, wide, plan, call, still=found.unlike).tried()
    return found.failure


@dataclass
class _Lockstep:
    narrow: nn.Module
    wide: nn.Module
    plan: Plan
    call: Call
    still: Mapping[int, Collection[int]] = field(default_factory=dict)  # the draws of every step
    relative: bool = True
    sizes: dict[int, float] = field(default_factory=dict)
    draws: int = 0
    unlike: dict[int, set[int]] = field(default_factory=dict)
    failure: str | None = None

    def tried(self) -> _Lockstep:
        """Itself, with what is found out; ends at the first failure."""
        for kind, values in _KINDS:
            for slower in (1, 1e2, 1e4, 1e6):  # where the narrow model itself runs away, nothing shows
                own = values | {"lr": values["lr"] / slower}
                losses = self._losses(kind, own)
                if all(abs(loss) <= 1e3 * max(1.0, losses[0][0]) for loss, _ in losses[:STEPS]):
                    break
            for step, error in enumerate(map(_error, losses)):
                if error <= LOSS_TOLERANCE:
                    continue
                rounding = self._rounding(partial(kind, **own), step)
                told = error > 100 * rounding
                if not told and self.relative:  # an output may be next to nothing, left where numbers cancel
                    return replace(self, relative=False).tried()
                if step > 1 and not told:
                    break  # rounding alone does as much to the narrow model: more cannot be told from here
                self.failure = (
                    f"outputs agree, but after {step} steps of {kind.__name__} the losses differ"
                    f"{' in evaluation' * (step == STEPS)} by {error:.3g}, where rounding explains "
                    f"{rounding:.1g}"
                )
                if not told:
                    self.failure += "; give more inputs at once, so that rounding does less"
                elif self.draws:
                    self.failure += "; it draws random numbers in training that go by its width"
                return self
        return self

    def _losses(self, kind: Any, values: dict[str, Any]) -> list[tuple[float, float]]:
        """The losses of both before each step, and after the last in evaluation."""
        pair = copied(self.narrow).train(), copied(self.wide).train()
        optimizers = paired_optimizers(*pair, self.plan, kind, **values)
        calls = self.call, grown_call(self.call, self.plan)
        self.sizes = {}
        return [self._step(pair, optimizers, calls, step) for step in range(STEPS + 1)]

    def _step(
        self, pair: Pair, optimizers: Optimizers, calls: tuple[Call, Call], step: int
    ) -> tuple[float, float]:
        losses, chances = [], []
        # The same to Adam, but for what cuts gradients off where they are large.
        loud = _LOUD if step == STEPS - 2 and isinstance(optimizers[0], torch.optim.AdamW) else 1.0
        if step == STEPS:
            self.sizes = {}  # other outputs may be returned
        sizes = self.sizes if self.relative else None
        loss = partial(_loss, sizes=sizes, loud=loud, steady=_steady(self.plan))
        for model, optimizer, call in zip(pair, optimizers, calls, strict=True):
            with SameChance(step, still=self.still.get(step, ())) as chance:
                if step == STEPS:
                    losses.append(_evaluated(model, call, loss))
                else:
                    losses.append(train_step(model, optimizer, call, loss) / loud)
            chances.append(chance)
            self.draws += chance.draws
        self.unlike.setdefault(step, set()).update(unlike(*chances))
        return losses[0], losses[1]

    def _rounding(self, make: Callable[..., torch.optim.Optimizer], steps: int) -> float:
        """By how much the narrow model's own losses differ when its weights are moved in the last digit.

        A batch norm over few values, which come out as ±1 whatever goes in, blows up rounding without bound.
        """
        pair = copied(self.narrow).train(), copied(self.narrow).train()
        draw = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for param in pair[1].parameters():
                if param.requires_grad:
                    param.mul_(1 + 1e-15 * torch.randn(param.shape, generator=draw, dtype=param.dtype))
        first, second = (make([p for p in m.parameters() if p.requires_grad]) for m in pair)
        calls = self.call, self.call
        self.sizes = {}
        return max(_error(self._step(pair, (first, second), calls, step)) for step in range(steps + 1))


def _error(losses: tuple[float, float]) -> float:
    error = abs(losses[0] - losses[1]) / max(1.0, abs(losses[0]))
    return error if math.isfinite(error) else math.inf


def paired_optimizers(
    narrow: nn.Module, wide: nn.Module, plan: Plan, kind: Any, *, lr: float, **values: Any
) -> Optimizers:
    """An optimizer for either model, under which they are to stay in lockstep.

    A gain that is stored as its difference from one decays towards one, and scales without decay only.
    """
    decays = {n: not plan.of_narrow(plan.own_name(n)).offset for n, _ in narrow.named_parameters()}
    groups = [
        {
            "params": [p for name, p in narrow.named_parameters() if decays[name] == decaying],
            "weight_decay": values.get("weight_decay", 0.0) * decaying,
        }
        for decaying in (True, False)
    ]
    decaying = [name for name, _ in wide.named_parameters() if not plan[name].offset]
    return (
        kind([group for group in groups if group["params"]], lr=lr, **values),
        kind(param_groups(wide, plan, kind, lr=lr, decay=decaying, **values)),
    )


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    call: Call,
    loss_of: Callable[[nn.Module, Call], Tensor],
) -> float:
    """One step of an optimizer; the loss before it.

    Raises:
        GrowthError: the model's outputs carry no gradients.
    """
    optimizer.zero_grad()
    loss = loss_of(model, call)
    if not loss.requires_grad:
        raise GrowthError(
            f"{type(model).__name__}: its outputs carry no gradients, so that its training cannot be proved; "
            "take no_grad and detach() out of its forward"
        )
    loss.backward()  # type: ignore[no-untyped-call]
    for param in model.parameters():
        if param.grad is not None and param.grad.is_sparse:  # which AdamW does not take
            param.grad = param.grad.to_dense()
    optimizer.step()
    return loss.item()


def _evaluated(model: nn.Module, call: Call, loss_of: Callable[[nn.Module, Call], Tensor]) -> float:
    with torch.no_grad():
        return loss_of(model.eval(), call).item()


def sized(at: int, output: Tensor, sizes: dict[int, float] | None) -> Tensor:
    """An output over its `size` when it was first seen, the narrow model's: in whatever unit, it counts.

    What is `filled` counts as much as the rest, and nothing where it is infinite.
    """
    output = output.masked_fill(output.isinf(), 0.0)
    if sizes is None:
        return output
    if at not in sizes:
        sizes[at] = size(output) or 1.0
    fill = filled(output.detach())
    if not fill.any():
        return output / sizes[at]
    return torch.where(fill, output / output.detach().abs().max(), output / sizes[at])


def _loss(
    model: nn.Module,
    call: Call,
    sizes: dict[int, float] | None,
    loud: float,
    steady: Sequence[int | None],
) -> Tensor:
    """A mean over each output, which copies leave as it is, with a different pull on every place.

    With losses that modules keep of the call.

    Args:
        steady: of each output, the dim along which the places are, one that does not grow; None of none.
    """
    before = kept_losses(model)
    outputs = result_tensors(call(model))
    loss = sum((kept for kept in kept_losses(model) if not any(kept is t for t in before)), torch.zeros(()))
    for at, output in enumerate(outputs):
        places = sized(at, output, sizes)
        along = steady[at] if len(steady) == len(outputs) else 0
        places = places[..., None] if along is None or not places.ndim else places.movedim(along, -1)
        target = torch.linspace(-1.0, 1.0, places.shape[-1], dtype=output.dtype)
        loss = loss + (places - target).abs().square().mean()
    return loss * loud


def _steady(plan: Plan) -> list[int | None]:
    """Of each output of the model, the first dim that does not grow."""
    dims = [[dim.growth(plan.growth) != 1 for dim in axes.dims] for axes in plan.layout.outputs]
    return [grows.index(False) if False in grows else None for grows in dims]


def natural_loss(model: nn.Module, call: Call, sizes: dict[int, float]) -> Tensor:
    """Next-token loss where the inputs are tokens, else the mean square of the outputs over their sizes."""
    takes = inspect.signature(model.forward).parameters
    if "input_ids" in call.kwargs and "labels" in takes and "labels" not in call.kwargs and _is_causal(model):
        return model(*call.args, **call.kwargs, labels=call.kwargs["input_ids"]).loss  # type: ignore[no-any-return]
    output = call(model)
    loss = getattr(output, "loss", None)
    return (
        loss
        if loss is not None
        else sum(
            (sized(at, t, sizes).abs().square().mean() for at, t in enumerate(result_tensors(output))),
            start=torch.zeros(()),
        )
    )


def _is_causal(model: nn.Module) -> bool:
    if transformers_config(model) is None:
        return False
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    return type(model) in {*MODEL_FOR_CAUSAL_LM_MAPPING.values()}
