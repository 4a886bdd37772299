"""The file of `mupscale tune`: the procedure of Ma et al. 2026 in four tables, told as the sweeps it means.

    scratch-n   learning rate of the narrow model, from scratch
    base-n, -N  the models to grow, trained at the best rate
    grow-n      n → k·n over learning rate, noise and whatever else is declared
    grown-N     N → k·N with the best point, trained for several lengths
    fresh-kN    k·N from scratch, to compare with

Knows what such a file may say; what its values mean is for `mupscale.study.files.sweeps` to check.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mupscale.study.files.toml import only_known, table_as
from mupscale.study.spec.growth import GROWTH_KNOBS
from mupscale.study.spec.sweeps import TRAINING_KNOBS, FieldError, at_least

STAGES = ("scratch", "base", "grow", "final")
Tables = dict[str, Any]
Places = dict[str, str]


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


def as_sweeps(tables: Mapping[str, Any], name: str, *, check_transfer: bool = False) -> tuple[Tables, Places]:
    """The procedure, or its transfer check (the same grid of growth at several widths), as a file of sweeps.

    Args:
        name: of the study, where the tables do not say.

    Returns:
        The tables, and in which of the four the values of each sweep stand.

    Raises:
        FieldError: a value that cannot be.
    """
    only_known("", tables, ("name", "seeds", "model", "widths", "data", "training", *STAGES))
    widths: Widths = table_as(Widths, "widths", tables.get("widths", {}))
    scratch, base, grow, final = (_stage(stage, tables.get(stage, {})) for stage in STAGES)
    n, large, k = widths.narrow, widths.large, widths.growth
    told, tune = tables.get("name", name), f"scratch-{n}"
    base = {"steps": scratch.get("steps"), **base} | ({} if "try" in base else {"take": {"lr": tune}})

    def bases(*some: int) -> Tables:
        return {f"base-{width}": {**base, "width": width} for width in some}

    def grown(*some: int) -> Tables:
        return {f"grow-{width}": {**grow, "from": f"base-{width}", "growth": k} for width in some}

    sweeps = {tune: {**scratch, "width": n}}
    if check_transfer:
        if len(widths.check) < 2:
            raise FieldError("widths", "check", "expected two or more widths to check transfer at")
        if grow.get("sampler", "grid") != "grid":
            said = "the transfer check needs the same points at every width: sampler = 'grid'"
            raise FieldError("grow", "sampler", said)
        sweeps |= bases(*widths.check[::-1]) | grown(*widths.check[::-1])
        pairs = [f"{width} → {width * k}" for width in (widths.check[0], widths.check[-1])]
        title = f"does what is tuned at {pairs[0]} hold at {pairs[1]}?"
        tuned = [tune, *(f"grow-{width}" for width in widths.check)]
        asked: Tables = {"ask": "transfer", "of": tuned[1:]}
    else:
        ends, before = final.pop("lengths", [1.0]), f"base-{large}"
        taken = dict.fromkeys(grow.get("try", ()), f"grow-{n}")
        asked = {"ask": "saving", "of": f"grown-{large}", "against": f"fresh-{large * k}"}
        sweeps |= bases(*dict.fromkeys((n, large))) | grown(n)
        sweeps[asked["of"]] = {**final, "from": before, "growth": k, "lengths": ends, "take": taken}
        sweeps[asked["against"]] = {
            **final,
            "width": large * k,
            "lengths": [1.0],
            "take": {"lr": tune},
            "after": before,
        }
        title = f"tuned at {n} → {n * k}, used at {large} → {large * k}"
        tuned = [tune, f"grow-{n}"]
    asks = [{"ask": "tuned", "of": tuned}, {"ask": "cost"}, asked, {"ask": "points", "of": tuned}]
    translated = {
        **{key: tables[key] for key in ("seeds", "data", "training") if key in tables},
        "name": told,
        "title": f"{told}: {title}",
        "model": {**tables.get("model", {}), "width": n},
        "sweep": sweeps,
        "question": asks,
    }
    tables_of = {"grown": "final", "fresh": "final"}
    return translated, {sweep: tables_of.get(kind := sweep.partition("-")[0], kind) for sweep in sweeps}


def _stage(name: str, table: Any) -> Tables:
    """One table as a sweep's that has no size yet: lists, ranges and knobs of growth are what it tries."""
    if not isinstance(table, dict):
        raise FieldError("", name, f"expected a table [{name}]")
    listed = table.get("try", {})
    if not isinstance(listed, dict):
        raise FieldError(name, "try", "expected { knob = [values] }")
    if twice := listed.keys() & table.keys():
        raise FieldError(name, min(twice), "given beside try, which names it, too; give it once")
    tried = {
        key: value
        for key, value in table.items()
        if key in ("lr", *GROWTH_KNOBS) or (key in TRAINING_KNOBS and isinstance(value, list | dict))
    }
    rest = {key: value for key, value in table.items() if key not in tried and key != "try"}
    tried |= listed
    return {**rest, "try": tried} if tried else rest
