"""The procedure: which sweeps a study has, what each needs, and how far each is.

    scratch-n   learning rate of the narrow model, from scratch
    base-n, -N  the models to grow, trained at the best rate
    grow-n      n → k·n over learning rate, noise and whatever else is declared
    grown-N     N → k·N with the best point, trained for several lengths
    fresh-N     k·N from scratch, to compare with

Knows queues and their results; trains nothing.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from optuna.storages import BaseStorage

from mupscale.errors import GrowthError
from mupscale.study.spec.space import Choices, Point, Space
from mupscale.study.tune.spec import FieldError, Search, Stage, Study
from mupscale.study.tune.study_file import located
from mupscale.study.work.queue import Queue

STAGES = ("scratch", "base", "grow", "final")


@dataclass(frozen=True)
class Sweep:
    """One sweep of the procedure; what its trials are follows from its kind.

    Attributes:
        kind: scratch, base, grow, grown or fresh.
        width: of the narrow model, or of the one trained from scratch.
        needs: sweeps that must be finished before.
    """

    kind: str
    width: int
    needs: tuple[Sweep, ...] = ()

    @property
    def name(self) -> str:
        """Kind and width."""
        return f"{self.kind}-{self.width}"

    @property
    def stage(self) -> str:
        """The table of the study file that it belongs to."""
        return "final" if self.kind in ("grown", "fresh") else self.kind

    def spec(self, study: Study) -> Stage:
        """That table."""
        found: Stage = getattr(study, self.stage)
        return found

    @property
    def by_seed(self) -> bool:
        """Whether every seed is a trial of its own; else a trial averages over them."""
        return self.kind in ("base", "grown", "fresh")


def procedure(study: Study, *, check_transfer: bool = False) -> list[Sweep]:
    """All sweeps, in the order in which they should be worked off.

    >>> from mupscale.study.tune.study_file import read_study
    >>> from pathlib import Path
    >>> [sweep.name for sweep in procedure(read_study(Path("examples/studies/llama_cpu.toml")))]
    ['scratch-32', 'base-32', 'base-128', 'grow-32', 'grown-128', 'fresh-256']
    """
    widths = study.widths
    scratch = Sweep("scratch", widths.narrow)
    if check_transfer:
        if len(widths.check) < 2:
            raise located(
                study.file, FieldError("widths", "check", "expected two or more widths to check transfer at")
            )
        if study.grow.search.sampler != "grid":
            said = "the transfer check needs the same points at every width: sampler = 'grid'"
            raise located(study.file, FieldError("grow", "sampler", said))
        bases = [Sweep("base", width, (scratch,)) for width in reversed(widths.check)]
        return [scratch, *bases, *(Sweep("grow", base.width, (base,)) for base in bases)]
    narrow = Sweep("base", widths.narrow, (scratch,))
    large = Sweep("base", widths.large, (scratch,))
    grow = Sweep("grow", widths.narrow, (narrow,))
    grown = Sweep("grown", widths.large, (large, grow))
    fresh = Sweep("fresh", widths.large * widths.growth, (scratch,))
    return list(dict.fromkeys([scratch, narrow, large, grow, grown, fresh]))


class Board:
    """The sweeps of a study and how far each is.

    Args:
        study: what is swept.
        about: which data, in words; other data make other sweeps.
        storage: what all workers share.
        sweeps: from `procedure`.
    """

    def __init__(self, study: Study, about: str, storage: BaseStorage, sweeps: Sequence[Sweep]) -> None:
        self.study, self.about, self.storage, self.sweeps = study, about, storage, sweeps
        self._queues: dict[str, Queue] = {}

    def queue(self, sweep: Sweep) -> Queue:
        """The queue of a sweep whose needs are met."""
        if sweep.name not in self._queues:
            study, stage = self.study, sweep.spec(self.study)
            grid = Search()
            self._queues[sweep.name] = Queue(
                self.storage,
                f"{study.name}/{sweep.name}",
                self.space(sweep),
                stage.search if sweep.kind in ("scratch", "grow") else grid,
                settings=self._settings(sweep),
            )
        return self._queues[sweep.name]

    def space(self, sweep: Sweep) -> Space:
        """What the trials of a sweep try."""
        study, stage = self.study, sweep.spec(self.study)
        seeds: Space = {"seed": Choices(tuple(range(stage.seeds)))}
        if sweep.kind == "scratch":
            return stage.space
        if sweep.kind == "base":
            return {"lr": study.base.space.get("lr") or _only(self._best("scratch")["lr"]), **seeds}
        if sweep.kind == "grow":
            return stage.space
        transferred = self._best("grow" if sweep.kind == "grown" else "scratch")
        rates = stage.space.get("lr")
        # The transferred rate is always among those tried.
        tried = {transferred["lr"], *(rates.values if isinstance(rates, Choices) else ())}
        rest = {name: _only(value) for name, value in transferred.items() if name != "lr"}
        return {"lr": Choices(tuple(sorted(tried))), **rest, **seeds}

    def _best(self, kind: str) -> Point:
        """The best point at the narrow width."""
        sweep = next(s for s in _with_needs(self.sweeps) if s.kind == kind and s.width == self._narrow)
        queue = self.queue(sweep)
        finite = [t for t in queue.results() if t.value is not None and math.isfinite(t.value)]
        if not finite:
            raise located(
                self.study.file,
                FieldError(kind, "lr", "every point diverged; give lower rates"),
            )
        return queue.point(min(finite, key=lambda trial: trial.value))

    @property
    def _narrow(self) -> int:
        return self.study.widths.narrow

    def _settings(self, sweep: Sweep) -> dict[str, Any]:
        study, stage = self.study, sweep.spec(self.study)
        return {
            "config": asdict(study.config(stage)),
            "base": asdict(study.config(study.base)) if sweep.kind in ("grow", "grown") else {},
            "seeds": stage.seeds,
            "model": study.model,
            # By its content: a file may change under its name.
            "model_config": (study.file.parent / own).read_text() if (own := study.model.config) else None,
            "narrow": study.widths.narrow,
            "growth": study.widths.growth,
            "lengths": stage.lengths if sweep.kind == "grown" else (),
            "data": self.about,
        }

    def is_open(self, sweep: Sweep) -> bool:
        """Whether all that it needs is done."""
        return all(map(self.is_finished, sweep.needs))

    def is_finished(self, sweep: Sweep) -> bool:
        """Whether it and all that it needs are done."""
        return self.is_open(sweep) and self.queue(sweep).finished


def selected(sweeps: Sequence[Sweep], stages: Collection[str]) -> list[Sweep]:
    """The sweeps of some stages; all, where none is named.

    Raises:
        GrowthError: no such stage.
    """
    for stage in stages:
        if stage not in STAGES:
            raise GrowthError(f"stage {stage!r}: expected some of {', '.join(STAGES)}")
    return [sweep for sweep in sweeps if not stages or sweep.stage in stages]


def _with_needs(sweeps: Sequence[Sweep]) -> Iterator[Sweep]:
    for sweep in sweeps:
        yield from _with_needs(sweep.needs)
        yield sweep


def _only(value: Any) -> Choices:
    return Choices((value,))
