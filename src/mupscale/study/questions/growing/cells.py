"""The numbers of the map: what each start takes against training from scratch, budget by budget.

Budgets are FLOPs of the wide training, counted in steps of the model from scratch: so the narrow model,
simply continued, stands where its training cost as much. Every number is found seed by seed, a start's run
against the run from scratch with its seed. Between two lengths the final loss is taken as linear in the
logarithm of the FLOPs; beyond them there are bounds only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np

from mupscale.study.growing_pays import NEAR
from mupscale.study.questions.reading import (
    Row,
    best_row,
    flops_before,
    line_of,
    point_at,
    steps_to_reach,
    tuning_of,
)
from mupscale.study.questions.saving import BOUNDS
from mupscale.study.spec.growth import recipe_of

Bounded = tuple[float, str]  # a number, and the sign before it where it is but a bound


@dataclass(frozen=True)
class Estimate:
    """A number found seed by seed.

    Attributes:
        by_seed: the numbers.
        sign: before them, where some are bounds; ``?`` where these are of both kinds: nothing is known.
    """

    by_seed: Mapping[int, float]
    sign: str = ""

    @classmethod
    def of(cls, found: Mapping[int, Bounded]) -> Estimate:
        """From the numbers of all seeds and their signs."""
        signs = {sign for _, sign in found.values()} - {""}
        sign = "?" if len(signs) > 1 else next(iter(signs), "")
        return cls({seed: number for seed, (number, _) in found.items()}, sign)

    @property
    def mean(self) -> float | None:
        """Over the seeds; None where nothing is known."""
        return None if self.sign == "?" else fmean(self.by_seed.values())

    @property
    def spread(self) -> float | None:
        """One standard deviation; None for one seed, and for bounds."""
        return stdev(self.by_seed.values()) if len(self.by_seed) > 1 and not self.sign else None

    def minus(self, other: Estimate) -> Estimate:
        """The difference, seed by seed; the other has no bounds."""
        shared = [seed for seed in self.by_seed if seed in other.by_seed]
        return Estimate({seed: self.by_seed[seed] - other.by_seed[seed] for seed in shared}, self.sign)

    def over(self, number: float) -> Estimate:
        """The same, divided."""
        return Estimate({seed: value / number for seed, value in self.by_seed.items()}, self.sign)

    def plus(self, number: float | None) -> float | None:
        """The mean and something that all seeds have in common; None where one of them is not known."""
        return None if self.mean is None or number is None else self.mean + number


def is_below(one: Estimate, other: Estimate) -> bool:
    """Whether it is by more than a deviation: of the difference, seed by seed."""
    lead = other.minus(one)
    return fmean(lead.by_seed.values()) > (lead.spread or 0.0)


@dataclass(frozen=True)
class Ends:
    """Where the runs of a sweep end, each length at its best point; the shortest first.

    Attributes:
        steps: of the model from scratch, for as many FLOPs.
        losses: by seed, of those that ran at all of these points.
        edges: knobs of these points that stand at the edge of what was tried.
    """

    steps: Sequence[float]
    losses: Mapping[int, Sequence[float]]
    edges: Sequence[Sequence[str]]

    @classmethod
    def of(cls, sweep: Row, step_flops: int) -> Ends:
        """Those of a sweep; in steps that take so many FLOPs."""
        ends = sweep["best_ends"]
        by_end = [
            dict(zip((point_at(sweep, end["point"]) or {})["seeds"], end["losses"], strict=True))
            for end in ends
        ]
        seeds = sorted(set(by_end[0]).intersection(*by_end)) if ends else []
        return cls(
            [end["steps"] * sweep["flops_per_step"] / step_flops for end in ends],
            {seed: [losses[seed] for losses in by_end] for seed in seeds},
            [end["at_edge"] for end in ends],
        )

    def loss(self, seed: int, steps: float) -> Bounded:
        """After so many steps; above ("> ") that of the shortest length, below ("< ") that of the longest."""
        loss = np.interp(math.log(steps), np.log(self.steps), self.losses[seed])
        sign = "> " if steps * NEAR < self.steps[0] else "< " if steps > self.steps[-1] * NEAR else ""
        return float(loss), sign

    def reach(self, seed: int, loss: float) -> Bounded:
        """The steps after which it is down to a loss, as `steps_to_reach` says."""
        lengths = zip(self.steps, self.losses[seed], strict=True)
        steps, how = steps_to_reach(list(lengths), loss)  # type: ignore[arg-type]
        return steps, BOUNDS[how][0]

    def edges_around(self, *places: float | None) -> set[str]:
        """The knobs at an edge at the lengths between which some numbers of steps lie."""
        found: set[str] = set()
        for steps in places:
            if steps is not None:
                below = [
                    edges for at, edges in zip(self.steps, self.edges, strict=True) if at <= steps * NEAR
                ]
                above = [
                    edges for at, edges in zip(self.steps, self.edges, strict=True) if at * NEAR >= steps
                ]
                found.update(*below[-1:], *above[:1])
        return found


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A start, from a narrow model trained so far, at a budget of the wide training.

    Attributes:
        start: the names of its sweeps, less what stands behind the last ``-``.
        begin: how its runs begin: ``grow`` or ``continue``.
        recipe: options of `mupscale grow` that grow as it does; empty for one that is not grown.
        narrow_ratio, ratio: tokens per parameter of the narrow model, and of the wide one from scratch.
        factor: the wide model's parameters over the narrow one's.
        loss, scratch: at this budget, of the start and from scratch.
        share: FLOPs in which the start comes down to ``scratch``, over those from scratch.
        narrow: the training of the narrow model, and of all before it, over the same; None: not known.
        tuning: over the same, what it cost to find the values that the start takes from other sweeps
            (`tuning_of`), and all runs of its own sweep but those of the best point, one a seed. All seeds
            together; what tuning from scratch cost is not set against it.
        times: FLOPs in which training from scratch comes down to ``loss``, over the start's own.
        gain: what the loss from scratch is above ``loss`` at equal FLOPs in total, the narrow model counted.
        at_edge: knobs whose best value, where a number here goes by it, stands at the edge of its grid.
    """

    start: str
    begin: str
    recipe: str
    narrow_ratio: float
    ratio: float
    factor: float
    loss: Estimate
    scratch: Estimate
    share: Estimate
    narrow: float | None
    tuning: float
    times: Estimate
    gain: Estimate | None
    at_edge: tuple[str, ...]

    @property
    def place(self) -> tuple[float, float]:
        """Tokens per parameter of the narrow and of the wide model."""
        return self.narrow_ratio, self.ratio

    @property
    def with_narrow(self) -> float | None:
        """The share with the narrow model's training counted in."""
        return self.share.plus(self.narrow)

    @property
    def with_tuning(self) -> float | None:
        """The same with the tuning, too."""
        return None if self.narrow is None else self.share.plus(self.narrow + self.tuning)

    def to_row(self) -> dict[str, Any]:
        """Plain values."""
        gain = self.gain or Estimate({}, "?")
        return {
            "start": self.start,
            "begin": self.begin,
            "recipe": self.recipe,
            "narrow_tokens_per_parameter": self.narrow_ratio,
            "tokens_per_parameter": self.ratio,
            "factor": self.factor,
            "loss": self.loss.mean,
            "loss_spread": self.loss.spread,
            "scratch_loss": self.scratch.mean,
            "scratch_spread": self.scratch.spread,
            "share": self.share.mean,
            "share_spread": self.share.spread,
            "with_narrow": self.with_narrow,
            "with_tuning": self.with_tuning,
            "sign": self.share.sign,
            "scratch_times": self.times.mean,
            "scratch_times_spread": self.times.spread,
            "scratch_times_sign": self.times.sign,
            "gain_at_equal_total": gain.mean,
            "gain_spread": gain.spread,
            "gain_sign": gain.sign,
            "seeds": len(self.loss.by_seed),
            "at_edge": list(self.at_edge),
        }


def cells_of(results: Row, sweeps: Iterable[Row], scratch: Row) -> list[Cell]:
    """Every cell that is known, sweep by sweep, the shortest budget first.

    Budgets are those at which training from scratch ended. Seeds count that ran, in both sweeps, at the best
    point of every length.
    """
    return [cell for sweep in sweeps if sweep["source"] for cell in _cells(results, sweep, scratch)]


def _cells(results: Row, sweep: Row, scratch: Row) -> Iterator[Cell]:
    step_flops = scratch["flops_per_step"]
    mine, theirs = (Ends.of(each, step_flops) for each in (sweep, scratch))
    seeds = [seed for seed in mine.losses if seed in theirs.losses]
    narrow, *_ = line = [*line_of(results, sweep)]
    seen = sum(
        each["steps"] * each["items_per_step"] for each in line if each["parameters"] == narrow["parameters"]
    )
    flops, best = flops_before(results, sweep), best_row(sweep)
    deeper = (sweep.get("layers") or 1) / (sweep.get("from_layers") or 1)
    before = None if flops is None else flops / step_flops
    others = sum(row["steps"] for row in sweep["points"] if row is not best)
    tuning = (tuning_of(results, [sweep]) + others * sweep["flops_per_step"]) / step_flops
    for budget in theirs.steps if seeds else ():
        loss = Estimate.of({seed: mine.loss(seed, budget) for seed in seeds})
        if loss.sign:
            continue
        goal = Estimate.of({seed: theirs.loss(seed, budget) for seed in seeds})
        needed = Estimate.of({seed: mine.reach(seed, goal.by_seed[seed]) for seed in seeds})
        from_scratch = Estimate.of({seed: theirs.reach(seed, loss.by_seed[seed]) for seed in seeds})
        total = None if before is None else budget + before
        equal = None if total is None else Estimate.of({seed: theirs.loss(seed, total) for seed in seeds})
        edges = mine.edges_around(budget, needed.mean)
        edges |= theirs.edges_around(budget, from_scratch.mean, total)
        yield Cell(
            start=start_of(sweep),
            begin=sweep["begin"],
            recipe=recipe_of(best["point"], deeper) if best and sweep["begin"] == "grow" else "",
            narrow_ratio=_rounded(seen / narrow["parameters"]),
            ratio=_rounded(budget * scratch["items_per_step"] / scratch["parameters"]),
            factor=scratch["parameters"] / narrow["parameters"],
            loss=loss,
            scratch=goal,
            share=needed.over(budget),
            narrow=None if before is None else before / budget,
            tuning=tuning / budget,
            times=from_scratch.over(budget),
            gain=equal and equal.minus(loss),
            at_edge=tuple(sorted(edges)),
        )


def start_of(sweep: Row) -> str:
    """The name that the sweeps of a start share.

    >>> start_of({"name": "expand-320"}), start_of({"name": "grown"})
    ('expand', 'grown')
    """
    name: str = sweep["name"]
    return name.rpartition("-")[0] or name


def _rounded(ratio: float) -> float:
    """Without the little that whole steps put to it or take away.

    >>> _rounded(4.983), _rounded(2.4995), _rounded(1.25), _rounded(319.8)
    (5.0, 2.5, 1.25, 320.0)
    """
    short = float(f"{ratio:.2g}")
    return short if short / NEAR < ratio < short * NEAR else float(f"{ratio:.3g}")
