"""The file of `mupscale tune`: the procedure of Ma et al. 2026 in four tables, read as the sweeps it means.

    scratch-n   learning rate of the narrow model, from scratch
    base-n, -N  the models to grow, trained at the best rate
    grow-n      n → k·n over learning rate, noise and whatever else is declared
    grown-N     N → k·N with the best point, trained for several lengths
    fresh-kN    k·N from scratch, to compare with

Knows what such a file may say.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mupscale.study.files.knobs import SHARED, TRAINING, check_search, read_space, read_training, values_of
from mupscale.study.files.toml import only_known, table_as, whole
from mupscale.study.spec.space import is_number
from mupscale.study.spec.sweeps import (
    GROWTH_KNOBS,
    FieldError,
    Model,
    Search,
    Source,
    Study,
    Sweep,
    at_least,
)

STAGES = ("scratch", "base", "grow", "final")
_KNOBS = {
    "scratch": ("lr",),
    "base": ("lr",),
    "grow": ("lr", *GROWTH_KNOBS, "warmup_steps"),
    "final": ("lr",),
}


@dataclass(frozen=True, kw_only=True)
class Widths:
    """How wide.

    Attributes:
        narrow: n, where everything is tuned; all learning rates are said as this model's.
        large: N, of the base model that is to grow.
        growth: k; n → k·n and N → k·N.
        check: the narrow widths of the transfer check.
    """

    narrow: int
    large: int
    growth: int = 2
    check: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        at_least("widths", self, 1, "narrow")
        at_least("widths", self, 2, "growth")
        for key, widths in (("large", (self.large,)), ("check", self.check)):
            for width in widths:
                if width < self.narrow or width % self.narrow:
                    said = f"{width} is not a whole multiple of narrow, {self.narrow}"
                    raise FieldError("widths", key, said)
        if list(self.check) != sorted(set(self.check)):
            raise FieldError("widths", "check", f"{list(self.check)}: expected ascending widths")


def read_tuning(tables: Mapping[str, Any], path: Path, *, check_transfer: bool = False) -> Study:
    """The procedure, or its transfer check: the same grid of growth at several widths.

    Raises:
        FieldError: a value that cannot be.
    """
    only_known("", tables, ("name", "seeds", "model", "widths", "data", "training", *STAGES))
    name = tables.get("name", path.stem)
    if not isinstance(name, str) or not name:
        raise FieldError("", "name", f"{name!r}: expected a word")
    seeds = whole("", "seeds", tables.get("seeds", 3))
    widths: Widths = table_as(Widths, "widths", tables.get("widths", {}))
    training = dict(tables.get("training", {}))
    only_known("training", training, TRAINING)
    training = read_training("training", training, {}, sys.maxsize)
    scratch = _stage("scratch", tables, training, seeds)
    stages = {
        "scratch": scratch,
        "base": _stage("base", tables, training, seeds, steps=scratch.steps),
        "grow": _stage("grow", tables, training, seeds),
        "final": _stage("final", tables, training, seeds),
    }
    _check_stages(stages)
    sweeps = _checked(stages, widths) if check_transfer else _procedure(stages, widths)
    n, large, k = widths.narrow, widths.large, widths.growth
    title = f"{name}: tuned at {n} → {n * k}, used at {large} → {large * k}"
    if check_transfer:
        ends = widths.check[0], widths.check[-1]
        pairs = [f"{width} → {width * k}" for width in ends]
        title = f"{name}: does what is tuned at {pairs[0]} hold at {pairs[1]}?"
    return Study(
        file=path,
        name=name,
        title=title,
        model=replace(table_as(Model, "model", tables.get("model", {})), width=n),
        data=table_as(Source, "data", tables.get("data", {})),
        training=training,
        sweeps={sweep.name: sweep for sweep in sweeps},
        questions=_questions(sweeps, check_transfer=check_transfer),
    )


def _procedure(stages: Mapping[str, Sweep], widths: Widths) -> list[Sweep]:
    """All sweeps, in the order in which they should be worked off."""
    n, large, final = widths.narrow, widths.large, stages["final"]
    scratch, base = _scratch(stages, widths), _base(stages, widths)
    grow = _grow(stages, widths, n)
    knobs = dict.fromkeys(grow.tried, grow.name)
    grown = replace(
        final,
        name=f"grown-{large}",
        begin="grow",
        source=f"base-{large}",
        growth=widths.growth,
        lengths=final.lengths or (1.0,),
        take=knobs,
    )
    fresh = replace(
        final,
        name=f"fresh-{large * widths.growth}",
        width=large * widths.growth,
        lengths=(1.0,),
        take={"lr": scratch.name},
        after=f"base-{large}",
    )
    return [scratch, *(base(width) for width in dict.fromkeys((n, large))), grow, grown, fresh]


def _checked(stages: Mapping[str, Sweep], widths: Widths) -> list[Sweep]:
    """The same grid at every width of `check`."""
    if len(widths.check) < 2:
        raise FieldError("widths", "check", "expected two or more widths to check transfer at")
    if stages["grow"].search.sampler != "grid":
        said = "the transfer check needs the same points at every width: sampler = 'grid'"
        raise FieldError("grow", "sampler", said)
    wide_first = widths.check[::-1]
    bases = [_base(stages, widths)(width) for width in wide_first]
    return [_scratch(stages, widths), *bases, *(_grow(stages, widths, width) for width in wide_first)]


def _scratch(stages: Mapping[str, Sweep], widths: Widths) -> Sweep:
    return replace(stages["scratch"], name=f"scratch-{widths.narrow}", width=widths.narrow)


def _base(stages: Mapping[str, Sweep], widths: Widths) -> Any:
    stage = stages["base"]
    take = {} if "lr" in stage.tried else {"lr": f"scratch-{widths.narrow}"}
    return lambda width: replace(stage, name=f"base-{width}", width=width, take=take, keep=True)


def _grow(stages: Mapping[str, Sweep], widths: Widths, width: int) -> Sweep:
    return replace(
        stages["grow"], name=f"grow-{width}", begin="grow", source=f"base-{width}", growth=widths.growth
    )


def _questions(sweeps: list[Sweep], *, check_transfer: bool) -> tuple[Mapping[str, Any], ...]:
    names = [sweep.name for sweep in sweeps]
    tuned = [name for name in names if name.startswith("scratch")]
    grow = sorted((n for n in names if n.startswith("grow-")), key=lambda name: int(name[5:]))
    if check_transfer:
        told: list[Mapping[str, Any]] = [{"ask": "transfer", "of": grow}]
    else:
        grown, fresh = (next(n for n in names if n.startswith(kind)) for kind in ("grown", "fresh"))
        told = [{"ask": "saving", "of": grown, "against": fresh}]
    return (
        {"ask": "tuned", "of": [*tuned, *grow]},
        {"ask": "cost"},
        *told,
        {"ask": "points", "of": [*tuned, *grow]},
    )


def _stage(
    name: str, tables: Mapping[str, Any], training: Mapping[str, Any], seeds: int, steps: Any = None
) -> Sweep:
    """What one table says, as a sweep that has no name or size yet."""
    table = tables.get(name, {})
    if not isinstance(table, dict):
        raise FieldError("", name, f"expected a table [{name}]")
    searched = ("sampler", "trials", "pruner") if name in ("scratch", "grow") else ()
    own = {"steps", "seeds", *_KNOBS[name], *searched} | ({"lengths"} if name == "final" else set())
    only_known(name, table, own | (TRAINING - SHARED))
    steps = whole(
        name, "steps", table.get("steps", steps), "missing; expected how many optimizer steps a run takes"
    )
    space = read_space(name, {knob: table[knob] for knob in _KNOBS[name] if knob in table})
    search = table_as(Search, name, {key: table[key] for key in searched if key in table})
    check_search(name, search, space)
    lengths = table.get("lengths", [])
    if not isinstance(lengths, list) or not all(is_number(share) and 0 < share <= 1 for share in lengths):
        raise FieldError(name, "lengths", f"{lengths!r}: expected shares of the steps, above 0 and up to 1")
    changes = {k: v for k, v in table.items() if k in TRAINING and k not in space}
    for warmup in values_of(space["warmup_steps"]) if "warmup_steps" in space else ():
        read_training(name, {**changes, "warmup_steps": warmup}, training, steps)
    return Sweep(
        name=name,
        begin="scratch",
        steps=steps,
        tried=space,
        search=search,
        seeds=tuple(range(whole(name, "seeds", table.get("seeds", seeds)))),
        lengths=tuple(sorted(set(map(float, lengths)))),
        training=read_training(name, changes, training, steps),
        table=name,
    )


def _check_stages(stages: Mapping[str, Sweep]) -> None:
    base, needed = stages["base"], max(len(stages[name].seeds) for name in ("grow", "final"))
    if "lr" in base.tried and len(values_of(base.tried["lr"])) != 1:
        raise FieldError("base", "lr", "expected one rate; leave it out to take the best of [scratch]")
    if len(base.seeds) < needed:
        said = f"{len(base.seeds)}: each of {needed} seeds grows a model of its own"
        raise FieldError("base", "seeds", said)
    for name in ("scratch", "grow"):
        if "lr" not in stages[name].tried:
            said = "missing; expected the learning rates to try, as the narrow model's"
            raise FieldError(name, "lr", said)
