"""What a sweep tries and how it trains, checked: knobs, samplers, settings. Complaints name table and key."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_type_hints

from mupscale.errors import GrowthError
from mupscale.operators.catalogue import operator_named
from mupscale.operators.noise import Noise
from mupscale.optim.carry import STATES, way_of
from mupscale.study.files.toml import is_whole, typed
from mupscale.study.spec.growth import GROWTH_KNOBS
from mupscale.study.spec.recipe import TrainConfig
from mupscale.study.spec.space import PRUNERS, SAMPLERS, Choices, Range, Space, read_knob
from mupscale.study.spec.sweeps import (
    PARAMETRIZATIONS,
    TRAINING_KNOBS,
    FieldError,
    Search,
    Sweep,
    one_of,
    only,
)

# Fields of `TrainConfig` that are said in a file; the others follow from the sweep.
TRAINING = {f.name for f in fields(TrainConfig)} - {"steps", "lr", "seed", "skip_blocks"}
# What a model goes on with as it began: the optimizer's state, and the stream of blocks.
SHARED = {"optimizer", "block_size"}
_WORDS: dict[str, tuple[str, ...] | None] = {
    "operator": None,
    "noise_kind": None,
    "optimizer_state": STATES,
    "parametrization": PARAMETRIZATIONS,
}


def knobs_of(begin: str) -> tuple[str, ...]:
    """What a sweep that begins so may try."""
    more = {
        "scratch": ("parametrization",),
        "grow": tuple(GROWTH_KNOBS),
        "continue": ("optimizer_state",),
        "checkpoint": (),
    }
    return (*TRAINING_KNOBS, *more[begin])


def read_space(table: str, values: Mapping[str, Any]) -> Space:
    """Knobs and the values that each may take.

    Raises:
        FieldError: a value that a knob cannot have, or that does not go with another's.
    """
    space: Space = {}
    for knob, value in values.items():
        try:
            space[knob] = read_knob(value, positive=knob == "lr")
        except GrowthError as error:
            raise FieldError(table, knob, str(error)) from None
        _check_knob(table, knob, space[knob])
    _check_noise(table, space)
    operators = [str(value) for value in values_of(space.get("operator", only("duplicate")))]
    if "shrink" in space and all(operator_named(name).shrink is None for name in operators):
        raise FieldError(table, "shrink", "is for zero_pad and expand, of which none is tried; leave it out")
    states = [s for s in values_of(space.get("optimizer_state", only("fresh"))) if s != "fresh"]
    for operator, state in itertools.product(operators, states):
        try:
            way_of(operator, state)
        except GrowthError as error:
            raise FieldError(table, "optimizer_state", str(error)) from None
    return space


def _check_knob(table: str, knob: str, values: Choices | Range) -> None:
    for value in values_of(values):
        if knob != "noise" and (knob in _WORDS) != isinstance(value, str):
            raise FieldError(table, knob, f"{value!r}: expected {'words' if knob in _WORDS else 'numbers'}")
        try:
            if knob == "operator":
                operator_named(str(value))
            if knob == "noise_kind":
                Noise.parse(f"{value}:1")
        except GrowthError as error:
            raise FieldError(table, knob, str(error)) from None
        if known := _WORDS.get(knob):
            one_of(table, knob, str(value), known)
        if knob == "warmup_steps" and not is_whole(value):
            raise FieldError(table, knob, f"{value!r}: expected whole numbers, one or a list of them")


def _check_noise(table: str, space: Space) -> None:
    """Every operator that is tried takes every kind of noise that is tried."""
    if not {"noise", "noise_kind"} & space.keys():
        return
    tried = [values_of(space.get(knob, only(GROWTH_KNOBS[knob]))) for knob in ("operator", "noise_kind")]
    strengths = values_of(space.get("noise", only(1)))
    for operator, kind, strength in itertools.product(*tried, strengths):
        try:
            operator_named(operator).noise(strength if isinstance(strength, str) else f"{kind}:{strength}")
        except GrowthError as error:
            raise FieldError(table, "noise_kind" if "noise_kind" in space else "noise", str(error)) from None


def check_depth(sweep: Sweep) -> None:
    """What grows in depth is grown by what makes models deeper, and the other way round."""
    for name in values_of(sweep.tried.get("operator", only(GROWTH_KNOBS["operator"]))):
        operator, said = operator_named(str(name)), ""
        if operator.deepens and (sweep.layers is None or sweep.width or sweep.growth):
            said = f"{name!r} makes a model deeper and no wider; give layers and no width, or another"
        if sweep.layers is not None and not (operator.deepens or operator.copies_evenly):
            said = f"{name!r} makes a model wider and no deeper; expected duplicate, stack or stack_identity"
        if said:
            raise FieldError(sweep.table, "operator", said)


def check_search(table: str, search: Search, space: Space) -> None:
    """See that the sampler can go through the space."""
    one_of(table, "sampler", search.sampler, SAMPLERS)
    one_of(table, "pruner", search.pruner, PRUNERS)
    if search.sampler == "grid":
        if search.trials is not None:
            raise FieldError(table, "trials", "a grid tries every point; take sampler = 'random' or 'tpe'")
        for knob, values in space.items():
            if not isinstance(values, Choices):
                said = "a range needs sampler = 'random' or 'tpe'; a grid takes a list"
                raise FieldError(table, knob, said)
    elif search.trials is None or search.trials < 1:
        raise FieldError(table, "trials", f"sampler {search.sampler!r} needs a number of trials, at least 1")


def read_training(
    table: str, changes: Mapping[str, Any], shared: Mapping[str, Any], steps: int
) -> dict[str, Any]:
    """Check settings of training by making them: those of a table, on top of the shared ones."""
    hints = get_type_hints(TrainConfig)
    changes = {key: typed(table, key, value, hints[key]) for key, value in changes.items()}
    try:
        TrainConfig(**{**shared, **changes, "steps": steps})
    except GrowthError as error:
        # The shared ones are right by themselves: if none of the table's own is named, it is the steps.
        named = [key for key in changes if re.match(rf"{key}\b", str(error))]
        raise FieldError(table, named[0] if named else "steps", str(error)) from None
    return dict(changes)


def values_of(knob: Choices | Range) -> tuple[Any, ...]:
    """The values, or the ends, of what a knob may be."""
    return knob.values if isinstance(knob, Choices) else (knob.low, knob.high)
