"""The runs of a study: how each begins, what it sees, and training it alone or in a stack.

Knows models, growth and training; nothing of Optuna.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from safetensors.torch import load_model
from torch import nn

import mupscale
from mupscale.errors import GrowthError
from mupscale.operators.catalogue import operator_named
from mupscale.study.runs.budget import Budget
from mupscale.study.runs.history import HISTORY_FILE, Point
from mupscale.study.runs.models import load_checkpoint
from mupscale.study.runs.norms import RecordNorms
from mupscale.study.runs.optimizers import build_optimizer, carried_optimizer
from mupscale.study.runs.stacked import Member, train_stacked
from mupscale.study.runs.training import AnotherRun, Listen, RunEnded, saved_checkpoints, train
from mupscale.study.runs.workload import Workload
from mupscale.study.spec import space
from mupscale.study.spec.growth import GROWTH_KNOBS, noise_of
from mupscale.study.spec.recipe import TrainConfig
from mupscale.study.spec.sweeps import TRAINING_KNOBS, Study, Sweep
from mupscale.study.writing import write_json
from mupscale.theory.manifest import MANIFEST, Manifest

Curve = tuple[Point, ...]
Knobs = space.Point
# Told of every evaluation (step, loss); True ends the run.
Watch = Callable[[int, float], bool]
VERIFIED_ITEMS = 8


@dataclass(frozen=True, kw_only=True)
class Run:
    """A model as it begins, and all that training it needs."""

    model: nn.Module
    plan: mupscale.Plan | None
    optimizer: torch.optim.Optimizer | None
    config: TrainConfig
    manifest: Manifest | None = None
    equality: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Narrow:
    """A model that a sweep has trained, the plan that it was trained by, and where it lies."""

    model: nn.Module
    plan: mupscale.Plan | None
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run went.

    Attributes:
        curve: held-out; of a run that ends in several places the longest's, or that at the constant rate.
        ends: final loss by steps, for each place where it ends.
        steps: optimizer steps in all.
        norms: as `RecordNorms.rows`.
        equality: of the grown model with its narrow one, where that was looked at.
    """

    curve: Curve
    ends: Mapping[int, float]
    steps: int
    norms: list[list[Any]] = field(default_factory=list)
    equality: Mapping[str, Any] | None = None

    @property
    def loss(self) -> float:
        """At the end of the longest."""
        return self.ends[max(self.ends)]


@dataclass(frozen=True)
class Lab:
    """Where the runs of a study are made.

    Attributes:
        trained: the knobs of the best run of a finished sweep with some seed, and the folder where it lies.
        progress: shows every run; None where many run side by side.
    """

    budget: Budget
    trained: Callable[[Sweep, int], tuple[Knobs, Path]]
    progress: Progress | None = None

    @property
    def study(self) -> Study:
        """What is swept."""
        return self.budget.study

    @property
    def workload(self) -> Workload:
        """Models and data."""
        return self.budget.workload

    # ---- beginnings ----------------------------------------------------------------------------------------

    def begin(self, sweep: Sweep, knobs: Knobs, seed: int) -> Run:
        """A run as it begins.

        Raises:
            GrowthError: the models that it begins from are not there.
        """
        stream, start = self.budget.stream(sweep, seed)
        changes = {key: knobs[key] for key in TRAINING_KNOBS if key in knobs}
        config = self.budget.config(
            sweep, self.budget.steps(sweep), seed=stream, skip_blocks=start, **changes
        )
        if sweep.begin == "scratch":
            standard = knobs.get("parametrization") == "standard"
            model = self.workload.fresh(size := self.budget.size(sweep), seed, standard=standard)
            plan = None if standard else self.workload.relative(size)
            return Run(model=model, plan=plan, optimizer=None, config=config)
        narrow = self._narrow(self.study.sweeps[str(sweep.source)], seed)
        if sweep.begin == "grow":
            return self._grown(sweep, narrow, knobs, seed, config)
        carried = knobs.get("optimizer_state", "carried") == "carried"
        optimizer = carried_optimizer(narrow.model, config, narrow.plan, narrow.folder) if carried else None
        # What has been grown before it is continued keeps its manifest.
        manifest = Manifest.read(narrow.folder) if (narrow.folder / MANIFEST).is_file() else None
        return Run(
            model=narrow.model, plan=narrow.plan, optimizer=optimizer, config=config, manifest=manifest
        )

    def _narrow(self, source: Sweep, seed: int) -> Narrow:
        if source.begin == "checkpoint":
            folder = self.budget.checkpoint
            plan = mupscale.Plan.load(folder) if (folder / MANIFEST).is_file() else None
            return Narrow(model=load_checkpoint(folder), plan=plan, folder=folder)
        knobs, folder = self.trained(source, seed)
        if not (folder / HISTORY_FILE).is_file():
            raise GrowthError(
                f"{folder}: no trained model here; workers on several machines need the same folder (--out), "
                "on a file system that they share"
            )
        size = self.budget.size(source)
        if (folder / "config.json").is_file():  # some operators change more of the config than sizes
            model: nn.Module = load_checkpoint(folder)
        else:
            load_model(model := self.workload.empty(size), folder / "model.safetensors")
        standard = source.begin == "scratch" and knobs.get("parametrization") == "standard"
        return Narrow(model=model, plan=None if standard else self.workload.relative(size), folder=folder)

    def _grown(self, sweep: Sweep, narrow: Narrow, knobs: Knobs, seed: int, config: TrainConfig) -> Run:
        size, before = self.budget.size(sweep), self.budget.size(self.study.sweeps[str(sweep.source)])
        growth, relative = self.workload.plan(before, size), self.workload.relative(size)
        operator, seed = str(knobs.get("operator", GROWTH_KNOBS["operator"])), self.study.growth_seed + seed
        noise = str(operator_named(operator).noise(noise_of(knobs)) or "none")
        how: dict[str, Any] = {"operator": operator, "noise": noise, "seed": seed}
        if (own := operator_named(operator).shrink) is not None:
            how["shrink"] = str(knobs.get("shrink", own))
        wide = mupscale.grow(narrow.model, growth, from_first=relative, **how)
        optimizer = build_optimizer(wide, config, relative)
        default = "carried" if operator == "duplicate" else "fresh"  # as the operators' papers do
        if (state := str(knobs.get("optimizer_state", default))) != "fresh":
            saved = carried_optimizer(narrow.model, config, narrow.plan, narrow.folder)
            carried = mupscale.carry_optimizer(
                saved, narrow.model, wide, growth, operator=operator, state=state
            )
            optimizer.state.update(carried.state)
        equality = self._compare(narrow.model, wide, growth, operator, config) if sweep.verify else None
        if growth.config is not None:
            growth = replace(growth, config=wide.config)
        return Run(
            model=wide,
            plan=relative,
            optimizer=optimizer,
            config=config,
            manifest=Manifest(plan=growth, from_first=relative, recipe=how),
            equality=equality,
        )

    def _compare(
        self, narrow: nn.Module, wide: nn.Module, plan: mupscale.Plan, operator: str, config: TrainConfig
    ) -> dict[str, Any]:
        """Whether both compute the same on held-out data."""
        batch = self.workload.data.held_out(replace(config, eval_blocks=VERIFIED_ITEMS))[:]
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        report = mupscale.verify(narrow, wide, plan, inputs=inputs, operator=operator)
        return {**report.to_dict(), "text": str(report)}

    # ---- training ------------------------------------------------------------------------------------------

    def train(
        self, sweep: Sweep, run: Run, folder: Path, name: str, *, watch: Watch | None = None
    ) -> Outcome:
        """Train one run with the Trainer, to all its ends, or to where it diverges or is given up.

        Called again after an interruption, it goes on from its last checkpoint. Of a run with several ends
        the model of the longest stays in ``folder``.
        """
        if sweep.record:  # what was recorded before an interruption is lost with it
            shutil.rmtree(folder, ignore_errors=True)
        start = {"study": self.study.name, "run": name, "narrow": self.workload.narrow}
        norms = RecordNorms(max(1, run.config.steps // sweep.record)) if sweep.record else None
        more: dict[str, Any] = {"start": start, "callbacks": [norms] if norms else []}
        if sweep.branches:
            outcome = self._train_branches(sweep, run, folder, name, more)
        else:
            curve = self._train(run, folder, name, watch=watch, **more)
            outcome = Outcome(curve=curve, ends={run.config.steps: curve[-1].loss}, steps=curve[-1].step)
        if run.manifest and folder.is_dir():
            write_json(folder / MANIFEST, run.manifest.to_dict())
        return replace(outcome, norms=norms.rows() if norms else [], equality=run.equality)

    def _train(
        self,
        run: Run,
        folder: Path,
        name: str,
        *,
        watch: Watch | None = None,
        keep: bool = False,
        **more: Any,
    ) -> Curve:
        """Its held-out curve. Of a run that ends early nothing is left, unless it is to ``keep``."""
        listener = Listen(watch)
        callbacks = [listener, *more.pop("callbacks", ())]
        try:
            history = train(
                run.model,
                self.workload.data,
                folder,
                run.config,
                plan=run.plan,
                optimizer=run.optimizer,
                callbacks=callbacks,
                name=name,
                progress=self.progress,
                **more,
            )
        except RunEnded:
            if not keep:
                shutil.rmtree(folder)
            return tuple(listener.curve)
        except AnotherRun:
            raise GrowthError(
                f"{folder}: holds a run of another study; remove it, or choose another folder (--out)"
            ) from None
        return history.held_out

    def _train_branches(
        self, sweep: Sweep, run: Run, folder: Path, name: str, more: Mapping[str, Any]
    ) -> Outcome:
        """Train the longest, or at a constant rate; the other lengths leave it where their cooldown begins.

        Up to its cooldown a run does not depend on its length: the results are those of separate runs, also
        where the longest diverges after others have left it.
        """
        lengths = {steps: replace(run.config, steps=steps) for steps in self.budget.lengths(sweep)}
        trunk = lengths[max(lengths)]
        if sweep.constant:
            trunk = replace(trunk, cooldown_fraction=0.0)
        branches = {steps: config for steps, config in lengths.items() if config != trunk}
        leaves = {config.cooldown_start for config in branches.values()}
        curve = self._train(
            replace(run, config=trunk), folder, name, keep=True, keep_at=sorted(leaves), **more
        )
        ends = {trunk.steps: curve[-1].loss} if trunk in lengths.values() else {}
        trained, saved = curve[-1].step, saved_checkpoints(folder / "checkpoints")
        for steps, config in branches.items():
            if (start := saved.get(config.cooldown_start)) is None:  # it had diverged by then
                ends[steps] = math.nan
                continue
            branch = replace(run, config=config, optimizer=None)
            place, words = folder / f"length{steps}", f"{name}, {steps} steps"
            end = self._train(branch, place, words, branch_from=start, start=more["start"])[-1]
            ends[steps], trained = end.loss, trained + max(0, end.step - config.cooldown_start)
        if not math.isfinite(curve[-1].loss):
            shutil.rmtree(folder)
        return Outcome(curve=curve, ends=dict(sorted(ends.items())), steps=trained)

    def train_together(self, runs: Sequence[Run], watch: Callable[[int, int, float], bool]) -> list[Outcome]:
        """Train runs of one architecture at once; equal to `train` one after another."""
        data, held_out = self.workload.data, self.workload.data.held_out(runs[0].config)
        members = [
            Member(
                model=run.model,
                optimizer=run.optimizer or build_optimizer(run.model, run.config, run.plan),
                config=run.config,
                train=data.training(run.config),
                held_out=held_out,
                plan=run.plan,
            )
            for run in runs
        ]
        device = "cuda" if torch.cuda.is_available() else None
        curves = train_stacked(members, device=device, on_evaluate=watch)
        return [
            Outcome(curve=curve, ends={runs[0].config.steps: curve[-1].loss}, steps=curve[-1].step)
            for curve in curves
        ]
