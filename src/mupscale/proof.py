"""Nothing is trusted before it is proved: a tiny model of the family, grown in float64, has to agree.

A layout that inference found is a claim. The proof takes a tiny random model of the same config class and
flags, grows it through the same code as any other, and compares: outputs to 1e-10, and the losses of some
steps of AdamW and of SGD in training mode. What holds for it holds for every model of the family, whose code
is the same.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from mupscale.calls import Call, result_tensors
from mupscale.deviations import deviation, grown_outputs, spread, watch
from mupscale.errors import GrowthError, one_line
from mupscale.grower import Grower
from mupscale.layout import example_inputs, explicit, part_of, remembered, tiny
from mupscale.layout.inference.instance import float64, instance, randomize_
from mupscale.layout.models import quiet
from mupscale.optim import param_groups
from mupscale.planning import Plan
from mupscale.precision import Float64, doubled

TOLERANCE = 1e-10
LOSS_TOLERANCE = 1e-9
STEPS = 5


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What the tiny model showed.

    Attributes:
        difference: largest difference of the outputs, relative to their standard deviation where that is
            above 1.
        loss_difference: largest difference of the losses over the steps of both optimizers.
        nonlinear: weights of the tiny model that get no noise: terms that sum to zero over copies change the
            outputs.
        failure: what is wrong; None where the growth is proved.
    """

    difference: float
    loss_difference: float
    nonlinear: Sequence[str] = ()
    failure: str | None = None


def prove(
    config: PreTrainedConfig,
    growth: Mapping[str, Any],
    plan: Callable[[PreTrainedConfig], Plan],
    *,
    operator: str = "duplicate",
) -> Proof:
    """Prove that a growth is exact for the models of a config class and flags, or remember that it was.

    Args:
        config: of any size.
        growth: the factor of every axis.
        plan: makes the plan of the same growth for another config of the family.
        operator: what grows it; one that adds layers is looked at before training only.

    Raises:
        GrowthError: it is not exact, or cannot be tried.
    """
    small = _still(explicit(tiny(config)))
    made = plan(small)
    found = remembered(
        "proof",
        [operator, json.loads(small.to_json_string()), made.to_dict()["growth"], made.layout.to_dict()],
        lambda: vars(_tried(small, made, operator)),
    )
    proof = Proof(**found)
    if proof.failure is not None:
        wish = ", ".join(f"{axis} by {factor}" for axis, factor in growth.items())
        wish += f" with {operator}" * (operator != "duplicate")
        raise GrowthError(
            f"{config.model_type}: growing {wish} is not exact, so that nothing is grown: {proof.failure}"
        )
    return proof


def prove_modules(narrow: nn.Module, wide: nn.Module, plan: Plan, inputs: object) -> Proof:
    """Prove that a growth is exact for a plain module, on copies of it with random weights.

    Raises:
        GrowthError: it is not.
    """
    models = [doubled(copy.deepcopy(model)).cpu().eval() for model in (narrow, wide)]
    for model in models:
        for module in model.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.p = 0.0
    proof = tried(models[0], models[1], plan, Call.of(inputs))
    if proof.failure is not None:
        raise GrowthError(
            f"{type(narrow).__name__}: growing it is not exact, so that nothing is grown: {proof.failure}"
        )
    return proof


def _still(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config without anything random in training that goes by width: dropout and its kind."""
    config = copy.deepcopy(config)
    parts = [
        config,
        *(getattr(config, name) for name in config.sub_configs if getattr(config, name, None) is not None),
    ]
    for part in parts:
        for key, value in part.to_dict().items():
            if isinstance(value, float) and re.search("drop|jitter|noise|mask_feature.*prob", key):
                setattr(part, key, 0.0)
    return config


def _tried(small: PreTrainedConfig, plan: Plan, operator: str) -> Proof:
    assert plan.config is not None
    try:
        narrow, wide = instance(small), instance(plan.config)
    except Exception as error:  # whatever the model's own code raises
        raise GrowthError(f"{small.model_type}: no tiny wide model can be made: {one_line(error)}") from error
    return tried(narrow, wide, plan, Call.of(example_inputs(narrow, seed=1)), operator)


def tried(narrow: nn.Module, wide: nn.Module, plan: Plan, call: Call, operator: str = "duplicate") -> Proof:
    """Randomize ``narrow``, grow it into ``wide``, and compare. Both in float64, changed in place.

    Raises:
        GrowthError: one of them does not run.
    """
    fan_in = {
        name: math.prod(n for n, d in zip(p.shape, p.axes.dims, strict=True) if d.contracted)
        for name, p in plan.params.items()
        if any(d.contracted for d in p.axes.dims)
    }
    randomize_(narrow, fan_in)
    _grow(narrow, wide, plan, operator)
    loss_difference, nonlinear = 0.0, list[str]()
    try:
        with float64(), quiet(), Float64():
            difference, failure = _at_rest(narrow, wide, plan, call)
            if failure is None and operator == "duplicate":
                loss_difference, failure = _in_lockstep(narrow, wide, plan, call)
            if failure is None and operator == "duplicate":
                nonlinear = _under_noise(narrow, wide, plan, call)
    except Exception as error:  # whatever the model's own code raises
        raise GrowthError(f"{type(narrow).__name__}: it does not run: {one_line(error)}") from error
    return Proof(difference=difference, loss_difference=loss_difference, nonlinear=nonlinear, failure=failure)


def _grow(
    narrow: nn.Module, wide: nn.Module, plan: Plan, operator: str = "duplicate", noisy: Iterable[str] = ()
) -> None:
    """Fill ``wide`` from ``narrow``, with noise in some of its weights, which sums to zero."""
    state = {**dict(narrow.named_parameters()), **dict(narrow.named_buffers())}
    wide_state = {**dict(wide.named_parameters()), **dict(wide.named_buffers())}
    pure = Grower(plan, lambda name: state[name].detach(), operator=operator, noise=None)
    noise = Grower(plan, lambda name: state[name].detach(), noise="balanced:1") if noisy else pure
    with torch.no_grad():
        for name in plan.wide_names:
            wide_state[name].copy_((noise if name in noisy else pure)(name))


def _at_rest(narrow: nn.Module, wide: nn.Module, plan: Plan, call: Call) -> tuple[float, str | None]:
    seen: dict[str, Tensor] = {}
    first: list[str] = []

    def compare(name: str, output: Tensor) -> None:
        if not first and name in seen and seen[name].ndim == output.ndim:
            error = deviation(seen.pop(name), output, name.partition("#")[0], plan)
            if error is not None and not error <= TOLERANCE:
                first.append(
                    f"the output of {name.partition('#')[0]} is the first that is no duplicate, "
                    f"off by {error:.3g} of its standard deviation"
                )

    with torch.no_grad():
        with watch(narrow, seen.__setitem__):
            outputs = result_tensors(call(narrow))
        with watch(wide, compare):
            wide_outputs = result_tensors(call(wide))
    worst = 0.0
    for output, grown, expected in zip(outputs, wide_outputs, grown_outputs(outputs, plan), strict=True):
        if expected.shape != grown.shape:
            return math.inf, f"an output of shape {tuple(output.shape)} becomes {tuple(grown.shape)}"
        error = (expected - grown).abs().max().item() / max(1.0, spread(output))
        worst = max(worst, error) if math.isfinite(error) else math.inf
    if worst <= TOLERANCE:
        return worst, None
    return worst, f"outputs differ by {worst:.3g}; " + (
        first[0] if first else "every module's own output agrees"
    )


def _under_noise(narrow: nn.Module, wide: nn.Module, plan: Plan, call: Call) -> list[str]:
    """The weights that are left out of balanced noise, so that it does not change the outputs.

    Those in which it does so by itself, as they are normalized; and of those that meet each other, as a
    learned query meets the weight that projects it, so that their terms do not cancel together, the smaller.
    """

    def keeps(noisy: list[str]) -> bool:
        _grow(narrow, wide, plan, noisy=noisy)
        return _at_rest(narrow, wide, plan, call)[1] is None

    parts: dict[str, list[str]] = {}
    for name, p in plan.params.items():
        if p.has_noise and p.fan_in != 1:
            parts.setdefault(part_of(name), []).append(name)
    every = [name for names in parts.values() for name in names]
    if keeps(every):
        return []
    linear = [names for names in parts.values() if keeps(names)]
    noisy = [name for names in linear for name in names]
    if not keeps(noisy):
        noisy = []
        for names in sorted(linear, key=lambda names: -sum(narrow.get_parameter(n).numel() for n in names)):
            noisy += names if keeps([*noisy, *names]) else []
    return [name for name in every if name not in noisy]


def _in_lockstep(narrow: nn.Module, wide: nn.Module, plan: Plan, call: Call) -> tuple[float, str | None]:
    worst = 0.0
    for kind, values in _OPTIMIZERS:
        models = copy.deepcopy(narrow).train(), copy.deepcopy(wide).train()
        optimizers = paired_optimizers(*models, plan, kind, **values)
        for step in range(STEPS):
            losses = []
            for model, optimizer in zip(models, optimizers, strict=True):
                with _drawing_from(step):  # both models alike
                    losses.append(_step(model, optimizer, call))
            error = abs(losses[0] - losses[1]) / max(1.0, abs(losses[0]))
            worst = max(worst, error) if math.isfinite(error) else math.inf
            if worst > LOSS_TOLERANCE:
                return worst, (
                    f"outputs agree, but after {step} steps of {kind.__name__} "
                    f"the losses differ by {worst:.3g}"
                )
    return worst, None


_OPTIMIZERS: tuple[tuple[Any, dict[str, Any]], ...] = (
    (torch.optim.AdamW, {"lr": 1e-3, "weight_decay": 0.1}),
    (torch.optim.SGD, {"lr": 1e-3, "momentum": 0.9}),
)


def paired_optimizers(
    narrow: nn.Module, wide: nn.Module, plan: Plan, kind: Any, *, lr: float, **values: Any
) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """An optimizer for either model, under which they are to stay in lockstep.

    A gain that is stored as its difference from one decays towards one, and scales without decay only.
    """
    decays = {name: not plan[name].offset for name, _ in narrow.named_parameters()}
    groups = [
        {
            "params": [p for name, p in narrow.named_parameters() if decays[name] == decaying],
            "weight_decay": values.get("weight_decay", 0.0) * decaying,
        }
        for decaying in (True, False)
    ]
    decaying = [name for name, decay in decays.items() if decay]
    return (
        kind([group for group in groups if group["params"]], lr=lr, **values),
        kind(param_groups(wide, plan, kind, lr=lr, decay=decaying, **values)),
    )


@contextmanager
def _drawing_from(seed: int) -> Iterator[None]:
    """What a model draws in training, and is not of a width: positions rescaled, frames of speech masked."""
    before = np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(before)


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, call: Call) -> float:
    optimizer.zero_grad()
    loss = sum(_losses(result_tensors(call(model))), start=torch.zeros(()))
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.item()


def _losses(outputs: list[Tensor]) -> Iterator[Tensor]:
    """A mean over each output, which copies leave as it is, with a different pull on every place."""
    for output in outputs:
        places = output if output.ndim else output[None]
        target = torch.linspace(-1.0, 1.0, len(places), dtype=output.dtype)
        yield (places - target.reshape(-1, *[1] * (places.ndim - 1))).square().mean()
