"""What growing was measured to take: looked up in a map, that of `growing_pays.json` or one like it.

A map has ``cells``, as a study's question `map` gives them; ``best``, the start that is best by its rule;
``narrow``, the parameters of the smallest model; and in words ``about``, ``model`` and ``command``: what it
is, of which models, and how to make it again. Beside that of widths, ``layers`` may be another one, of
growing in depth, ``larger`` one of larger models, and ``by4`` one of growing by 4.

Between its cells shares are interpolated, beyond them nothing is said. Knows plain data only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from mupscale.errors import GrowthError

ALONG = ("width", "layers")
BESIDE = ("larger", "by4")  # what a map may hold: maps of models of other sizes, grown along the same axis
LARGEST_STEP = 1.25  # from the factor in parameters that was measured to the one asked about
NEAR = 1.02  # budgets and ratios that differ by less are one: steps are whole
Map = Mapping[str, Any]
Cell = Mapping[str, Any]


class OutsideMapError(Exception):
    """Says in which way a place lies outside of what was measured."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a start takes of the FLOPs from scratch to the same loss.

    Attributes:
        start, begin: which, and whether it is grown (``grow``) or the narrow model continued.
        recipe: options of `mupscale grow` that grow as it does.
        factor: in parameters, at which it was measured.
        share, with_narrow: the wide training alone; the narrow model's counted in (None: not known).
        spread: one standard deviation of either; None where there is none for all cells that it goes by.
        sign: ``≤ `` or ``> `` where these are bounds.
        seeds: how many it goes by at least.
        at_edge: knobs whose best value stands at the edge of what was tried.
    """

    start: str
    begin: str
    recipe: str
    factor: float
    share: float
    with_narrow: float | None
    spread: float | None
    sign: str
    seeds: int
    at_edge: tuple[str, ...]


def packaged(along: str = "width") -> Map:
    """The map that comes with the package, of growing along width or layers; empty where none does.

    Raises:
        GrowthError: neither of them.
    """
    if along not in ALONG:
        raise GrowthError(f"along {along!r}: expected {' or '.join(ALONG)}")
    file = files("mupscale.study") / "growing_pays.json"
    table: Map = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return table if along == "width" else table.get(along, {})


def around(table: Map, narrow: float, **place: float) -> list[tuple[Map, list[Found]]]:
    """What the maps say that hold a place, the one of models nearest in size first.

    Args:
        table: the map, and those beside it.
        narrow: parameters of the narrow model.
        place: as of `look_up`.

    Raises:
        OutsideMapError: no map holds it; the reason of the one whose factor is nearest.
    """
    holding, refusals = [], []
    for each in (table, *(table[name] for name in BESIDE if name in table)):
        try:
            holding.append((each, look_up(each, **place)))
        except OutsideMapError as outside:
            refusals.append((_step(each, place["factor"]), outside))
    if not holding:
        raise min(refusals, key=lambda one: one[0])[1]
    return sorted(holding, key=lambda one: abs(math.log(one[0]["narrow"] / narrow)))


def look_up(table: Map, *, factor: float, narrow_ratio: float, ratio: float) -> list[Found]:
    """What the map says of every start that was measured around a place, the best by its rule first.

    Args:
        table: the map.
        factor: the wide model's parameters over the narrow one's.
        narrow_ratio, ratio: tokens per parameter of the narrow model, and of the wide one.

    Raises:
        OutsideMapError: the place is not within what was measured.
    """
    cells = table.get("cells", ())
    if not cells:
        raise OutsideMapError("no map of what was measured comes with this version")
    factors = sorted({cell["factor"] for cell in cells})
    nearest = min(factors, key=lambda each: abs(math.log(each / factor)))
    cells = [cell for cell in cells if cell["factor"] == nearest]
    outside = []
    if _step(table, factor) > math.log(LARGEST_STEP):
        outside.append(f"×{factor:.3g} in parameters ({', '.join(f'×{each:.3g}' for each in factors)})")
    asked = {"narrow_tokens_per_parameter": narrow_ratio, "tokens_per_parameter": ratio}
    for (key, value), which in zip(asked.items(), ("narrow", "wide"), strict=True):
        known = sorted({cell[key] for cell in cells})
        if not _around(known, value):
            there = f"{known[0]:g}" + (f" to {known[-1]:g}" if len(known) > 1 else " alone")
            outside.append(f"{value:.3g} tokens per parameter of the {which} model ({there})")
    if outside:
        raise OutsideMapError(f"the map does not reach to {' or '.join(outside)}")
    starts: dict[str, dict[tuple[float, float], Cell]] = {}
    for cell in cells:
        place = cell["narrow_tokens_per_parameter"], cell["tokens_per_parameter"]
        starts.setdefault(cell["start"], {})[place] = cell
    found = [one for known in starts.values() if (one := _interpolated(known, narrow_ratio, ratio))]
    if not any(one.begin == "grow" for one in found):
        raise OutsideMapError("the map has a gap there")
    return sorted(found, key=lambda one: one.start != table.get("best"))


def judged(found: Sequence[Found], model: str) -> tuple[str, list[str]]:
    """What to do by the first grown start, "grow" or "train from scratch", and why.

    Args:
        found: what `look_up` found.
        model: of which models it was measured, in words.
    """
    best, *others = (one for one in found if one.begin == "grow")
    share = f"{best.sign}{best.share:.0%}" + _deviation(best)
    reasons = [
        f"Grown by `mupscale grow {best.recipe}`, the target takes {share} of the FLOPs from scratch to the "
        f"same loss: measured at ×{best.factor:.3g} in parameters, {best.seeds} "
        f"seed{'s' * (best.seeds > 1)}, with {model}."
    ]
    if best.with_narrow is not None:
        counted = f"{best.sign}{best.with_narrow:.0%}" + _deviation(best)
        reasons.append(
            f"With the narrow model's own training counted in, {counted}: {_whether_it_pays(best)}."
        )
    if best.spread is not None and abs(1 - best.share) <= best.spread:
        reasons.append("Without it the difference from training from scratch is within a deviation.")
    if best.at_edge:
        reasons.append(f"Its best {', '.join(best.at_edge)} stood at the edge there: it may do better yet.")
    reasons += [
        f"`mupscale grow {one.recipe}` takes {one.share:.0%} ± {one.spread:.0%} here, less by more than a "
        "deviation."
        for one in others
        if one.spread is not None and best.spread is not None and not one.sign and not best.sign
        if one.share + max(one.spread, best.spread) < best.share
    ]
    for one in found:
        if one.begin == "continue":
            instead = ""
            if one is continued_instead(found):
                instead = ", less by more than a deviation: for so short a run, continue the narrow model"
            reasons.append(
                f"The narrow model, simply continued, takes {one.sign}{one.share:.0%} of the FLOPs{instead}."
            )
    pays = best.sign == "≤ " or (best.share < 1 and not best.sign)  # "> ": it never got there
    verdict = "grow" if pays else "train from scratch"
    return verdict, [f"{reason} [map]" for reason in reasons]


def continued_instead(found: Sequence[Found]) -> Found | None:
    """The narrow model, simply continued, where it takes less than every start that grows it.

    By more than a deviation: of what is known to be no more, against what is known to be no less.
    """
    grown = [one for one in found if one.begin == "grow"]
    for one in found:
        if one.begin == "continue" and one.sign != "> ":
            spreads = [max(one.spread or 0.0, other.spread or 0.0) for other in grown]
            if all(
                other.sign != "≤ " and one.share + spread < other.share
                for other, spread in zip(grown, spreads, strict=True)
            ):
                return one
    return None


def elsewhere(found: Sequence[Found], model: str) -> str:
    """What the best start took with models of another size."""
    best = next(one for one in found if one.begin == "grow")
    counted = ""
    if best.with_narrow is not None:
        counted = f" ({best.sign}{best.with_narrow:.0%} with the narrow one's)"
    return (
        f"With {model} `mupscale grow {best.recipe}` took {best.sign}{best.share:.0%}{counted}: "
        "what is gained depends on the size, too. [map]"
    )


def longest(table: Map) -> str:
    """What growing took in the longest training of the largest models; "" without a map."""
    largest = table.get("larger", table)
    known = [cell for cell in largest.get("cells", ()) if cell["share"] is not None]
    grown = [cell for cell in known if cell["begin"] == "grow"]
    if not grown:
        return ""
    start = min(grown, key=lambda cell: cell["start"] != largest["best"])["start"]  # else the simplest
    cells = [cell for cell in grown if cell["start"] == start]
    cell = max(cells, key=lambda c: (c["tokens_per_parameter"], -c["narrow_tokens_per_parameter"]))
    ratios = f"{cell['narrow_tokens_per_parameter']:g} and {cell['tokens_per_parameter']:g}"
    return (
        f"How long a head start lasts: with {largest['model']}, at {ratios} tokens per parameter, "
        f"`mupscale grow {cell['recipe']}` took {cell['sign']}{cell['share']:.0%} of the FLOPs from scratch."
    )


def _step(table: Map, factor: float) -> float:
    """How far a factor is from the nearest that was measured, in logarithms."""
    return min((abs(math.log(cell["factor"] / factor)) for cell in table.get("cells", ())), default=math.inf)


def _deviation(one: Found) -> str:
    return "" if one.spread is None else f" ± {one.spread:.0%}"


def _whether_it_pays(one: Found) -> str:
    """Of a share with the narrow model's training in it, that is known."""
    assert one.with_narrow is not None
    if one.spread is not None and abs(1 - one.with_narrow) <= one.spread:
        return "that is within a deviation of 100%, so whether it pays cannot be told"
    if one.sign == "≤ " and one.with_narrow >= 1:
        return "whether that pays is not known"
    return "that pays" if one.with_narrow < 1 and one.sign != "> " else "that does not pay"


def _interpolated(
    cells: Mapping[tuple[float, float], Cell], narrow_ratio: float, ratio: float
) -> Found | None:
    """One start between up to four of its cells, linear in logarithms; None where one is missing.

    The narrow model's part goes as a power of both ratios, and is interpolated by itself.
    """
    columns = _around(sorted({column for _, column in cells}), ratio)
    rows = sorted({row for row, _ in cells if all((row, column) in cells for column, _ in columns)})
    corners = [
        (cells[row, column], down * across)
        for row, down in _around(rows, narrow_ratio)
        for column, across in columns
    ]
    signs = {cell["sign"] for cell, _ in corners} - {""}
    if not corners or len(signs) > 1 or any(cell["share"] is None for cell, _ in corners):
        return None
    share = _mean([(cell["share"], weight) for cell, weight in corners])
    narrow = None
    if all(cell["with_narrow"] is not None for cell, _ in corners):
        narrow = _mean([(cell["with_narrow"] - cell["share"], weight) for cell, weight in corners])
    spreads = [cell["share_spread"] for cell, _ in corners]
    first = corners[0][0]
    return Found(
        start=first["start"],
        begin=first["begin"],
        recipe=first["recipe"],
        factor=first["factor"],
        share=share,
        with_narrow=None if narrow is None else share + narrow,
        spread=None if None in spreads else max(spreads),
        sign=next(iter(signs), ""),
        seeds=min(cell["seeds"] for cell, _ in corners),
        at_edge=tuple(sorted({knob for cell, _ in corners for knob in cell["at_edge"]})),
    )


def _around(known: Sequence[float], value: float) -> list[tuple[float, float]]:
    """The neighbours of a value among those known, ascending, with their weights; none outside.

    >>> _around([5, 20], 10), _around([5, 20], 20), _around([5, 20], 21)
    ([(5, 0.5), (20, 0.5)], [(20, 1.0)], [])
    """
    if (same := next((each for each in known if each / NEAR <= value <= each * NEAR), None)) is not None:
        return [(same, 1.0)]
    if not known or not known[0] < value < known[-1]:
        return []
    below = max(each for each in known if each < value)
    above = min(each for each in known if each > value)
    way = math.log(value / below) / math.log(above / below)
    return [(below, 1 - way), (above, way)]


def _mean(weighted: Sequence[tuple[float, float]]) -> float:
    """Geometric, of numbers with weights."""
    return math.exp(sum(weight * math.log(number) for number, weight in weighted))
