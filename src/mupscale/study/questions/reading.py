"""Looking things up in the results of a study, and when training gets down to a loss. Knows plain data only.

Results may have been read back from JSON, in which a loss that is not finite is None: only ``state`` tells.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

Row = dict[str, Any]
Names = str | Sequence[str]


def sweep_of(results: Row, name: str) -> Row:
    """The sweep of that name."""
    return next(sweep for sweep in results["sweeps"] if sweep["name"] == name)


def sweeps_of(results: Row, names: Names) -> list[Row]:
    """The sweeps of these names, or of the one."""
    return [sweep_of(results, name) for name in ([names] if isinstance(names, str) else names)]


def line_of(results: Row, sweep: Row) -> Iterator[Row]:
    """What its models were before, the nearest first."""
    while sweep["source"] is not None:
        sweep = sweep_of(results, sweep["source"])
        yield sweep


def best_row(sweep: Row) -> Row | None:
    """The point with the lowest loss; None where there is none."""
    return sweep["best"] and point_at(sweep, sweep["best"]["point"])


def point_at(sweep: Row, point: Mapping[str, Any]) -> Row | None:
    """The first row with these values; None where they were not tried."""
    return next((row for row in sweep["points"] if point.items() <= row["point"].items()), None)


def with_state(sweep: Row, state: str) -> list[Row]:
    """The points that ended so: complete, diverged or pruned."""
    return [row for row in sweep["points"] if row["state"] == state]


def tried(sweep: Row, knob: str) -> list[Any]:
    """The values of a knob, ascending."""
    return sorted({row["point"][knob] for row in sweep["points"] if knob in row["point"]})


def varied(sweep: Row) -> list[str]:
    """The knobs of which more than one value was tried."""
    return [knob for knob in sweep["knobs"] if knob != "seed" and len(tried(sweep, knob)) > 1]


def ends_of(sweep: Row, row: Row) -> list[Row]:
    """Where runs of a complete point ended with a loss, the shortest first: steps, loss, spread, losses."""
    whole = {"steps": sweep["steps"], **{key: row[key] for key in ("loss", "spread", "losses")}}
    ends = row["lengths"] or [whole]
    return [end for end in ends if end["loss"] is not None and math.isfinite(end["loss"])]


def band(end: Row) -> list[float]:
    """A mean loss, the best seed's and the worst one's."""
    return [end["loss"], min(end["losses"]), max(end["losses"])]


def flops_before(results: Row, sweep: Row) -> int | None:
    """What one run of each sweep that it came of cost; None where a checkpoint does not say."""
    spent = [source["run_flops"] for source in line_of(results, sweep)]
    return None if None in spent else sum(spent)


def tuning_of(results: Row, sweeps: Sequence[Row]) -> int:
    """What it cost to find the values that these sweeps, and those they came of, take from others.

    All runs of the sweeps whose best is taken and of those they came of count, once. Of a sweep that is in
    the line itself one run less: that one was needed anyway.
    """
    own = [sweep for asked in sweeps for sweep in (asked, *line_of(results, asked))]
    found: dict[str, int] = {}
    ahead = list(own)
    while ahead:
        for taken in sweeps_of(results, list(ahead.pop()["takes"].values())):
            for sweep in (taken, *line_of(results, taken)):
                if sweep["name"] not in found and (sweep is taken or sweep not in own):
                    found[sweep["name"]] = sweep["flops"] - (sweep["run_flops"] or 0) * (sweep in own)
                    ahead.append(sweep)
    return sum(found.values())


def steps_to_reach(lengths: Sequence[tuple[int, float]], loss: float) -> tuple[float, str]:
    """How long a run must be to end at a loss: the steps, and how they are known.

    Between two lengths that were run, the final loss is taken as linear in the logarithm of the steps.
    Nothing is extrapolated: the shortest is an upper bound ("at most"), the longest a lower ("more than").

    Args:
        lengths: steps and final loss of every length, shortest first.
        loss: the loss to reach.

    >>> steps_to_reach([(100, 4.0), (400, 2.0)], 3.0), steps_to_reach([(100, 4.0), (400, 2.0)], 1.0)
    ((200.0, 'interpolated'), (400.0, 'more than'))
    """
    if lengths[0][1] <= loss:
        return float(lengths[0][0]), "at most"
    at = first_below([(math.log(steps), end) for steps, end in lengths], loss)
    return (float(lengths[-1][0]), "more than") if at is None else (round(math.exp(at), 1), "interpolated")


def first_below(curve: Sequence[Sequence[float]], loss: float) -> float | None:
    """The first step at which a curve has fallen to a loss, linear between points; None if it never does.

    >>> first_below([(0, 4.0), (100, 3.0), (200, 2.5)], 2.75)
    150.0
    """
    if curve[0][1] <= loss:
        return float(curve[0][0])
    for (before, high, *_), (after, low, *_) in pairwise(curve):
        if low <= loss:
            return min(after, before + (after - before) * ((high - loss) / (high - low)))
    return None
