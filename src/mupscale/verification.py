"""Equality, proved: at rest, parameter by parameter and module by module, and in lockstep during training.

Two independent checks at rest. *Weights*: summed over the copies of its contracted axes, every wide weight
must be the narrow one for every copy of its outputs; this alone proves that duplicates stay duplicates, for
all inputs. *Outputs*: both models run in float64 on the same inputs, every module's output compared.

Of a directory that `mupscale grow` wrote there is a third: `mupscale.checkpoint.regrowth`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mupscale.errors import GrowthError, said_as
from mupscale.growth import grow
from mupscale.layout.base import DEPTH
from mupscale.models.calls import Call, result_tensors
from mupscale.models.chance import SameChance
from mupscale.models.contents import state_tensors, unwrapped
from mupscale.models.copying import copied, doubled
from mupscale.models.inputs import example_inputs
from mupscale.models.precision import Float64
from mupscale.models.sharding import is_sharded
from mupscale.models.skeletons import transformers_config
from mupscale.models.surroundings import plain_surroundings
from mupscale.operators.catalogue import grown_with, operator_named
from mupscale.operators.filling import check_given
from mupscale.proof.consistency import broken_parameters, held_otherwise
from mupscale.proof.deviations import (
    LayerDeviation,
    deviation,
    grown_call,
    grown_outputs,
    judged,
    layer_deviations,
    rounding,
    size,
    watch,
)
from mupscale.proof.lockstep import natural_loss, paired_optimizers, train_step
from mupscale.theory.manifest import Plan

# Allowed difference of outputs, relative to their standard deviation, by the precision that weights are
# stored in; rounding of the stored weights is all that separates the two models. Where these are of several,
# it is that of the finest, and more where moving each weight in its own last digit explains more.
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 2e-1}
_COARSEST = max(_TOLERANCE.values())

# Allowed difference of losses in lockstep: constants that a model keeps in float32 are rounded on both sides.
LOSS_TOLERANCE = 1e-8


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `verify` found. True in a condition when ``equal``.

    Attributes:
        equal: weights and outputs both passed.
        max_abs_diff: largest absolute difference of the outputs (logits); of several outputs, each judged by
            itself, that of the one furthest beyond what is allowed.
        logits_std: standard deviation of the narrow model's output, to judge the difference by.
        tolerance: the largest difference that counts as equal.
        parameters: how many wide parameters and buffers do not reproduce the narrow one.
        first_deviation: the first module, in the order of execution, whose weights or output deviate.
        detail: one sentence on that module.
        steps: optimizer steps trained side by side.
        max_loss_diff: largest difference of the losses over those steps; None without steps.
        by_weight: whether the weights were checked too, which holds for all inputs; else it is these inputs
            that the outputs agree on.
        layers: of a deeper model, how far its residual stream is from the narrow one's behind every layer.
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
    layers: tuple[LayerDeviation, ...] = ()

    def __bool__(self) -> bool:
        return self.equal

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @property
    def outputs(self) -> str:
        """How far the outputs are apart, in words."""
        return (
            f"outputs differ by at most {self.max_abs_diff:.3g} "
            f"(tolerance {self.tolerance:.3g}, standard deviation of the outputs {self.logits_std:.3g})"
        )

    def __str__(self) -> str:
        lines = [f"{'equal' if self.equal else 'NOT equal'}: {self.outputs}"]
        if self.first_deviation is not None:
            lines.append(f"first module that deviates: {self.first_deviation} — {self.detail}")
        if not self.by_weight and not self.layers:
            lines.append(
                "compared by their outputs alone: the wide weights are no even copies; what is shrunk or "
                "padded, as by default, is not to compute the same"
            )
        if self.max_loss_diff is not None:
            lines.append(
                f"lockstep over {self.steps} AdamW steps: losses differ by at most {self.max_loss_diff:.3g}"
            )
        if self.layers:
            lines.append(self.depth)
        return "\n".join(lines)

    @property
    def depth(self) -> str:
        """How far a deeper model's layers are from the narrow one's, as a table."""
        heads = "after layer  of the narrow   of the deeper   residual streams differ by (RMS, in std)"
        rows = (f"{'':13}{at.layer:<13}{at.deeper_layer:<16}{at.deviation:.3g}" for at in self.layers)
        return "\n".join([heads, *rows])


def verify(
    model: nn.Module,
    wide: nn.Module,
    plan: Plan,
    inputs: Any = None,
    *,
    steps: int = 0,
    operator: str | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> Report:
    """Check that ``wide`` computes what ``model`` computes. Both run as float64 copies in evaluation mode.

    Beside what they compute, ``wide`` has to hold what ``model`` holds: the same tensors tied, in the dtypes
    and on the devices that go together there, and in Python lists and dicts none that is no longer its own.

    Args:
        inputs: what to call the models with: a tensor, a tuple or a dict. Random token ids when None, which
            only transformers models take.
        steps: also train a pure copy of ``model`` (grown by ``plan`` without noise) beside it for so many
            AdamW steps, in float64; the largest difference of the losses must stay below 1e-8.
        operator: what ``wide`` was grown with; needed only where it did not come from `mupscale.grow` and is
            not of even copies. These alone can be proved for all inputs, weight by weight; of the others the
            outputs alone are compared.
        optimizer: the wide model's: it must hold every parameter that is trained once, and no others.

    Raises:
        GrowthError: the models are not the two sides of ``plan``, one does not run on the inputs, or a plain
            module comes without any.

    >>> from torch import nn
    >>> import mupscale
    >>> make = lambda width: nn.Sequential(nn.Linear(8, 16 * width), nn.ReLU(), nn.Linear(16 * width, 4))
    >>> narrow, wide_plan = make(1), mupscale.plan(make, width=2)
    >>> wide = mupscale.grow(narrow, wide_plan, operator="duplicate")
    >>> verify(narrow, wide, wide_plan, torch.randn(4, 8), steps=3).equal
    True
    """
    check_given(plan, model=model, wide=wide)
    if type(steps) is not int or steps < 0:
        raise GrowthError(f"steps: expected a whole number of optimizer steps, 0 or more, found {steps!r}")
    operator = grown_with(wide, operator) or "duplicate"
    with plain_surroundings():
        return _verified(unwrapped(model), unwrapped(wide), plan, inputs, steps, operator, optimizer)


def _verified(
    model: nn.Module,
    wide: nn.Module,
    plan: Plan,
    inputs: Any,
    steps: int,
    operator: str,
    optimizer: torch.optim.Optimizer | None,
) -> Report:
    _check_whole(model, wide)
    call = Call.of(inputs if inputs is not None else _example(model))
    kinds = {p.dtype.to_real() for p in wide.parameters() if p.is_floating_point() or p.is_complex()}
    bounds = [_TOLERANCE.get(kind, _COARSEST) for kind in kinds or {torch.float64}]
    by_weight = operator_named(operator).copies_evenly and plan.keeps_function
    if steps and DEPTH in plan.growth:
        raise GrowthError(
            "a deeper model does not train in lockstep with the narrow one; verify without steps"
        )
    if steps and not by_weight:
        raise GrowthError(f"operator {operator!r}: only even copies train in lockstep; verify without steps")
    broken = broken_parameters(model, wide, plan) if by_weight else {}
    for name, detail in held_otherwise(model, wide, plan, optimizer):
        broken.setdefault(name, detail)
    with Float64(), torch.no_grad():
        narrow64, wide64 = _float64(model), _float64(wide)
        outputs, wide_outputs, first = _side_by_side(
            narrow64, wide64, plan, call, broken, max(bounds), by_module=by_weight
        )
        expected = grown_outputs(outputs, plan) if by_weight else outputs
    _check_alike(expected, wide_outputs)
    if not by_weight and not any(output.numel() for output in outputs):
        raise GrowthError("inputs: the outputs hold no number, so there is nothing to compare; give others")
    if first is None and broken:  # in a module that these inputs do not reach
        first = next(iter(broken.items()))
    layers = list[LayerDeviation]()
    if DEPTH in plan.growth:
        with Float64(), torch.no_grad(), SameChance(0):
            layers = layer_deviations(narrow64, wide64, operator_named(operator).own_plan(plan), call)

    def noise() -> list[float]:
        own = _rounding(copied(narrow64), model, call)
        return [*map(max, own, _rounding(wide64, wide, grown_call(call, plan)))]

    worst = max(
        judged(outputs, expected, wide_outputs, noise, bound=min(bounds), most=max(bounds)),
        key=lambda output: output.excess,
    )
    loss_diff = _train_side_by_side(narrow64, plan, call, steps) if steps else None
    equal = worst.excess <= 1 and not broken and (loss_diff is None or loss_diff <= LOSS_TOLERANCE)
    if equal:
        first = None
    return Report(
        equal=equal,
        max_abs_diff=worst.difference,
        logits_std=worst.spread,
        tolerance=worst.tolerance,
        parameters=len(broken),
        first_deviation=first and first[0],
        detail=first and first[1],
        steps=steps,
        max_loss_diff=loss_diff,
        by_weight=by_weight,
        layers=tuple(layers),
    )


def _check_whole(model: nn.Module, wide: nn.Module) -> None:
    for side, tensors in (("narrow", state_tensors(model)), ("wide", state_tensors(wide))):
        if name := next((n for n, t in tensors.items() if t.is_meta), None):
            raise GrowthError(f"{name}: is on the meta device in the {side} model; load its values first")
        if name := next((n for n, t in tensors.items() if is_sharded(t)), None):
            raise GrowthError(
                f"{name}: is sharded in the {side} model, and verify runs whole ones; give models with "
                "full state dicts, or save both and run `mupscale verify SRC DST`"
            )


def _side_by_side(
    narrow: nn.Module,
    wide: nn.Module,
    plan: Plan,
    call: Call,
    broken: Mapping[str, str],
    bound: float,
    *,
    by_module: bool,
) -> tuple[list[Tensor], list[Tensor], tuple[str, str] | None]:
    """The outputs of both, and the first module that deviates, in the order of execution, with what is wrong.

    Args:
        broken: modules that deviate whatever their outputs.
        bound: how far an output may be from copies.
        by_module: whether the modules' outputs are to be copies at all.
    """
    seen: dict[str, Tensor] = {}
    first: tuple[str, str] | None = None

    def compare(name: str, output: Tensor) -> None:
        nonlocal first
        module = name.partition("#")[0]
        if first is None and module in broken:
            first = module, broken[module]
        if first is None and name in seen:
            error = deviation(seen.pop(name), output, module, plan)
            if error is not None and not error <= bound:
                first = module, f"its output is off by {error:.3g} of its standard deviation"

    with watch(narrow, seen.__setitem__):
        outputs = _run("narrow", narrow, call)
    with watch(wide, compare) if by_module else nullcontext():
        wide_outputs = _run("wide", wide, grown_call(call, plan))
    return outputs, wide_outputs, first


def _check_alike(expected: Sequence[Tensor], found: Sequence[Tensor]) -> None:
    if len(expected) != len(found):
        raise GrowthError(
            f"outputs are {len(expected)} tensors of the narrow model, {len(found)} of the wide one; "
            "build both alike"
        )
    for one, other in zip(expected, found, strict=True):
        if one.shape != other.shape:
            raise GrowthError(
                f"outputs have shape {tuple(one.shape)} and {tuple(other.shape)}; expected the same"
            )


def _run(side: str, model: nn.Module, call: Call) -> list[Tensor]:
    """The results of one call, in which both models draw the same where they draw anything.

    Raises:
        GrowthError: the model does not run, or returns nothing to compare.
    """
    name = f"the {side} model, {type(model).__name__},"
    with said_as(f"{name} does not run on these inputs", "; give others"), SameChance(0):
        outputs = result_tensors(call(model))
    if not outputs:
        raise GrowthError(f"{name} returns no floating-point tensor to compare; let it return its outputs")
    return outputs


def _rounding(moved: nn.Module, stored: nn.Module, call: Call) -> list[float]:
    """What rounding of the stored weights does to each output of a model, of which ``moved`` is a copy."""
    digits = {
        name: torch.finfo(p.dtype).eps
        for name, p in stored.named_parameters()
        if p.is_floating_point() or p.is_complex()
    }
    with Float64():
        return rounding(moved, lambda model: _run("", model, call), lambda name: digits.get(name, 0.0))


def _train_side_by_side(narrow: nn.Module, plan: Plan, call: Call, steps: int) -> float:
    for param in narrow.parameters():  # what is frozen now may be trained later
        param.requires_grad_(param.is_floating_point() or param.is_complex())
    wide = _plain_experts(grow(narrow, plan, operator="duplicate", noise=None))
    optimizers = paired_optimizers(narrow, wide, plan, torch.optim.AdamW, lr=1e-3, weight_decay=0.1)
    calls = call, grown_call(call, plan)
    worst = 0.0
    with Float64():
        loss = partial(natural_loss, sizes=_sizes(narrow, call))
        for step in range(steps):
            losses = []
            for model, optimizer, own in zip((narrow, wide), optimizers, calls, strict=True):
                with SameChance(step):
                    losses.append(train_step(model, optimizer, own, loss))
            worst = max(worst, abs(losses[0] - losses[1]))
    return worst


def _sizes(narrow: nn.Module, call: Call) -> dict[int, float]:
    """By which the outputs are divided in the loss; not those that are mere rounding."""
    with torch.no_grad():
        sizes = [*map(size, _run("narrow", narrow, call))]
        if min(sizes) < 1e-6:
            noise = _rounding(copied(narrow), narrow, call)
            sizes = [own if own > 1e4 * n else 1.0 for own, n in zip(sizes, noise, strict=True)]
    return dict(enumerate(sizes))


def _example(model: nn.Module) -> dict[str, Any]:
    if transformers_config(model) is None:
        raise GrowthError("verify: a plain module needs inputs=x, what to call it with")
    device = next(model.parameters()).device
    return {
        k: v.to(device) if isinstance(v, Tensor) else v for k, v in example_inputs(model, length=16).items()
    }


def _float64(model: nn.Module) -> nn.Module:
    return _plain_experts(doubled(copied(model)).train().eval())  # the first drops what is kept of weights


def _plain_experts(model: nn.Module) -> nn.Module:
    """The same model, its experts called one by one: the fused kernels know no float64."""
    if (config := transformers_config(model)) is not None:
        config._experts_implementation = "eager"
    return model
