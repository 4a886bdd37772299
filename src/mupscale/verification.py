"""Equality, proved: at rest, parameter by parameter and module by module, and in lockstep during training.

Two independent checks at rest. *Weights*: summed over the copies of its contracted axes, every wide weight
must be the narrow one for every copy of its outputs; this alone proves that duplicates stay duplicates, for
all inputs. *Outputs*: both models run in float64 on the same inputs, every module's output compared.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mupscale.axes import Axes, Dim, contract_copies, duplicate
from mupscale.errors import GrowthError
from mupscale.growth import grow
from mupscale.operators import operator_named
from mupscale.optim import param_groups
from mupscale.planning import Plan
from mupscale.precision import Float64

# Allowed difference of outputs, relative to their standard deviation, by the precision that weights are
# stored in; rounding of the stored weights is all that separates the two models.
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 2e-1}


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `verify` found. True in a condition when ``equal``.

    Attributes:
        equal: weights and outputs both passed.
        max_abs_diff: largest absolute difference of the outputs (logits).
        logits_std: standard deviation of the narrow model's outputs, to judge the difference by.
        tolerance: the largest difference that counts as equal.
        parameters: how many wide parameters and buffers do not reproduce the narrow one.
        first_deviation: the first module, in the order of execution, whose weights or output deviate.
        detail: one sentence on that module.
        steps: optimizer steps trained side by side.
        max_loss_diff: largest difference of the losses over those steps; None without steps.
        by_weight: whether the weights were checked too, which holds for all inputs; else it is these inputs
            that the outputs agree on.
    """

    equal: bool
    max_abs_diff: float
    logits_std: float
    tolerance: float
    parameters: int = 0
    first_deviation: str | None = None
    detail: str | None = None
    steps: int = 0
    max_loss_diff: float | None = None
    by_weight: bool = True

    def __bool__(self) -> bool:
        return self.equal

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        head = (
            f"{'equal' if self.equal else 'NOT equal'}: outputs differ by at most {self.max_abs_diff:.3g} "
            f"(tolerance {self.tolerance:.3g}, standard deviation of the outputs {self.logits_std:.3g})"
        )
        lines = [head]
        if self.first_deviation is not None:
            lines.append(f"first module that deviates: {self.first_deviation} — {self.detail}")
        if not self.by_weight:
            lines.append("compared by their outputs alone: the wide weights are not even copies")
        if self.max_loss_diff is not None:
            lines.append(
                f"lockstep over {self.steps} AdamW steps: losses differ by at most {self.max_loss_diff:.3g}"
            )
        return "\n".join(lines)


def verify(
    model: nn.Module,
    wide: nn.Module,
    plan: Plan,
    inputs: Any = None,
    *,
    steps: int = 0,
    operator: str = "duplicate",
) -> Report:
    """Check that ``wide`` computes what ``model`` computes. Both run as float64 copies in evaluation mode.

    Args:
        inputs: what to call the models with: a tensor, a tuple or a dict. Random token ids when None, which
            only transformers models take.
        steps: also train a pure copy of ``model`` (grown by ``plan`` without noise) beside it for so many
            AdamW steps, in float64; the largest difference of the losses must stay below 1e-9.
        operator: what ``wide`` was grown with. Only even copies can be proved for all inputs, weight by
            weight; of the others the outputs alone are compared.

    Raises:
        GrowthError: the models are not the two sides of ``plan``, or a plain module comes without inputs.

    >>> from torch import nn
    >>> import mupscale
    >>> make = lambda width: nn.Sequential(nn.Linear(8, 16 * width), nn.ReLU(), nn.Linear(16 * width, 4))
    >>> narrow, wide_plan = make(1), mupscale.plan(make, width=2)
    >>> verify(narrow, mupscale.grow(narrow, wide_plan), wide_plan, torch.randn(4, 8), steps=3).equal
    True
    """
    call = _as_call(inputs if inputs is not None else _random_tokens(model))
    dtype = next(wide.parameters()).dtype
    by_weight = operator_named(operator).copies_evenly and not plan.inexact
    if steps and not by_weight:
        raise GrowthError(f"operator {operator!r}: only even copies train in lockstep; verify without steps")
    broken = _broken_parameters(model, wide, plan) if by_weight else {}
    with Float64(), torch.no_grad():
        narrow64, wide64 = _float64(model), _float64(wide)
        narrow_outputs: dict[str, Tensor] = {}
        first: tuple[str, str] | None = None

        def compare(name: str, wide_output: Tensor) -> None:
            nonlocal first
            if first is None and (detail := broken.get(name.partition("#")[0])):
                first = name, detail
            if first is None and name in narrow_outputs:
                error = _deviation(narrow_outputs.pop(name), wide_output, name.partition("#")[0], plan)
                if error is not None and not error <= _TOLERANCE[dtype]:
                    first = name, f"its output is off by {error:.3g} of its standard deviation"

        with _watch(narrow64, narrow_outputs.__setitem__):
            logits = _logits(call(narrow64))
        with _watch(wide64, compare if by_weight else lambda name, output: None):
            wide_logits = _logits(call(wide64))
    if logits.shape != wide_logits.shape:
        raise GrowthError(
            f"outputs have shape {tuple(logits.shape)} and {tuple(wide_logits.shape)}; expected the same"
        )
    if first is None and broken:  # in a module that these inputs do not reach
        first = next(iter(broken.items()))
    std = logits.std().item()
    difference = (logits - wide_logits).abs().max().item()
    tolerance = _TOLERANCE[dtype] * max(1.0, std)
    loss_diff = _train_side_by_side(narrow64, plan, call, steps) if steps else None
    equal = difference <= tolerance and not broken and (loss_diff is None or loss_diff <= 1e-9)
    if equal:
        first = None
    return Report(
        equal=equal,
        max_abs_diff=difference,
        logits_std=std,
        tolerance=tolerance,
        parameters=len(broken),
        first_deviation=first and first[0].partition("#")[0],
        detail=first and first[1],
        steps=steps,
        max_loss_diff=loss_diff,
        by_weight=by_weight,
    )


def _broken_parameters(model: nn.Module, wide: nn.Module, plan: Plan) -> dict[str, str]:
    """Modules whose weights do not reproduce the narrow one's, each with what is wrong."""
    broken: dict[str, str] = {}
    wide_state = {**dict(wide.named_parameters()), **dict(wide.named_buffers())}
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name in (*plan.layout.params, *plan.layout.buffers):
        if name not in state or name not in wide_state:
            raise GrowthError(
                f"{name}: in the plan, but not in the {'wide' if name in state else 'narrow'} model"
            )
        theta, grown = state[name].detach(), wide_state[name].detach()
        for tensor, shape in (
            (theta, plan[name].axes.shape(plan.layout.sizes)),
            (grown, plan.wide_shape(name)),
        ):
            if tuple(tensor.shape) != shape:
                raise GrowthError(f"{name}: the plan gives shape {shape}, found {tuple(tensor.shape)}")
        if not theta.is_floating_point():
            continue
        scaling = plan[name]
        copies = scaling.axes.expand_copies(plan.layout.sizes, plan.growth)
        exact = grown.double()
        summed = contract_copies(exact, copies)
        kept = [1 if i in {*copies.summed, *copies.kept} else n for i, n in enumerate(copies.shape)]
        expected = theta.double().to(exact.device).reshape(kept) * scaling.fold
        # Each of the summed copies is rounded where it is stored, and by the few operations that made it.
        slack = 4 * torch.finfo(grown.dtype).eps * float(scaling.fan_in) * exact.abs().max()
        wrong = ((summed - expected).abs() > slack) | ~summed.isfinite()
        if wrong.any():
            worst = (summed - expected).abs().max().item()
            owner, _, leaf = name.rpartition(".")
            broken.setdefault(
                owner,
                f"{leaf}: {int(wrong.sum())} of {wrong.numel()} sums over copies miss the narrow value, "
                f"by up to {worst:.3g}",
            )
    return broken


def _deviation(narrow: Tensor, wide: Tensor, module: str, plan: Plan) -> float | None:
    """How far ``wide`` is from duplicates of ``narrow``, in standard deviations; None where unknown."""
    changed = [i for i, (n, w) in enumerate(zip(narrow.shape, wide.shape, strict=True)) if n != w]
    expected = narrow
    if changed:
        weights = [plan[n].axes for n in plan.layout.params if n.rpartition(".")[0] == module]
        dims = [d for axes in weights for d in axes.dims if not d.contracted and d.growth(plan.growth) != 1]
        fits = [d for d in dims if d.size(plan.layout.sizes) == narrow.shape[changed[0]]]
        if len(changed) > 1 or not fits:
            return None
        axes = Axes(tuple(fits[0] if i in changed else Dim((n,)) for i, n in enumerate(narrow.shape)))
        expected = duplicate(narrow, axes, plan.layout.sizes, plan.growth)
        if expected.shape != wide.shape:
            return None
    # A fold may scale what lies between the parameters that share it.
    folds = {1.0, *(plan[name].fold for name in plan.layout.folds)}
    return min(
        (wide - fold * expected).abs().max().item() / (fold * expected.std().item() + 1e-30) for fold in folds
    )


@contextmanager
def _watch(model: nn.Module, see: Any) -> Iterator[None]:
    """Call ``see(name, output)`` for every module that owns parameters, in the order of execution."""
    calls: dict[str, int] = {}

    def hook(name: str) -> Any:
        def after(_module: nn.Module, _args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.is_floating_point():
                calls[name] = calls.get(name, 0) + 1
                see(f"{name}#{calls[name]}", output.detach())

        return after

    handles = [
        module.register_forward_hook(hook(name))
        for name, module in model.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _train_side_by_side(narrow: nn.Module, plan: Plan, call: Any, steps: int) -> float:
    wide = grow(narrow, plan, noise=None)
    lr, weight_decay = 1e-3, 0.1
    optimizers = (
        torch.optim.AdamW(narrow.parameters(), lr=lr, weight_decay=weight_decay),
        torch.optim.AdamW(param_groups(wide, plan, torch.optim.AdamW, lr=lr, weight_decay=weight_decay)),
    )
    worst = 0.0
    with Float64():
        for _ in range(steps):
            losses = []
            for model, optimizer in zip((narrow, wide), optimizers, strict=True):
                optimizer.zero_grad()
                loss = call.loss(model)
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            worst = max(worst, abs(losses[0] - losses[1]))
    return worst


@dataclass(frozen=True)
class _Call:
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def __call__(self, model: nn.Module) -> Any:
        return model(*self.args, **self.kwargs)

    def loss(self, model: nn.Module) -> Tensor:
        """Next-token loss where the inputs are tokens, else the mean square of the outputs."""
        if "input_ids" in self.kwargs and "labels" not in self.kwargs:
            return model(*self.args, **self.kwargs, labels=self.kwargs["input_ids"]).loss  # type: ignore[no-any-return]
        output = self(model)
        loss = getattr(output, "loss", None)
        return loss if loss is not None else _logits(output).square().mean()


def _as_call(inputs: Any) -> _Call:
    def double(value: Any) -> Any:
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    if isinstance(inputs, Mapping):
        return _Call((), {k: double(v) for k, v in inputs.items()})
    return _Call(tuple(map(double, inputs if isinstance(inputs, tuple) else (inputs,))), {})


def _random_tokens(model: nn.Module) -> dict[str, Tensor]:
    vocab = getattr(getattr(model, "config", None), "vocab_size", None)
    if vocab is None:
        raise GrowthError("verify: a plain module needs inputs=..., what to call it with")
    ids = torch.randint(vocab, (2, 16), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids.to(next(model.parameters()).device)}


def _logits(output: Any) -> Tensor:
    for value in (getattr(output, "logits", None), output):
        if isinstance(value, Tensor):
            return value
    values = output.values() if isinstance(output, Mapping) else output
    return next(v for v in values if isinstance(v, Tensor))


def _float64(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).double().eval()
