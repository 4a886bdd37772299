"""One sweep that many workers share: an Optuna study, its trials handed out exactly once.

A worker claims a trial, keeps saying that it is alive while it runs it, and tells the result. Trials of a
worker that stopped saying so go back to the queue, under the number that they had.

Knows Optuna; nothing of models or of what a trial does.
"""

from __future__ import annotations

import json
import math
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import optuna
import psutil
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.samplers import RandomSampler, TPESampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from mupscale.errors import GrowthError
from mupscale.study.spec.space import Choices, Point, Range, Space, grid
from mupscale.study.spec.sweeps import Search

BEAT_SECONDS = 10.0  # how often a worker says that it is alive
SILENCE_SECONDS = 90.0  # after how much silence it counts as dead
SIGN_SECONDS = 3.0  # longer than a read and a write of the storage take
LEASE = "worker"
Plain = Mapping[str, Any]  # what JSON can say
DONE = (TrialState.COMPLETE, TrialState.PRUNED)


class Grid(RandomSampler):  # type: ignore[misc]
    """The point of a grid whose place is the trial's number.

    A storage gives out numbers one by one, so no two workers can get the same point. (Optuna's own
    GridSampler looks which points are free, and two workers may find the same one.)
    """

    def __init__(self, points: Sequence[Point | None]) -> None:
        super().__init__()
        self.points = points

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        point = self.points[trial.number] if trial.number < len(self.points) else None
        return (point or self.points[0] or {})[param_name]  # beyond the grid: see Queue.claim


class Queue:
    """The trials of one sweep.

    Args:
        storage: from `open_storage`.
        name: of the Optuna study.
        space: knobs and their values.
        search: sampler, number of trials, pruner.
        settings: what else fixes the trials, as plain data; must be the same whenever the queue is opened.
        final: whether the space must be the same, too. Else a grid may be opened with other numbers: points
            with new ones come after those that were tried, which stay, though ``space`` may not have them.

    Raises:
        GrowthError: the storage holds this sweep with other settings.

    Example:
        >>> from mupscale.study.spec.space import Choices
        >>> queue = Queue(optuna.storages.InMemoryStorage(), "demo", {"lr": Choices((0.1, 0.2))}, Search())
        >>> while (trial := queue.claim()) is not None:
        ...     queue.tell(trial, queue.point(trial)["lr"])
        >>> queue.finished, [trial.value for trial in queue.results()]
        (True, [0.1, 0.2])
    """

    def __init__(
        self,
        storage: BaseStorage,
        name: str,
        space: Space,
        search: Search,
        *,
        settings: Plain | None = None,
        final: bool = False,
    ) -> None:
        self.name, self.space, self.search = name, space, search
        self.storage, self._settings = storage, settings
        self.study = self._open(final=final)
        self._worker = uuid.uuid4().hex
        self._heard: dict[tuple[int, str], float] = {}

    def _open(self, *, final: bool = False) -> optuna.Study:
        sampler = {  # without seeds: workers must not draw the same points
            "grid": lambda: Grid([]),
            "random": RandomSampler,
            "tpe": lambda: TPESampler(constant_liar=True),
        }[self.search.sampler]()
        pruner = {
            "none": optuna.pruners.NopPruner(),
            "median": optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1),
            "asha": optuna.pruners.SuccessiveHalvingPruner(),
        }[self.search.pruner]
        create = {"storage": self.storage, "study_name": self.name, "sampler": sampler, "pruner": pruner}
        with suppress(DuplicatedStudyError):  # another worker was faster
            optuna.create_study(**create, direction="minimize")
        study = optuna.load_study(**create)
        settings = _plain(self._settings, self.space, self.search)
        known = study.user_attrs.get("settings")
        if known is None:
            study.set_user_attr("settings", settings)
        elif known != settings and (final or not self._widen(study, json.loads(known), json.loads(settings))):
            raise GrowthError(
                f"{self.name}: was begun with other settings ({_difference(known, settings)}); "
                "give the study another name, or its results another folder"
            )
        self._places = set(range(self.search.trials or 0))
        if isinstance(sampler, Grid):
            sampler.points = study.user_attrs.get("points") or grid(self.space)
            self._places = {i for i, point in enumerate(sampler.points) if point is not None}
        return study

    def _widen(self, study: optuna.Study, known: dict[str, Any], settings: dict[str, Any]) -> bool:
        """Take up a grid of other numbers; whether it is one, and nothing else differs."""
        before, _ = known.pop("space"), settings.pop("space")
        if known != settings or self.search.sampler != "grid" or before.keys() != self.space.keys():
            return False
        old: Space = {knob: Choices(tuple(before[knob]["values"])) for knob in self.space}
        both = {knob: _together(old[knob], values) for knob, values in self.space.items()}
        if None in both.values():
            return False
        points = study.user_attrs.get("points") or grid(old)
        more = [point for point in grid(self.space) if point not in points]
        # Numbers that workers took beyond the last place are used up: by the points that one who was faster
        # has let the grid have, or, where two asked for the last place at once, by none.
        beyond = study.get_trials(deepcopy=False)[len(points) :] if more else []
        taken = [_new_point(trial, self.space, points) for trial in beyond]
        self.space = {knob: values for knob, values in both.items() if values is not None}
        study.set_user_attr("points", points + taken + [point for point in more if point not in taken])
        study.set_user_attr("settings", _plain(self._settings, self.space, self.search))
        return True

    def widen(self, space: Space) -> None:
        """Let a grid have more numbers.

        Args:
            space: all values of the knobs that get some.
        """
        self.space = {**self.space, **space}
        self.study = self._open()

    def look_again(self) -> None:
        """Take up what another worker has let the grid have."""
        if len(self.study.user_attrs.get("points", ())) > max(self._places) + 1:
            self.study = self._open()

    def results(self) -> list[FrozenTrial]:
        """The finished trials, by number."""
        trials = self.study.get_trials(deepcopy=False, states=DONE)
        return sorted((t for t in trials if t.number in self._places), key=lambda trial: trial.number)

    @property
    def total(self) -> int:
        """How many trials there are to be."""
        return len(self._places)

    @property
    def finished(self) -> bool:
        """Whether every trial is done."""
        return len(self.results()) == self.total

    def point(self, trial: optuna.Trial | FrozenTrial) -> Point:
        """What a trial tries."""
        return {name: trial.params[name] for name in self.space}

    def claim(self) -> optuna.Trial | None:
        """A trial for this worker alone; None where all are done or others have them."""
        self.give_back_abandoned()
        trials = self.study.get_trials(deepcopy=False)
        if len(trials) > max(self._places) and all(t.state != TrialState.WAITING for t in trials):
            return None
        trial = self.study.ask(self._distributions())
        if (
            trial.number not in self._places
        ):  # two workers asked for the last place at once; this one came second
            self.study.tell(trial, state=TrialState.FAIL)
            return None
        with suppress(UpdateFinishedTrialError):  # by one who was taken for dead, just now
            trial.set_user_attr(LEASE, self._lease())
            return trial
        return None

    @contextmanager
    def working_on(self, trials: Sequence[optuna.Trial]) -> Iterator[None]:
        """While inside, keep saying that this worker lives; left by an exception, give the trials back."""
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(BEAT_SECONDS):
                for trial in trials:
                    # A storage that fails once may be back at the next beat.
                    with suppress(Exception):
                        if self._is_mine(trial.number):
                            trial.set_user_attr(LEASE, self._lease())

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        except BaseException:
            for trial in trials:
                if self._is_mine(trial.number):
                    self._give_back(trial.number)
            raise
        finally:
            stop.set()
            thread.join()

    def tell(self, trial: optuna.Trial, value: float | None, **attributes: Any) -> None:
        """Finish a trial; None: it was pruned. What another worker has finished meanwhile stays as it is."""
        # NaN would make the trial a failure, to be run again; divergence is an answer: the worst one.
        values = None if value is None else [value if math.isfinite(value) else math.inf]
        state = TrialState.PRUNED if value is None else TrialState.COMPLETE
        with suppress(UpdateFinishedTrialError):
            for key, given in attributes.items():
                trial.set_user_attr(key, given)
            self.storage.set_trial_state_values(self._id(trial.number), state, values)

    def report(self, trial: optuna.Trial, step: int, value: float) -> bool:
        """Note a loss on the way; whether the pruner gives the trial up."""
        if self.search.pruner == "none":
            return False
        with suppress(UpdateFinishedTrialError):
            if step not in self._look(trial.number).intermediate_values:  # else by whoever had it before
                trial.report(value if math.isfinite(value) else math.inf, step)
            return bool(trial.should_prune())
        return True  # another has finished it, who had taken this worker for dead

    def give_back_abandoned(self) -> None:
        """Put the trials of dead workers back into the queue."""
        signed, heard, self._heard = {}, self._heard, {}
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            lease = trial.user_attrs.get(LEASE)
            sign = trial.number, str(lease)
            since = self._heard[sign] = heard.get(sign, time.monotonic())
            # Clocks of machines differ: silence is what this process has not heard for a while.
            if _is_gone(lease) or time.monotonic() - since > SILENCE_SECONDS:
                now = self._look(trial.number)  # others may have been faster, and the trial in new hands
                if now.state == TrialState.RUNNING and now.user_attrs.get(LEASE) == lease:
                    signed[trial.number] = self._sign(trial.number, self._lease())
        # Of several who found the same trial at once, all sign within a moment, and the last one counts.
        time.sleep(SIGN_SECONDS if signed else 0)
        for number, lease in signed.items():
            if self._look(number).user_attrs.get(LEASE) == lease:
                self._give_back(number)

    def _give_back(self, number: int) -> None:
        # Nobody's lease, and like no other: the next worker's begins a moment after its trial does.
        self._sign(number, {"host": None, "mark": uuid.uuid4().hex})
        with suppress(UpdateFinishedTrialError):
            self.storage.set_trial_state_values(self._id(number), TrialState.WAITING)

    def _sign(self, number: int, lease: dict[str, Any]) -> dict[str, Any]:
        with suppress(UpdateFinishedTrialError):
            self.storage.set_trial_user_attr(self._id(number), LEASE, lease)
        return lease

    def _lease(self) -> dict[str, Any]:
        process = psutil.Process()
        lease = {"host": _machine(), "pid": process.pid, "since": _began(process)}
        return {**lease, "worker": self._worker, "beat": time.time()}

    def _is_mine(self, number: int) -> bool:
        """Whether this worker still has a trial; after a long silence it may have gone to another."""
        lease = self._look(number).user_attrs.get(LEASE) or {}
        return bool(lease.get("worker") == self._worker)

    def _look(self, number: int) -> FrozenTrial:
        return self.storage.get_trial(self._id(number))

    def _id(self, number: int) -> int:
        study_id = self.storage.get_study_id_from_name(self.name)
        return int(self.storage.get_trial_id_from_study_id_trial_number(study_id, number))

    def _distributions(self) -> dict[str, BaseDistribution]:
        found: dict[str, BaseDistribution] = {}
        for name, values in self.space.items():
            if not isinstance(values, Choices):
                found[name] = FloatDistribution(values.low, values.high, log=values.log)
            elif values.numeric and self.search.sampler == "grid":
                # As numbers, a dashboard can draw them on an axis.
                whole = all(isinstance(value, int) for value in values.values)
                kind = IntDistribution if whole else FloatDistribution
                found[name] = kind(values.values[0], values.values[-1], log=name == "lr")
            else:
                found[name] = CategoricalDistribution(values.values)
        return found


def _is_gone(lease: Plain | None) -> bool:
    """Whether the worker was on this machine and its process is no more."""
    if lease is None or lease["host"] != _machine():
        return False
    try:
        process = psutil.Process(lease["pid"])
        return bool(abs(_began(process) - lease["since"]) > 1 or process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


@cache
def _machine() -> str:
    """Where a process id means one process; containers may share a host's name, but not its processes."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()} {boot} {os.readlink('/proc/self/ns/pid')}"
    return platform.node()


def _began(process: psutil.Process) -> float:
    """When a process began, in seconds since the machine did: the clock may be set meanwhile."""
    return float(process.create_time() - psutil.boot_time())


def _new_point(trial: FrozenTrial, space: Space, points: Sequence[Point | None]) -> Point | None:
    """What a trial tries, if that is none of the points; None also for one that was only asked for."""
    point = {name: trial.params[name] for name in space if name in trial.params}
    return point if len(point) == len(space) and point not in points else None


def _together(old: Choices | Range, new: Choices | Range) -> Choices | Range | None:
    """The numbers of two grids; None where one is of words, or of whole numbers and the other is not."""
    if old == new or not (isinstance(old, Choices) and isinstance(new, Choices)):
        return old if old == new else None
    kinds = {isinstance(value, int) for value in (*old.values, *new.values)}
    if not (old.numeric and new.numeric and len(kinds) == 1):
        return None
    return Choices(tuple(sorted({*old.values, *new.values})))


def _plain(settings: Plain | None, space: Space, search: Search) -> str:
    data = {"settings": settings or {}, "space": space, "search": search}
    return json.dumps(data, default=lambda value: vars(value), sort_keys=True)


def _difference(known: str, settings: str) -> str:
    """The first thing that is not the same, for people."""
    old, new = _leaves(json.loads(known)), _leaves(json.loads(settings))
    changed = (k for k in [*new, *old] if old.get(k, "nothing") != new.get(k, "nothing"))
    key = next(changed, "")
    return f"{key} was {old.get(key, 'nothing')}, now {new.get(key, 'nothing')}"


def _leaves(data: Any, name: str = "") -> dict[str, Any]:
    if isinstance(data, Mapping):
        return {k: v for key, value in data.items() for k, v in _leaves(value, f"{name}.{key}").items()}
    return {name[1:]: data}
