"""What is proved of growth in depth: that it is exact against explicit multipliers, layer by layer.

A deeper model is no copy of the shallow one, so the two are not compared as a whole. Two things are, of tiny
models in float64: every layer of the deeper one, with all others silenced, against the layer that it comes
from; and the deeper one, its factor 1/g folded into what writes to the residual stream, against the same
architecture that multiplies what its layers add by 1/g, at rest and over some steps of AdamW and of SGD.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction

import torch
from torch import nn

from mupscale.errors import GrowthError, said_as
from mupscale.layout.base import DEPTH, Fold, Layout
from mupscale.layout.cache import remembered
from mupscale.layout.depth import depth_of, source_of
from mupscale.layout.flow.stream import Term, terms_of, with_factors
from mupscale.layout.inference.fields import explicit
from mupscale.layout.inference.instance import instance, randomize_
from mupscale.layout.tiny_config import tiny
from mupscale.models.calls import Call, result_tensors
from mupscale.models.chance import SameChance
from mupscale.models.contents import state_tensors
from mupscale.models.inputs import example_inputs
from mupscale.models.precision import Float64, float64
from mupscale.models.skeletons import PreTrainedConfig, is_stock, quiet
from mupscale.operators.filling import fill_
from mupscale.proof.deviations import judged, rounding
from mupscale.proof.proof import TOLERANCE, still, tried
from mupscale.theory.manifest import Plan

_MULTIPLIER = "residual multiplier"  # as an axis that no tensor has: what is folded into the writers


def prove_depth(config: PreTrainedConfig, plan_of: Callable[[PreTrainedConfig], Plan]) -> None:
    """Prove growth in depth for the models of a config class and flags, or remember that it was.

    Args:
        config: of any size.
        plan_of: makes the plan of a deeper model for another config of the family.

    Raises:
        GrowthError: it is not as it should be, or cannot be tried.
    """
    small = still(explicit(tiny(config)))
    made = plan_of(small)
    failure = remembered(
        "depth",
        [json.loads(small.to_json_string()), str(made.growth), made.period, made.layout.to_dict()],
        lambda: {"failure": _failure(small, made)},
        keep=is_stock(small),
    )["failure"]
    if failure is not None:
        raise GrowthError(f"{config.model_type}: {failure}")


def _failure(small: PreTrainedConfig, plan: Plan) -> str | None:
    """What is wrong with the growth of a tiny model; None where nothing is."""
    assert plan.config is not None
    with said_as(f"{small.model_type}: no tiny deeper model can be made"):
        narrow, deep = instance(small), instance(plan.config)
    call = Call.of(example_inputs(narrow, seed=1))
    with said_as(f"{small.model_type}: it does not run"), float64(), quiet(), Float64():
        randomize_(narrow, {name: p.axes for name, p in plan.params.items()})
        state = state_tensors(narrow)
        fill_(deep, narrow, plan, lambda name: state[plan.canonical(name)].detach().clone())
        for model in (narrow, deep):
            model.train().eval()  # drops what some keep of their weights between calls in evaluation mode
        terms = terms_of(deep, depth_of(plan.config), call)
        failure = _layer_by_layer(narrow, deep, plan, call, terms)
    if failure is None:
        explicit_model, folded = instance(plan.config), instance(plan.config)
        each = float(1 / plan.growth[DEPTH])
        with_factors(explicit_model, depth_of(plan.config), terms, lambda layer: each)
        failure = tried(explicit_model, folded, _folding(plan), [call]).failure
        if failure is not None:
            failure = f"its weights cannot take in the multipliers of the residual stream: {failure}"
    return failure


def _layer_by_layer(
    narrow: nn.Module, deep: nn.Module, plan: Plan, call: Call, terms: dict[Term, torch.Tensor]
) -> str | None:
    """What is wrong where a layer of the deeper model, filled with copies, is not what it comes from."""
    depth = plan.layout.sizes[DEPTH]
    deeper = int(depth * plan.growth[DEPTH])

    def run(model: nn.Module) -> list[torch.Tensor]:
        with torch.no_grad(), SameChance(0):
            return result_tensors(call(model))

    speaks = [0, 0]  # the layer that is not silenced, of either
    with_factors(narrow, depth, terms_of(narrow, depth, call), lambda layer: float(layer == speaks[0]))
    with_factors(deep, deeper, terms, lambda layer: float(layer == speaks[1]))
    for layer in range(deeper):
        speaks[:] = source_of(layer, depth, deeper, plan.period), layer
        expected, found = run(narrow), run(deep)
        error = float("inf")
        if [a.shape for a in expected] == [b.shape for b in found]:
            each = judged(expected, expected, found, lambda: rounding(narrow, run), bound=TOLERANCE)
            error = TOLERANCE * max(output.excess for output in each)
        if not error <= TOLERANCE:
            return (
                f"layer {layer} of the deeper model differs from layer {speaks[0]}, its source, in "
                f"constants that go by the number of the layer (outputs differ by {error:.3g})"
            )
    return None


def _folding(plan: Plan) -> Plan:
    """As a plan: the deeper model with explicit multipliers becomes the one that has them in its weights."""
    own = plan.layout

    def of_deeper(tensors: Callable[[str], bool]) -> dict[str, str]:
        return {name: source for name, source in plan.wide_names.items() if tensors(source)}

    params, buffers = of_deeper(own.params.__contains__), of_deeper(own.buffers.__contains__)
    layout = Layout(
        sizes={**own.sizes, _MULTIPLIER: 1},
        params={name: own.params[source] for name, source in params.items()},
        buffers={name: own.buffers[source] for name, source in buffers.items()},
        ties=own.ties,
        folds={
            name: tuple(Fold(_MULTIPLIER, f.power, f.offset) for f in own.folds[source] if f.axis == DEPTH)
            for name, source in params.items()
            if source in own.folds
        },
    )
    return Plan(layout=layout, growth={_MULTIPLIER: Fraction(plan.growth[DEPTH])})
