"""Nothing is trusted before it is proved: a tiny model of the family, grown in float64, has to agree.

A layout that inference found is a claim. The proof takes a tiny random model of the same config class and
flags, grows it through the same code as any other, and compares: outputs to 1e-10, and the losses of some
steps of AdamW and of SGD in training mode. What holds for it holds for every model of the family, whose code
is the same.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mupscale.errors import GrowthError, said_as
from mupscale.layout.cache import remembered
from mupscale.layout.inference.family import part_of
from mupscale.layout.inference.fields import explicit
from mupscale.layout.inference.instance import instance, move_buffers_, randomize_
from mupscale.layout.tiny_config import tiny
from mupscale.models.calls import Call, result_tensors
from mupscale.models.chance import SameChance, unlike
from mupscale.models.contents import state_tensors
from mupscale.models.copying import copied, doubled
from mupscale.models.inputs import example_inputs
from mupscale.models.precision import Float64, float64
from mupscale.models.skeletons import PreTrainedConfig, is_stock, parts_of, quiet
from mupscale.operators.any_tensor import Grower
from mupscale.operators.catalogue import operator_named
from mupscale.operators.expand import with_smaller_eps
from mupscale.operators.filling import fill_
from mupscale.proof.deviations import apart, deviation, grown_call, grown_outputs, judged, rounding, watch
from mupscale.proof.lockstep import in_lockstep
from mupscale.theory.manifest import Plan

TOLERANCE = 1e-10
_BLOWN_UP = 1e-6  # what rounding may explain in training: a batch norm over few values blows it up
_OTHERS = "; choose other axes or factors, of those that mupscale doctor SRC lists"
_CHANGE = "; change that part of the module, or keep its width"
_ANOTHER = "; choose another operator"
_RUN = "; give inputs on which it does, plan(..., inputs=x)"
_EXPANDS = (
    "; expand knows layer norms and RMS norms over d_model, where all have the config's one eps; "
    "with others grow d_ff and heads alone (axes, --axes), or choose the operator duplicate"
)


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What the tiny model showed.

    Attributes:
        nonlinear: weights of the tiny model that get no noise: terms that sum to zero over copies change the
            outputs.
        failure: what is wrong; None where the growth is proved.
    """

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
    small = still(explicit(tiny(config)))
    made = plan(small)
    if operator_named(operator).expands:
        made = with_smaller_eps(made)
    found = remembered(
        "proof",
        [operator, json.loads(small.to_json_string()), made.to_dict()["growth"], made.layout.to_dict()],
        lambda: vars(_tried(small, made, operator)),
        keep=is_stock(small),
    )
    proof = Proof(**found)
    if proof.failure is not None:
        wish = ", ".join(f"{axis} by {factor}" for axis, factor in growth.items())
        wish += f" with {operator}" * (operator != "duplicate")
        raise GrowthError(
            f"{config.model_type}: growing {wish} is not exact, so that nothing is grown: "
            f"{proof.failure}{_mend(operator, _OTHERS)}"
        )
    return proof


def prove_modules(
    build_narrow: Callable[[], nn.Module],
    build_wide: Callable[[], nn.Module],
    plan: Plan,
    calls: Sequence[Call],
    operator: str = "duplicate",
) -> Proof:
    """Prove that a growth is exact for a plain module, on instances of it with random weights.

    What is frozen is trained, too: it may be later.

    Args:
        calls: inputs to compare outputs on; the last are trained on.
        operator: what grows it; of others than duplicate the outputs alone are looked at.

    Raises:
        GrowthError: it is not exact, or one of them does not run.
    """
    with float64(), Float64():
        narrow, wide = (doubled(build().cpu()).eval() for build in (build_narrow, build_wide))
    for model in (narrow, wide):
        for param in model.parameters():
            param.requires_grad_(param.is_floating_point() or param.is_complex())
    proof = tried(narrow, wide, plan, calls, operator)
    if proof.failure is not None:
        how = f" with {operator}" * (operator != "duplicate")
        raise GrowthError(
            f"{type(narrow).__name__}: growing it{how} is not exact, so that nothing is grown: "
            f"{proof.failure}{_mend(operator, _CHANGE)}"
        )
    return proof


def _mend(operator: str, of_copies: str) -> str:
    return _EXPANDS if operator == "expand" else of_copies if operator == "duplicate" else _ANOTHER


def still(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config without anything random in training that goes by width: dropout and its kind."""
    config = copy.deepcopy(config)
    for part in parts_of(config):
        for key, value in part.to_dict().items():
            if isinstance(value, float) and re.search("drop|jitter|noise|mask_feature.*prob", key):
                setattr(part, key, 0.0)
    return config


def _tried(small: PreTrainedConfig, plan: Plan, operator: str) -> Proof:
    assert plan.config is not None
    with said_as(f"{small.model_type}: no tiny wide model can be made", _OTHERS):
        narrow, wide = instance(small), instance(plan.config)
    return tried(narrow, wide, plan, [Call.of(example_inputs(narrow, seed=1))], operator)


def tried(
    narrow: nn.Module, wide: nn.Module, plan: Plan, calls: Sequence[Call], operator: str = "duplicate"
) -> Proof:
    """Randomize ``narrow``, grow it into ``wide``, and compare. Both in float64, changed in place.

    Raises:
        GrowthError: one of them does not run.
    """
    randomize_(narrow, {name: p.axes for name, p in plan.params.items()}, buffers=False)
    _grow(narrow, wide, plan, operator)
    with said_as(f"{type(narrow).__name__}: it does not run", _RUN), float64(), quiet(), Float64():
        proof = _compared(narrow, wide, plan, calls, operator, train=operator == "duplicate")
        made = copied(narrow)
        # As made, flags and masks are what the code asks for; moved, statistics are no mere zeros and ones.
        if proof.failure is None and move_buffers_(narrow):
            _grow(narrow, wide, plan, operator)
            train = operator == "duplicate" and not _trains_alike(made, narrow, calls[-1])
            moved = _compared(narrow, wide, plan, calls, operator, train=train)
            found = dict.fromkeys([*proof.nonlinear, *moved.nonlinear])
            proof = Proof(nonlinear=[*found], failure=moved.failure)
    return proof


def _compared(
    narrow: nn.Module, wide: nn.Module, plan: Plan, calls: Sequence[Call], operator: str, *, train: bool
) -> Proof:
    """What the two show, of which one is grown from the other."""
    nonlinear: list[str] = []
    failure = _at_rest(narrow, wide, plan, calls, by_module=operator_named(operator).copies_evenly)
    if failure is None and train:
        failure = in_lockstep(narrow, wide, plan, calls[-1])
    if failure is None:
        failure = _in_training(narrow, wide, plan, calls[-1])
    if failure is None and operator == "duplicate":
        known = [name for name, p in plan.params.items() if not p.linear]
        nonlinear = known + _under_noise(narrow, wide, plan, calls)
    return Proof(nonlinear=nonlinear, failure=failure)


def _trains_alike(one: nn.Module, other: nn.Module, call: Call) -> bool:
    """Whether two models that hold other buffers give the same in training, where a batch norm reads none."""

    def run(model: nn.Module) -> list[Tensor]:
        with torch.no_grad(), SameChance(0):
            return result_tensors(call(copied(model).train()))

    return all(map(torch.equal, run(one), run(other)))


def _grow(
    narrow: nn.Module, wide: nn.Module, plan: Plan, operator: str = "duplicate", noisy: Iterable[str] = ()
) -> None:
    """Fill ``wide`` from ``narrow`` as `grow` does, with noise in some of its weights, which sums to zero."""
    state = state_tensors(narrow)
    # What is new is to go unseen whatever it is; without noise it would be nothing.
    kept = "default" if operator_named(operator).expands else None
    grower = partial(Grower, plan, lambda name: state[name].detach())
    pure = grower(operator=operator, noise=kept)
    noise = grower(operator="duplicate", noise="balanced:1") if noisy else pure
    with torch.no_grad():
        fill_(wide, narrow, plan, lambda name: (noise if name in noisy else pure)(name))
    for model in (narrow, wide):
        model.train().eval()  # drops what some keep of their weights between calls in evaluation mode


def _at_rest(
    narrow: nn.Module, wide: nn.Module, plan: Plan, calls: Sequence[Call], *, by_module: bool = True
) -> str | None:
    """What is wrong with the first outputs that differ; with modules that make copies, which does not."""
    found = (_outputs(narrow, wide, plan, call, _chances(), by_module) for call in calls)
    return next((failure for failure in found if failure is not None), None)


def _in_training(narrow: nn.Module, wide: nn.Module, plan: Plan, call: Call) -> str | None:
    """What is wrong with the outputs in training mode; what cannot be drawn alike in both stands still."""
    narrow, wide = copied(narrow).train(), copied(wide).train()
    chances = _chances()
    failure = _outputs(copied(narrow), copied(wide), plan, call, chances, by_module=False)
    if failure is not None and (still := unlike(*chances)):
        failure = _outputs(narrow, wide, plan, call, _chances(still), by_module=False)
    return failure and f"in training mode {failure}"


def _chances(still: Collection[int] = ()) -> tuple[SameChance, SameChance]:
    return SameChance(0, still=still), SameChance(0, still=still)


def _outputs(
    narrow: nn.Module,
    wide: nn.Module,
    plan: Plan,
    call: Call,
    chances: tuple[SameChance, SameChance],
    by_module: bool,
) -> str | None:
    seen: dict[str, Tensor] = {}
    first: list[str] = []

    def compare(name: str, output: Tensor) -> None:
        if not first and name in seen:
            error = deviation(seen.pop(name), output, name.partition("#")[0], plan)
            if error is not None and not error <= TOLERANCE:
                first.append(
                    f"the first module whose output is no copy is {name.partition('#')[0]}, "
                    f"off by {error:.3g} of its standard deviation"
                )

    with torch.no_grad():
        with watch(narrow, seen.__setitem__), chances[0]:
            outputs = result_tensors(call(narrow))
        with watch(wide, compare if by_module else lambda name, output: None), chances[1]:
            wide_outputs = result_tensors(grown_call(call, plan)(wide))
    if not outputs:
        raise GrowthError(
            f"{type(narrow).__name__}: returns no floating-point tensor to compare; let it return its outputs"
        )
    expected_outputs = grown_outputs(outputs, plan)
    for output, grown, expected in zip(outputs, wide_outputs, expected_outputs, strict=True):
        if expected.shape != grown.shape:
            return f"an output of shape {tuple(output.shape)} becomes {tuple(grown.shape)}"
        if not expected.numel():
            raise GrowthError(
                f"{type(narrow).__name__}: returns empty outputs on these inputs; give inputs with entries"
            )
    for own, other in zip(chances[0].odds, chances[1].odds, strict=False):
        if own.shape == other.shape and not apart(own, other) <= _BLOWN_UP:
            return f"what it draws at random goes by its width: odds differ by {apart(own, other):.3g}"
    found = judged(
        outputs,
        expected_outputs,
        wide_outputs,
        lambda: _rounding(narrow, wide, plan, call, chances[0].still),
        bound=TOLERANCE,
        most=_BLOWN_UP if narrow.training else None,
    )
    worst = TOLERANCE * max(output.excess for output in found)
    if worst <= TOLERANCE:
        return None
    said = f"outputs differ by {worst:.3g}"
    if by_module:
        said += f"; {first[0]}" if first else "; every module's own output agrees"
    return said


def _rounding(
    narrow: nn.Module, wide: nn.Module, plan: Plan, call: Call, still: Collection[int]
) -> list[float]:
    """What rounding does to each output, of either model, in the mode that it is in."""
    training = narrow.training

    def run(call: Call, model: nn.Module) -> list[Tensor]:
        with SameChance(0, still=still):
            return result_tensors(call(copied(model).train() if training else model))

    own = rounding(copied(narrow), partial(run, call))
    return [*map(max, own, rounding(copied(wide), partial(run, grown_call(call, plan))))]


def _under_noise(narrow: nn.Module, wide: nn.Module, plan: Plan, calls: Sequence[Call]) -> list[str]:
    """The weights that are left out of balanced noise, so that it does not change the outputs.

    Those in which it does so by itself, as they are normalized; and of those that meet each other, as a
    learned query meets the weight that projects it, so that their terms do not cancel together, the smaller.
    """

    def keeps(noisy: list[str]) -> bool:
        _grow(narrow, wide, plan, noisy=noisy)
        failure = _at_rest(narrow, wide, plan, calls) or _in_training(narrow, wide, plan, calls[-1])
        return failure is None

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
