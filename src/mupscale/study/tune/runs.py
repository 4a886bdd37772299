"""The runs of a study: how each begins (from scratch, or grown), and training it alone or in a stack.

Knows models, growth and training; nothing of Optuna.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

import mupscale
from mupscale.errors import GrowthError
from mupscale.study.runs.history import HISTORY_FILE, Point
from mupscale.study.runs.stacked import Member, train_stacked
from mupscale.study.runs.training import RUN_FILE, train
from mupscale.study.spec.recipe import TrainConfig, build_optimizer
from mupscale.study.tune.spec import KNOBS, Stage, Study
from mupscale.study.tune.workload import Workload

Curve = tuple[Point, ...]
GROWTH_SEED = 1_000_003  # past all seeds of models: what growth draws must not be what their init drew
# Told of every evaluation (step, loss); True ends the run.
Watch = Callable[[int, float], bool]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A model as it begins, and all that training it needs."""

    model: nn.Module
    plan: mupscale.Plan
    optimizer: torch.optim.Optimizer | None
    config: TrainConfig


@dataclass(frozen=True)
class Lab:
    """A study, its models and data, and the folder that it works in."""

    study: Study
    workload: Workload
    out: Path

    # ---- beginnings --------------------------------------------------------------------------------------

    def scratch(self, stage: Stage, width: int, lr: float, seed: int, *, after_base: bool = False) -> Run:
        """Under μP from scratch.

        Args:
            after_base: on the data that a grown model sees, which follow those of the base model.
        """
        skip = self._seen_by_base() if after_base else 0
        config = self.study.config(stage, lr=lr, seed=seed, skip_blocks=skip)
        plan = self.workload.relative(width)
        return Run(model=self.workload.fresh(width, seed), plan=plan, optimizer=None, config=config)

    def grown(self, stage: Stage, width: int, knobs: Mapping[str, Any], seed: int) -> Run:
        """Grown from the base model of this width and seed."""
        base, factor = self.base_folder(width, seed), self.study.widths.growth
        narrow = self.workload.empty(width)
        if not (base / HISTORY_FILE).is_file():
            raise GrowthError(
                f"{base}: no base model here; workers on several machines need the same folder (--out), on a "
                "file system that they share"
            )
        load_model(narrow, base / "model.safetensors")
        growth = self.workload.plan(width, width * factor)
        relative = self.workload.relative(width * factor)
        operator = str(knobs.get("operator", KNOBS["operator"]))
        shrink = knobs.get("shrink", KNOBS["shrink"]) if operator == "zero_pad" else KNOBS["shrink"]
        wide = mupscale.grow(
            narrow,
            growth,
            operator=operator,
            noise=noise_of(knobs),
            shrink=shrink,
            seed=GROWTH_SEED + seed,
            from_first=relative,
        )
        changes = {"warmup_steps": knobs["warmup_steps"]} if "warmup_steps" in knobs else {}
        config = self.study.config(
            stage, lr=knobs["lr"], seed=seed, skip_blocks=self._seen_by_base(), **changes
        )
        optimizer = build_optimizer(wide, config, relative)
        default = "carried" if operator == "duplicate" else "fresh"  # as the operators' papers do
        if knobs.get("optimizer_state", default) == "carried":
            trained = self.study.config(self.study.base)
            before = build_optimizer(narrow, trained, self.workload.relative(width))
            before.load_state_dict(torch.load(base / "optimizer.pt", map_location="cpu", weights_only=True))
            carried = mupscale.carry_optimizer(before, narrow, wide, growth, operator=operator)
            optimizer.state.update(carried.state)
        return Run(model=wide, plan=relative, optimizer=optimizer, config=config)

    def base_folder(self, width: int, seed: int) -> Path:
        """Where the trained model of one width and seed lies."""
        return self.out / "base" / f"width{width}-seed{seed}"

    def _seen_by_base(self) -> int:
        config = self.study.config(self.study.base)
        return config.steps * config.batch_size

    def passes_of_base(self) -> float:
        """How often a base model goes through the training data."""
        return self._seen_by_base() / self.workload.data.size(self.study.config(self.study.base))

    # ---- training ----------------------------------------------------------------------------------------

    def train(self, run: Run, folder: Path, name: str, *, watch: Watch | None = None, **more: Any) -> Curve:
        """Train one run with the Trainer; return its held-out curve, which ends early where the run did.

        Called again after an interruption, it goes on from its last checkpoint.
        """
        listener = _Listen(watch)
        try:
            history = train(
                run.model,
                self.workload.data,
                folder,
                run.config,
                plan=run.plan,
                optimizer=run.optimizer,
                start={"study": self.study.name, "run": name, "narrow": self.study.widths.narrow},
                callbacks=[listener],
                **more,
            )
        except _Ended:
            shutil.rmtree(folder)
            return tuple(listener.curve)
        except GrowthError as error:
            if (folder / RUN_FILE).is_file() and "other settings" in str(error):
                raise GrowthError(
                    f"{folder}: holds a run of another study; remove it, or choose another folder (--out)"
                ) from None
            raise
        return history.held_out

    def train_together(self, runs: Sequence[Run], watch: Callable[[int, int, float], bool]) -> list[Curve]:
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
        return train_stacked(members, device=device, on_evaluate=watch)

    def train_lengths(self, run: Run, steps: Sequence[int], folder: Path, name: str) -> dict[int, Curve]:
        """Train once at a constant rate, and from there a cooldown for each of several lengths.

        Returns:
            The held-out curve of every length; its early points are those of the constant run.
        """
        lengths = {count: replace(run.config, steps=count) for count in steps}
        ends = {count: config.cooldown_start for count, config in lengths.items()}
        longest = max(ends.values())
        trunk = replace(run, config=replace(run.config, steps=longest, cooldown_fraction=0.0))
        curve = self.train(trunk, folder / "constant", name, keep_at=sorted(set(ends.values())))
        curves: dict[int, Curve] = {}
        for count, config in lengths.items():
            if not math.isfinite(curve[-1].loss):
                return dict.fromkeys(steps, curve)
            start = folder / "constant" / "checkpoints" / f"checkpoint-{ends[count]}"
            if ends[count] == longest:
                start = folder / "constant"
            branch = replace(run, config=config, optimizer=None)
            tail = self.train(branch, folder / f"length{count}", name, branch_from=start)
            before = [point for point in curve if point.step < tail[0].step]
            curves[count] = (*before, *tail)
        return curves

    def steps_of_lengths(self, steps: Sequence[int]) -> int:
        """How many optimizer steps `train_lengths` takes."""
        configs = [replace(self.study.config(self.study.final), steps=count) for count in steps]
        return max(c.cooldown_start for c in configs) + sum(c.cooldown_steps for c in configs)

    def step_flops(self, stage: Stage, width: int) -> int:
        """Floating point operations of one step of training at a width."""
        with torch.device("meta"):
            model = self.workload.empty(width)
        return self.workload.data.step_flops(model, self.study.config(stage))


def noise_of(knobs: Mapping[str, Any]) -> str:
    """Kind and strength in the notation of `mupscale.grow`; the operator's own where neither is a knob.

    >>> noise_of({"noise": 0.5}), noise_of({"noise": 0, "noise_kind": "gaussian"}), noise_of({"lr": 1})
    ('balanced:0.5', 'none', 'default')
    """
    if not {"noise", "noise_kind"} & knobs.keys():
        return "default"
    kind, strength = (knobs.get(name, KNOBS[name]) for name in ("noise_kind", "noise"))
    return f"{kind}:{strength:g}" if strength else "none"


class _Ended(Exception):
    """A run stopped before its last step: diverged, or given up."""


class _Listen(TrainerCallback):  # type: ignore[misc]
    """Keep the held-out curve; end the run where it diverges, or where the watcher says so."""

    def __init__(self, watch: Watch | None) -> None:
        self.watch = watch
        self.curve: list[Point] = []

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        assert metrics is not None
        point = Point(step=state.global_step, loss=float(metrics["eval_loss"]))
        self.curve.append(point)
        given_up = self.watch is not None and self.watch(point.step, point.loss)
        if not math.isfinite(point.loss) or (given_up and point.step < state.max_steps):
            raise _Ended
