"""A study read from its TOML file. Every complaint names the file, the line and the field.

    study = read_study(Path("llama.toml"))

Knows TOML; what the values mean is `spec`'s.
"""

from __future__ import annotations

import difflib
import itertools
import re
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from mupscale.errors import GrowthError
from mupscale.operators.catalogue import operator_named
from mupscale.operators.noise import Noise
from mupscale.optim.carry import state_is_padded
from mupscale.study.recipe import TrainConfig
from mupscale.study.tune.space import PRUNERS, SAMPLERS, Choices, Space, is_number, read_knob
from mupscale.study.tune.spec import KNOBS, Data, FieldError, Model, Search, Stage, Study, Widths, one_of

_TRAINING = {f.name for f in fields(TrainConfig)} - {"steps", "lr", "seed", "skip_blocks"}
# What a grown model goes on with as its base model began: the optimizer's state, and the stream of blocks.
_SHARED = {"optimizer", "block_size"}


def read_study(path: Path) -> Study:
    """Read and check a study file.

    Raises:
        GrowthError: one line: the file, its line, the field, what was expected.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise GrowthError(f"{path}: cannot be read ({error}); expected a TOML file") from None
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise GrowthError(f"{path}: not TOML: {error}") from None
    try:
        return _study(tables, path)
    except FieldError as error:
        raise located(path, error) from None


def located(path: Path, error: FieldError) -> GrowthError:
    """The complaint with its place in the file."""
    line = _line_of(path.read_text(encoding="utf-8"), error.table, error.key)
    place = f"[{error.table}] {error.key}".strip() if error.table else error.key
    return GrowthError(f"{path}:{line}: {place}: {error}")


def _study(tables: dict[str, Any], path: Path) -> Study:
    known = ("name", "seeds", "model", "widths", "data", "training", "scratch", "base", "grow", "final")
    _only_known("", tables, known)
    for name in known[2:]:
        if not isinstance(tables.get(name, {}), dict):
            raise FieldError("", name, f"expected a table [{name}]")
    name, seeds = tables.get("name", path.stem), tables.get("seeds", 3)
    if not isinstance(name, str) or not name:
        raise FieldError("", "name", f"{name!r}: expected a word")
    if not _is_whole(seeds) or seeds < 1:
        raise FieldError("", "seeds", f"{seeds!r}: expected a whole number of at least 1")
    model = _table(Model, "model", tables.get("model", {}))
    widths = _table(Widths, "widths", tables.get("widths", {}))
    training = dict(tables.get("training", {}))
    _only_known("training", training, _TRAINING)
    training = _training("training", training, {}, sys.maxsize)
    scratch = _stage("scratch", tables, training, seeds, ("lr",))
    study = Study(
        file=path,
        name=name,
        seeds=seeds,
        model=model,
        widths=widths,
        data=_table(Data, "data", tables.get("data", {})),
        training=training,
        scratch=scratch,
        base=_stage("base", tables, training, seeds, ("lr",), steps=scratch.steps),
        grow=_stage("grow", tables, training, seeds, ("lr", *KNOBS)),
        final=_stage("final", tables, training, seeds, ("lr",)),
    )
    if "lr" in study.base.space and len(_values(study.base.space["lr"])) != 1:
        raise FieldError("base", "lr", "expected one rate; leave it out to take the best of [scratch]")
    _check_lengths(study)
    if study.base.seeds < (needed := max(study.grow.seeds, study.final.seeds)):
        raise FieldError(
            "base", "seeds", f"{study.base.seeds}: each of {needed} seeds grows a model of its own"
        )
    for key in ("scratch", "grow"):
        if "lr" not in getattr(study, key).space:
            raise FieldError(key, "lr", "missing; expected the learning rates to try, as the narrow model's")
    return study


def _stage(
    name: str,
    tables: dict[str, Any],
    training: dict[str, Any],
    seeds: int,
    knobs: tuple[str, ...],
    steps: Any = None,
) -> Stage:
    table = dict(tables.get(name, {}))
    searched = name in ("scratch", "grow")
    own = {"steps", "seeds", *knobs, *(("sampler", "trials", "pruner") if searched else ())}
    own |= {"lengths"} if name == "final" else set()
    _only_known(name, table, own | (_TRAINING - _SHARED))
    steps, seeds = table.get("steps", steps), table.get("seeds", seeds)
    for key, value in (("steps", steps), ("seeds", seeds)):
        if value is None:
            raise FieldError(name, key, "missing; expected how many optimizer steps a run takes")
        if not _is_whole(value) or value < 1:
            raise FieldError(name, key, f"{value!r}: expected a whole number of at least 1")
    space: Space = {}
    for knob in knobs:
        if knob in table:
            try:
                space[knob] = read_knob(table[knob], positive=knob == "lr")
            except GrowthError as error:
                raise FieldError(name, knob, str(error)) from None
            _check_knob(name, knob, space[knob])
    _check_noise(name, space)
    operators = [str(value) for value in _values(space["operator"])] if "operator" in space else ["duplicate"]
    if "shrink" in space and "zero_pad" not in operators:
        raise FieldError(name, "shrink", "for the operator zero_pad, which is not tried")
    if "optimizer_state" in space and "carried" in _values(space["optimizer_state"]):
        for operator in operators:
            try:
                state_is_padded(operator)
            except GrowthError as error:
                raise FieldError(name, "optimizer_state", str(error)) from None
    search = _table(Search, name, {k: v for k, v in table.items() if k in ("sampler", "trials", "pruner")})
    _check_search(name, search, space)
    lengths = table.get("lengths", [])
    if not isinstance(lengths, list) or not all(is_number(share) and 0 < share <= 1 for share in lengths):
        raise FieldError(name, "lengths", f"{lengths!r}: expected shares of the steps, above 0 and up to 1")
    changes = {k: v for k, v in table.items() if k in _TRAINING and k not in knobs}
    for warmup in _values(space["warmup_steps"]) if "warmup_steps" in space else ():
        _training(name, {**changes, "warmup_steps": warmup}, training, steps)
    return Stage(
        steps=steps,
        space=space,
        search=search,
        seeds=seeds,
        lengths=tuple(sorted(set(lengths))),
        training=_training(name, changes, training, steps),
    )


def _check_knob(table: str, knob: str, values: Any) -> None:
    words = {"optimizer_state": ("carried", "fresh"), "operator": None, "noise_kind": None}
    for value in _values(values):
        if (knob in words) != isinstance(value, str):
            raise FieldError(table, knob, f"{value!r}: expected {'words' if knob in words else 'numbers'}")
        try:
            if knob == "operator" and operator_named(str(value)).deepens:
                raise FieldError(table, knob, f"{value!r} makes a model deeper; expected one that widens")
            if knob == "noise_kind":
                Noise.parse(f"{value}:1")
        except FieldError:
            raise
        except GrowthError as error:
            raise FieldError(table, knob, str(error)) from None
        if knob == "optimizer_state":
            one_of(table, knob, str(value), ("carried", "fresh"))
        if knob == "warmup_steps" and not _is_whole(value):
            raise FieldError(table, knob, f"{value!r}: expected whole numbers, one or a list of them")


def _check_lengths(study: Study) -> None:
    """Every length of the last stage has room for the warmup, and ends in a cooldown."""
    warmups = _values(study.grow.space["warmup_steps"]) if "warmup_steps" in study.grow.space else ()
    for steps in study.final_lengths:
        for changes in [{"warmup_steps": warmup} for warmup in warmups] or [{}]:
            try:
                config = replace(study.config(study.final, **changes), steps=steps)
            except GrowthError as error:
                raise FieldError("final", "lengths", f"a run of {steps} steps: {error}") from None
            if not 0 < config.cooldown_steps < steps:
                raise FieldError(
                    "final",
                    "cooldown_fraction",
                    f"{config.cooldown_fraction:g} of {steps} steps are {config.cooldown_steps}; expected a "
                    "cooldown within the run: without one, a smaller rate alone looks better at the end",
                )


def _check_noise(table: str, space: Space) -> None:
    """Every operator that is tried takes every kind of noise that is tried."""
    if not {"noise", "noise_kind"} & space.keys():
        return
    tried = [space[knob] if knob in space else Choices((KNOBS[knob],)) for knob in ("operator", "noise_kind")]
    strengths = _values(space["noise"]) if "noise" in space else (1,)
    for operator, kind, strength in itertools.product(*map(_values, tried), strengths):
        try:
            operator_named(operator).noise(f"{kind}:{strength}")
        except GrowthError as error:
            raise FieldError(table, "noise_kind" if "noise_kind" in space else "noise", str(error)) from None


def _check_search(table: str, search: Search, space: Space) -> None:
    one_of(table, "sampler", search.sampler, SAMPLERS)
    one_of(table, "pruner", search.pruner, PRUNERS)
    if search.sampler == "grid":
        if search.trials is not None:
            raise FieldError(table, "trials", "a grid tries every point; take sampler = 'random' or 'tpe'")
        for knob, values in space.items():
            if not isinstance(values, Choices):
                raise FieldError(
                    table, knob, "a range needs sampler = 'random' or 'tpe'; a grid takes a list"
                )
    elif search.trials is None or search.trials < 1:
        raise FieldError(table, "trials", f"sampler {search.sampler!r} needs a number of trials, at least 1")


def _training(table: str, changes: dict[str, Any], shared: dict[str, Any], steps: int) -> dict[str, Any]:
    """Check settings of training by making them: those of a table, on top of the shared ones."""
    hints = get_type_hints(TrainConfig)
    changes = {key: _typed(table, key, value, hints[key]) for key, value in changes.items()}
    try:
        TrainConfig(**{**shared, **changes, "steps": steps})
    except GrowthError as error:
        # The shared ones are right by themselves: if none of the table's own is named, it is the steps.
        named = [key for key in changes if re.match(rf"{key}\b", str(error))]
        raise FieldError(table, named[0] if named else "steps", str(error)) from None
    return changes


def _table(kind: type[Any], name: str, values: dict[str, Any]) -> Any:
    hints = get_type_hints(kind)
    _only_known(name, values, hints)
    missing = [f.name for f in fields(kind) if f.default is MISSING and f.name not in values]
    if missing:
        raise FieldError(name, missing[0], "missing")
    return kind(**{key: _typed(name, key, value, hints[key]) for key, value in values.items()})


def _typed(table: str, key: str, value: Any, hint: Any) -> Any:
    """The value as the field's type; whole numbers do for fractions, lists for tuples."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for kind in kinds:
        if get_origin(kind) is tuple and isinstance(value, list | tuple):
            inner = get_args(kind)[0]
            return tuple(_typed(table, key, each, inner) for each in value)
        if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if (kind is int and _is_whole(value)) or (kind in (bool, str) and isinstance(value, kind)):
            return value
    names = {int: "a whole number", float: "a number", str: "a word", bool: "true or false"}
    expected = " or ".join(names.get(kind, "a list") for kind in kinds if kind is not type(None))
    raise FieldError(table, key, f"{value!r}: expected {expected}")


def _only_known(table: str, given: Mapping[str, Any], known: Any) -> None:
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(key, list(known), n=1)
            hint = f"did you mean {close[0]}?" if close else f"expected {', '.join(sorted(known))}"
            raise FieldError(table, key, f"unknown; {hint}")


def _values(knob: Any) -> tuple[Any, ...]:
    return knob.values if isinstance(knob, Choices) else (knob.low, knob.high)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _line_of(text: str, table: str, key: str) -> int:
    """Where a key of a table stands; the table's head where the key is missing, else the first line."""
    current, head = "", 1
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[\s*([^\[\]]+?)\s*\]", line):
            current = header[1].strip("\"'")
            if current == table or (not table and current == key):
                head = number
        elif current == table and key and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line):
            return number
    return head
