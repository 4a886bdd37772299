"""The sweeps of a study and how far each is: what is open, what was best, where its models lie.

Knows queues and their results; trains nothing.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from optuna.storages import BaseStorage

from mupscale.errors import GrowthError
from mupscale.study.runs.budget import Budget
from mupscale.study.runs.workload import ANY_STEPS
from mupscale.study.spec.space import Choices, Point, Space
from mupscale.study.spec.sweeps import FieldError, Sweep, only
from mupscale.study.work.queue import Queue

MOST_MORE = 4  # rates that a grid may get beyond those of the file


class Board:
    """What all workers of a study look at.

    Args:
        budget: the study with its models and data.
        storage: what all workers share.
        out: the folder for models and results.
        names: the sweeps that are to be worked off; none for all.

    Raises:
        GrowthError: no such sweep.
    """

    def __init__(self, budget: Budget, storage: BaseStorage, out: Path, names: Collection[str] = ()) -> None:
        self.budget, self.study, self.storage, self.out = budget, budget.study, storage, out
        self._queues: dict[str, Queue] = {}
        self._settled: set[str] = set()  # grids that need not get wider
        for name in names:
            if name not in self.study.sweeps:
                raise GrowthError(f"sweep {name!r}: expected some of {', '.join(self.study.sweeps)}")
        self.selected = [
            sweep
            for sweep in self.study.sweeps.values()
            if sweep.begin != "checkpoint" and (not names or sweep.name in names or sweep.extends in names)
        ]

    def queue(self, sweep: Sweep) -> Queue:
        """The queue of a sweep whose needs are met.

        Raises:
            GrowthError: it was begun with other settings.
        """
        if sweep.name not in self._queues:
            self._queues[sweep.name] = Queue(
                self.storage,
                f"{self.study.name}/{sweep.name}",
                self.space(sweep),
                sweep.search,
                settings=self._settings(sweep),
                # Others began from the best of its models, which new values might be ahead of.
                final=self.study.is_kept(sweep) and not sweep.widen,
            )
        queue = self._queues[sweep.name]
        if sweep.widen:
            queue.look_again()
        return queue

    def trials(self, sweep: Sweep) -> int:
        """How many there are of a sweep; as far as the file says, where what it needs is not done yet."""
        known = sweep.begin != "checkpoint" and self.is_open(sweep)
        return self.queue(sweep).total if known else self.study.trials(sweep)

    def space(self, sweep: Sweep) -> Space:
        """What the trials of a sweep try; a value that is taken over is always among them."""
        space = dict(sweep.tried)
        for knob, name in sweep.take.items():
            bests, tried = self.bests(self.study.sweeps[name]), space.get(knob)
            # Further seeds run at what was best at any length.
            taken = [*bests.values()] if sweep.extends else [bests[max(bests)]]
            values = {
                *(point[knob] for point in taken),
                *(tried.values if isinstance(tried, Choices) else ()),
            }
            space[knob] = Choices(tuple(sorted(values))) if len(values) > 1 else only(*values)
        if self.study.by_seed(sweep):
            space["seed"] = Choices(sweep.seeds)
        return space

    def best(self, sweep: Sweep) -> Point:
        """The best point of a finished sweep, where its runs end last; a mean over seeds.

        Raises:
            FieldError: every point diverged.
        """
        bests = self.bests(sweep)
        return bests[max(bests)]

    def bests(self, sweep: Sweep) -> dict[int, Point]:
        """The best point of a finished sweep at each of its lengths, in steps.

        Raises:
            FieldError: every point diverged.
        """
        queue, lengths = self.queue(sweep), self.budget.lengths(sweep)
        losses: dict[Any, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        for trial in queue.results():
            point = {knob: value for knob, value in queue.point(trial).items() if knob != "seed"}
            for ends in trial.user_attrs["ends"]:
                for steps in lengths:  # what was pruned, or diverged on the way, ended in none
                    loss = None if trial.value is None else dict(ends).get(steps)
                    losses[tuple(point.items())][steps].append(math.inf if loss is None else loss)
        found = {}
        for steps in lengths:
            means = {point: fmean(ended[steps]) for point, ended in losses.items()}
            best = min(means, key=means.__getitem__)
            if not math.isfinite(means[best]):
                raise FieldError(sweep.table, "lr", "every point diverged; give lower rates")
            found[steps] = dict(best)
        return found

    def trained(self, sweep: Sweep, seed: int) -> tuple[Point, Path]:
        """The knobs of the best run of a finished sweep with some seed, and where its model lies.

        Raises:
            FieldError: that run diverged.
        """
        best, seed = self.best(sweep), self.study.begun_from(sweep, seed)
        extension = self.study.extension(sweep)
        if seed not in sweep.seeds and extension is not None:
            sweep = extension
        for trial in self.queue(sweep).results():
            known = dict(zip(trial.user_attrs.get("seeds", ()), trial.user_attrs["losses"], strict=False))
            if best.items() <= trial.params.items() and known.get(seed, 0) is None:
                said = f"with seed {seed} it diverged, and others begin from it; give lower rates"
                raise FieldError(sweep.table, "lr", said)
        return best, self.folder(sweep, best, seed)

    def folder(self, sweep: Sweep, point: Point, seed: int) -> Path:
        """Where a run is trained: what tells it from others of its sweep is in the folder's name."""
        space = self.queue(sweep).space
        words = [
            f"{knob}{point[knob]:g}" if isinstance(point[knob], float) else f"{knob}{point[knob]}"
            for knob, values in space.items()
            if knob != "seed" and not (isinstance(values, Choices) and len(values.values) == 1)
        ]
        words += [f"seed{seed}"] if len(sweep.seeds) > 1 or sweep.extends else []
        place = self.out if self.study.is_kept(sweep) else self.out / "runs"
        return place / sweep.name / "-".join(words) if words else place / sweep.name

    def needs(self, sweep: Sweep) -> list[Sweep]:
        """The sweeps that must be finished before: with all seeds where their models are needed."""
        found = [self.study.sweeps[name] for name in sweep.needs]
        if sweep.source is not None and (more := self.study.extension(self.study.sweeps[sweep.source])):
            found.append(more)
        return found

    def is_open(self, sweep: Sweep) -> bool:
        """Whether all that it needs is done."""
        return all(map(self.is_finished, self.needs(sweep)))

    def is_finished(self, sweep: Sweep) -> bool:
        """Whether it and all that it needs are done."""
        if sweep.begin == "checkpoint":
            return True
        return self.is_open(sweep) and self.queue(sweep).finished and not self.beyond(sweep)

    def beyond(self, sweep: Sweep) -> Space:
        """The rates of a finished grid and those next to an edge at which the best one stands at some length.

        Empty where there are none, or as many were added as `MOST_MORE`.
        """
        values = self.queue(sweep).space.get("lr")
        if not sweep.widen or sweep.name in self._settled or not isinstance(values, Choices):
            return {}
        rates, begun = [float(value) for value in values.values], sweep.tried["lr"]
        best = {point["lr"] for point in self.bests(sweep).values()}
        more = [edge * edge / inner for edge, inner in (rates[:2], rates[:-3:-1]) if edge in best]
        if not more or (isinstance(begun, Choices) and len(rates) - len(begun.values) >= MOST_MORE):
            self._settled.add(sweep.name)
            return {}
        return {"lr": Choices(tuple(sorted([*rates, *(float(f"{rate:.3g}") for rate in more)])))}

    def _settings(self, sweep: Sweep) -> dict[str, Any]:
        """What else fixes the trials of a sweep, and the models that it begins from."""
        study, budget = self.study, self.budget
        own = study.model.file and study.file.parent / study.model.file
        return {
            "begin": sweep.begin,
            "config": asdict(budget.config(sweep, ANY_STEPS)) | {"steps": budget.steps(sweep)},
            "lengths": budget.lengths(sweep),
            "constant": sweep.constant,
            "line": [self._settings(before) for before in list(study.line(sweep))[:1]],
            "width": budget.width(sweep),
            **({"layers": budget.layers(sweep)} if budget.layers(sweep) is not None else {}),
            "narrow": budget.workload.narrow,
            "after": sweep.after,
            "seeds": sweep.seeds,
            "growth_seed": study.growth_seed,
            "model": asdict(study.model),
            # By their content: a file may change under its name.
            **({"to": _text_of(study.file.parent / sweep.to)} if sweep.to is not None else {}),
            "model_config": _text_of(own) if own else None,
            "weights": budget.weights if study.model.checkpoint else None,
            "data": budget.workload.data.about,
        }


def _text_of(config: Path) -> str:
    """Of a config.json, or the one in a folder."""
    return (config / "config.json" if config.is_dir() else config).read_text()
