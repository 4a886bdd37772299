"""A study file: tables [model], [data], [training], a [sweep.NAME] for each set of runs, and [[question]]s.

A sweep whose width (or layers, or tokens_per_parameter) is a list, or that grows one such, stands for one of
each: NAME-32, NAME-64, … They are worked off row by row: the first of every list, then the second.

Knows what a file may say; what the values mean is `mupscale.study.spec.sweeps`'.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NoReturn

from mupscale.errors import GrowthError
from mupscale.study.files.knobs import (
    SHARED,
    TRAINING,
    check_depth,
    check_search,
    knobs_of,
    read_space,
    read_training,
)
from mupscale.study.files.toml import is_whole, only_known, seeds_of, table_as, typed, whole
from mupscale.study.questions import check
from mupscale.study.spec.space import Choices, is_number
from mupscale.study.spec.sweeps import (
    BEGINNINGS,
    TRAINING_KNOBS,
    FieldError,
    Model,
    Search,
    Source,
    Study,
    Sweep,
    at_least,
    one_of,
)

_COUNTS = ("growth_seed", "skip_blocks")
TABLES = ("name", "title", "seeds", *_COUNTS, "model", "data", "training", "sweep", "question")
_OWN = {
    "begin": str,
    "from": str,
    "growth": int,
    "to": str,
    "steps": int,
    "tokens_per_parameter": float,
    "match": str,
    "constant": bool,
    "after": str,
    "keep": bool,
    "record": int,
    "verify": bool,
    "widen": bool,
}
_FOLDERS = ("data", "runs", "transfer")  # that a study makes beside those of its sweeps
_SEARCH = {f.name for f in fields(Search)}
_OTHER = {"width", "layers", "lengths", "try", "take", "seeds", "search_seeds", "like"}


def read_sweeps(tables: Mapping[str, Any], path: Path, places: Mapping[str, str] | None = None) -> Study:
    """The study that the tables of a file describe.

    Args:
        places: in which table of the file a sweep stands, where it is not [sweep.NAME].

    Raises:
        FieldError: a value that cannot be.
    """
    only_known("", tables, TABLES)
    name, title = (tables.get(key, path.stem) for key in ("name", "title"))
    for key, value in (("name", name), ("title", title)):
        if not isinstance(value, str) or not value:
            raise FieldError("", key, f"{value!r}: expected a word")
    model = table_as(Model, "model", tables.get("model", {}))
    training = dict(tables.get("training", {}))
    only_known("training", training, TRAINING)
    training = read_training("training", training, {}, sys.maxsize)
    if not isinstance(tables.get("sweep"), dict) or not tables["sweep"]:
        raise FieldError("", "sweep", "expected a table [sweep.NAME] for each set of runs")
    seeds = seeds_of("", tables.get("seeds", 3))
    sweeps, families = _sweeps(tables["sweep"], training, seeds, places or {})
    if model.width is None and model.file is None:
        widths = [sweep.width for sweep in sweeps.values() if sweep.width is not None]
        if not widths:
            raise FieldError("model", "width", "missing; expected the narrowest width, or one in a sweep")
        model = replace(model, width=min(widths))
    counts = {key: tables[key] for key in _COUNTS if key in tables}
    for key, value in counts.items():
        if not is_whole(value) or value < 0:
            raise FieldError("", key, f"{value!r}: expected a whole number of 0 or more")
    study = Study(
        file=path,
        name=name,
        title=title,
        model=model,
        data=table_as(Source, "data", tables.get("data", {})),
        training=training,
        sweeps=sweeps,
        questions=_questions(tables.get("question", ()), sweeps, families),
        **counts,
    )
    for sweep in sweeps.values():
        study.check_ends(sweep, study.ends(sweep))
    return study


def _sweeps(
    tables: Mapping[str, Any], training: Mapping[str, Any], seeds: tuple[int, ...], places: Mapping[str, str]
) -> tuple[dict[str, Sweep], dict[str, list[str]]]:
    """All sweeps by name, and the names that each table of the file stands for."""
    sweeps: dict[str, Sweep] = {}
    families: dict[str, list[str]] = {}
    for name, values in tables.items():
        if not isinstance(values, dict):
            raise FieldError("", "sweep", f"{name}: expected a table [sweep.{name}]")
        # It names a folder of models; and NAME+ are the further seeds of NAME.
        if not re.fullmatch(r"\w[\w .,:=-]*", name) or name in _FOLDERS:
            said = f"{name!r}: expected letters, digits and any of _ - . , : =, but not {', '.join(_FOLDERS)}"
            raise FieldError("", "sweep", said)
        families[name] = []
        table = places.get(name, f"sweep.{name}")
        for one_name, one in _one_of_each(name, _whole_table(name, values, tables), families):
            if one_name in sweeps:
                raise FieldError(table, "", f"there is a sweep {one_name!r} already; give it another name")
            sweep, extension = _sweep(one_name, table, one, training, seeds)
            families[name].append(one_name)
            sweeps[one_name] = sweep
            if extension is not None:
                sweeps[extension.name] = extension
    for checked in (_check_names, _check_links):  # links can be followed once all of them lead somewhere
        for sweep in sweeps.values():
            checked(sweep, sweeps)
    # Row by row: what is stopped early has whole rows of its table, not a part of each.
    row = {name: place for names in families.values() for place, name in enumerate(names)}
    return dict(sorted(sweeps.items(), key=lambda item: row[item[0].removesuffix("+")])), families


def _whole_table(name: str, values: Mapping[str, Any], tables: Mapping[str, Any]) -> dict[str, Any]:
    """A table with all that the one which it is like says, and it does not."""
    like = values.get("like")
    if like is None:
        return dict(values)
    before = [*tables][: [*tables].index(name)]
    if like not in before:
        said = f"{like!r}: no such sweep before it; expected one of {', '.join(before) or 'none'}"
        raise FieldError(f"sweep.{name}", "like", said)
    return {**_whole_table(like, tables[like], tables), **values}


def _one_of_each(
    name: str, values: Mapping[str, Any], families: Mapping[str, list[str]]
) -> list[tuple[str, dict[str, Any]]]:
    """A table's sweeps: one for each size or length that it lists, or for each that its source stands for."""
    if not isinstance(values.get("from", ""), str):
        raise FieldError(f"sweep.{name}", "from", f"{values['from']!r}: expected the name of a sweep")
    sources = families.get(values.get("from", ""), [])
    for key, fits, kind in (
        ("width", is_whole, "whole numbers"),
        ("layers", is_whole, "whole numbers"),
        ("tokens_per_parameter", is_number, "numbers"),
    ):
        each_of = values.get(key)
        if isinstance(each_of, list):
            if not each_of or not all(map(fits, each_of)) or len(set(each_of)) < len(each_of):
                raise FieldError(f"sweep.{name}", key, f"{each_of}: expected different {kind}")
            return [(f"{name}-{each:g}", {**values, key: each}) for each in each_of]
    if sources and sources != [values.get("from")]:
        return [(f"{name}-{source.rpartition('-')[2]}", {**values, "from": source}) for source in sources]
    return [(name, dict(values))]


def _sweep(
    name: str, table: str, values: Mapping[str, Any], training: Mapping[str, Any], seeds: tuple[int, ...]
) -> tuple[Sweep, Sweep | None]:
    """A sweep, and that of its further seeds where only some try every point."""
    own = {key: typed(table, key, values[key], hint) for key, hint in _OWN.items() if key in values}
    begin = own.pop("begin", "grow" if "from" in own else "scratch")
    one_of(table, "begin", begin, BEGINNINGS)
    knobs = knobs_of(begin)
    only_known(table, values, {*_OWN, *_SEARCH, *_OTHER, *knobs, *(TRAINING - SHARED)})
    tried = values.get("try", {})
    if not isinstance(tried, dict):
        raise FieldError(table, "try", "expected { knob = [values] }")
    only_known(table, tried, knobs)
    fixed = {
        key: values[key] for key in knobs if key in values and (key == "lr" or key not in TRAINING_KNOBS)
    }
    space = read_space(table, {**fixed, **tried})
    take = values.get("take", {})
    if not isinstance(take, dict) or not all(isinstance(source, str) for source in take.values()):
        raise FieldError(table, "take", "expected { knob = 'sweep' }")
    only_known(table, take, knobs)
    if begin != "checkpoint" and "lr" not in space and "lr" not in take:
        raise FieldError(table, "lr", "missing; expected the learning rates to try, as the narrow model's")
    search = table_as(Search, table, {key: values[key] for key in _SEARCH if key in values})
    check_search(table, search, space)
    if begin == "checkpoint":  # one model, from which all seeds begin
        seeds = (0,)
    elif "seeds" in values:
        seeds = seeds_of(table, values["seeds"])
    searching = whole(table, "search_seeds", values.get("search_seeds", len(seeds)))
    sweep = Sweep(
        name=name,
        begin=begin,
        source=own.pop("from", None),
        width=None if "width" not in values else whole(table, "width", values["width"]),
        layers=None if "layers" not in values else whole(table, "layers", values["layers"]),
        lengths=_lengths(table, values.get("lengths", [])),
        tried=space,
        take=take,
        search=search,
        seeds=seeds[:searching],
        training=read_training(
            table,
            {k: v for k, v in values.items() if k in TRAINING and k not in space},
            training,
            own.get("steps", sys.maxsize),
        ),
        table=table,
        **own,
    )
    _check_size(sweep)
    if sweep.branches and search.pruner != "none":
        said = "a run that ends in several places cannot be given up early; leave pruner out, or the lengths"
        raise FieldError(table, "pruner", said)
    rates = space.get("lr")
    if sweep.widen and not (
        isinstance(rates, Choices) and len(rates.values) > 1 and search.sampler == "grid"
    ):
        raise FieldError(table, "widen", "there is no grid of rates to widen; expected several to try")
    if searching >= len(seeds):
        return sweep, None
    rest = replace(
        sweep,
        name=f"{name}+",
        seeds=seeds[searching:],
        tried={},
        take=dict.fromkeys({**space, **take}, name),
        search=Search(),
        widen=False,
        extends=name,
    )
    return sweep, rest


def _lengths(table: str, lengths: Any) -> tuple[float, ...]:
    if not isinstance(lengths, list) or not all(is_number(each) and 0 < each < math.inf for each in lengths):
        raise FieldError(
            table,
            "lengths",
            f"{lengths!r}: expected steps, or shares of steps (up to 1); without steps, tokens per parameter",
        )
    return tuple(sorted(set(map(float, lengths))))


def _check_size(sweep: Sweep) -> None:
    """How wide and how long it is is said, and said once."""

    def refuse(key: str, said: str) -> NoReturn:
        raise FieldError(sweep.table, key, said)

    for key, least in (("width", 1), ("growth", 2), ("layers", 1), ("record", 0)):
        if getattr(sweep, key) is not None:
            at_least(sweep.table, sweep, least, key)
    begin, ratio = sweep.begin, sweep.tokens_per_parameter
    sizes = [key for key in ("width", "growth", "to") if getattr(sweep, key) is not None]
    long = sweep.steps or ratio is not None or sweep.lengths or sweep.match
    if begin == "checkpoint":
        if sizes or long or sweep.tried or sweep.source:
            refuse("begin", "a checkpoint has its own size and training; leave the other keys out")
        return
    if not long:
        refuse("steps", "missing; expected steps, tokens_per_parameter or lengths")
    if ratio is not None and not 0 < ratio < math.inf:
        refuse("tokens_per_parameter", f"{ratio}: expected more than 0, and not infinity")
    if ratio is not None and (sweep.steps or sweep.lengths):
        refuse("tokens_per_parameter", "given beside steps or lengths, which say as much; leave one out")
    if sweep.layers is not None and (sweep.to or begin == "continue"):
        refuse(
            "layers", "a config.json and a model that is continued have a depth of their own; leave it out"
        )
    if begin == "grow" and len(sizes) != 1 and (sizes or not sweep.layers):
        refuse("growth", "expected one of growth, width and to: how wide it becomes, or layers: how deep")
    if begin == "grow":
        check_depth(sweep)
    if begin == "scratch" and len(sizes) > 1:
        refuse(sizes[0], f"given beside {sizes[1]}; leave one out")
    if begin == "continue" and sizes:
        refuse(sizes[0], "what is continued keeps its size; leave it out, or begin = 'grow'")
    if begin == "scratch" and sweep.source:
        refuse("from", "from scratch it begins from nothing; leave it out")
    if begin in ("grow", "continue") and not sweep.source:
        refuse("from", "missing; expected the sweep whose runs it begins from")


def _check_names(sweep: Sweep, sweeps: Mapping[str, Sweep]) -> None:
    """The sweeps that a sweep names are there."""
    named = {"from": sweep.source, "after": sweep.after, "match": sweep.match}
    for key, name in (*named.items(), *(("take", name) for name in sweep.take.values())):
        if name is not None and name not in sweeps:
            raise FieldError(
                sweep.table, key, f"{name!r}: no such sweep; expected one of {', '.join(sweeps)}"
            )


def _check_links(sweep: Sweep, sweeps: Mapping[str, Sweep]) -> None:
    """What a sweep begins from and takes is tried there, has seeds enough, and does not in turn need it."""
    for knob, name in sweep.take.items():
        if knob not in {**sweeps[name].tried, **sweeps[name].take}:
            raise FieldError(sweep.table, "take", f"{knob}: not tried in {name}; take one that is")
    if sweep.source is not None and (source := sweeps[sweep.source]).begin != "checkpoint":
        if source.constant:
            said = f"{source.name} keeps no model after a cooldown; leave its constant out"
            raise FieldError(sweep.table, "from", said)
        extension = sweeps.get(f"{source.name}+")
        there = (*source.seeds, *(extension.seeds if extension else ()))
        if len(there) > 1 and (missing := set(sweep.seeds) - set(there)):
            raise FieldError(
                sweep.table,
                "seeds",
                f"seed {min(missing)} has no run in {source.name}, which has {len(there)}; give no more",
            )
    seen, todo = set(), [sweep]
    while todo:
        before = todo.pop()
        for name in filter(None, (*before.needs, before.after, before.match)):
            if name == sweep.name:
                raise FieldError(sweep.table, "from", "it needs itself; correct from, take, after or match")
            if name not in seen:
                seen.add(name)
                todo.append(sweeps[name])


def _questions(
    tables: Any, sweeps: Mapping[str, Sweep], families: Mapping[str, list[str]]
) -> tuple[Mapping[str, Any], ...]:
    """What is asked; by default what was found best, at what cost, and every point."""
    if not isinstance(tables, Sequence) or not all(isinstance(table, dict) for table in tables):
        raise FieldError("", "question", "expected a table [[question]] for each")
    names = [name for name, sweep in sweeps.items() if not sweep.extends]

    def named(value: Any) -> Any:
        if isinstance(value, list):
            return [
                inner for each in value for inner in ([named(each)] if isinstance(each, list) else _all(each))
            ]
        return _all(value) if isinstance(value, str) and len(_all(value)) > 1 else value

    def _all(name: Any) -> list[Any]:
        return families.get(name, [name]) if isinstance(name, str) else [name]

    if not tables:
        tried = [name for name in names if sweeps[name].begin != "checkpoint"]
        tables = [{"ask": "tuned", "of": tried}, {"ask": "cost"}, {"ask": "points", "of": tried}]
    found = [{k: named(v) if k in ("of", "against") else v for k, v in table.items()} for table in tables]
    for question in found:
        try:
            check(question, names)
        except GrowthError as error:
            raise FieldError("question", "", str(error)) from None
        if question["ask"] == "plan" and sweeps[of := question["of"]].begin != "grow":
            raise FieldError("question", "", f"question plan: of: {of!r} is not grown; give a sweep that is")
    return tuple(found)
