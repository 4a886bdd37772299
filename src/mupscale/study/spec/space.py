"""What is tuned: knobs, the values that each may take, the points of a grid. Knows numbers and words only."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mupscale.errors import GrowthError

Value = float | int | str
Point = dict[str, Value]

SAMPLERS = ("grid", "random", "tpe")
PRUNERS = ("none", "median", "asha")


@dataclass(frozen=True)
class Choices:
    """A few values, in ascending order where they are numbers."""

    values: tuple[Value, ...]

    @property
    def numeric(self) -> bool:
        """Whether all are numbers."""
        return all(isinstance(value, int | float) for value in self.values)


@dataclass(frozen=True)
class Range:
    """Any number from ``low`` to ``high``; on a logarithmic scale if ``log``."""

    low: float
    high: float
    log: bool


Space = dict[str, Choices | Range]


def read_knob(value: Any, *, positive: bool = False) -> Choices | Range:
    """Values from TOML: one value, a list of them, or ``{low, high, log}``.

    Args:
        positive: numbers must be above 0; otherwise 0 is allowed, too.

    Raises:
        GrowthError: says what was expected; the caller names the field.

    >>> read_knob([1, 0.5]), read_knob({"low": 1e-3, "high": 1e-2, "log": True})
    (Choices(values=(0.5, 1)), Range(low=0.001, high=0.01, log=True))
    """
    if isinstance(value, Mapping):
        if not {"low", "high"} <= value.keys() <= {"low", "high", "log"}:
            raise GrowthError("expected a list of values, or { low = …, high = …, log = true }")
        low, high, log = value["low"], value["high"], value.get("log", False)
        if not isinstance(log, bool):
            raise GrowthError(f"log is {log!r}, expected true or false")
        if not all(is_number(number) for number in (low, high)) or not low < high < math.inf:
            raise GrowthError(f"low {low} and high {high}: expected two numbers, the lower one first")
        if low < 0 or ((log or positive) and low == 0):
            raise GrowthError(f"low is {low}, expected more than 0")
        return Range(float(low), float(high), bool(log))
    values = list(value) if isinstance(value, list | tuple) else [value]
    if not values:
        raise GrowthError("expected at least one value")
    if len(set(map(str, values))) < len(values):
        raise GrowthError(f"{', '.join(map(str, values))}: the same value twice; give each once")
    if all(is_number(v) for v in values):
        for number in values:
            if not (number > 0 if positive else number >= 0) or not math.isfinite(number):
                raise GrowthError(f"{number}: expected numbers {'above 0' if positive else 'of 0 or more'}")
        return Choices(tuple(sorted(values)))
    if positive or not all(isinstance(v, str) for v in values):
        raise GrowthError(f"{values}: expected {'numbers' if positive else 'numbers alone or words alone'}")
    return Choices(tuple(values))


def grid(space: Space) -> list[Point]:
    """Every combination, the first knob changing slowest.

    >>> grid({"lr": Choices((1, 2)), "noise": Choices((0, 1))})[1]
    {'lr': 1, 'noise': 1}
    """
    axes = []
    for values in space.values():
        assert isinstance(values, Choices)
        axes.append(values.values)
    return [dict(zip(space, point, strict=True)) for point in itertools.product(*axes)]


def at_edge(point: Point, space: Space) -> list[str]:
    """The knobs of a point that stand at the lowest or highest value tried, where more than two were."""
    found = []
    for name, values in space.items():
        if isinstance(values, Choices) and values.numeric and len(values.values) > 2:
            if point[name] in (values.values[0], values.values[-1]):
                found.append(name)
        elif isinstance(values, Range):
            scale = math.log if values.log else float
            place = (scale(float(point[name])) - scale(values.low)) / (scale(values.high) - scale(values.low))
            if not 0.05 < place < 0.95:
                found.append(name)
    return found


def show(value: Any) -> str:
    """A value of a knob; – for none.

    >>> show(0.0040000001), show("balanced"), show(None)
    ('0.004', 'balanced', '–')
    """
    return "–" if value is None else f"{value:.4g}" if isinstance(value, int | float) else str(value)


def show_point(point: Mapping[str, Any]) -> str:
    """Knobs and values in a line.

    >>> show_point({"lr": 0.004, "noise": 1.0})
    'lr 0.004, noise 1'
    """
    return ", ".join(f"{knob} {show(value)}" for knob, value in point.items())


def is_number(value: Any) -> bool:
    """Whether it is one; true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def json_safe(value: Any) -> Any:
    """Plain data without infinities, which JSON does not know: they become None.

    >>> json_safe({"loss": math.inf, "curve": [1.5, math.nan]})
    {'loss': None, 'curve': [1.5, None]}
    """
    if isinstance(value, Mapping):
        return {key: json_safe(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
