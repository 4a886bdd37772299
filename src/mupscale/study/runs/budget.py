"""How large, how long, on which data and at what cost: what follows from a study before anything is trained.

Knows studies and their models; trains nothing.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from mupscale.errors import GrowthError
from mupscale.layout.depth import depth_of
from mupscale.study.runs.history import History
from mupscale.study.runs.models import read_config
from mupscale.study.runs.training import seen_blocks
from mupscale.study.runs.workload import ANY_STEPS, Size, Workload
from mupscale.study.spec.recipe import TrainConfig
from mupscale.study.spec.sweeps import FieldError, Study, Sweep


@dataclass(frozen=True)
class Budget:
    """A study with its models and data."""

    study: Study
    workload: Workload
    _sizes: dict[str, Size] = field(default_factory=dict, repr=False)
    _flops: dict[str, int] = field(default_factory=dict, repr=False)

    def check(self) -> None:
        """See that every run has room for its warmup and cooldown, and data to learn from.

        Raises:
            FieldError: names table and key.
        """
        for sweep in self.study.sweeps.values():
            if sweep.begin == "checkpoint":
                continue
            self.study.check_ends(sweep, self.lengths(sweep))
            try:
                config = self.config(sweep, self.steps(sweep))
                self.workload.data.training(config)
                self.workload.data.held_out(config)
            except GrowthError as error:
                raise FieldError("data", "source", str(error)) from None

    def size(self, sweep: Sweep) -> Size:
        """How large the models are that a sweep trains."""
        if sweep.name not in self._sizes:
            self._sizes[sweep.name] = self._size(sweep)
        return self._sizes[sweep.name]

    def _size(self, sweep: Sweep) -> Size:
        if sweep.to is not None:
            return read_config(self.study.file.parent / sweep.to)
        if sweep.source is not None:
            source = self.study.sweeps[sweep.source]
            before, width = self.size(source), sweep.width
            if width is None:
                width = self.workload.width(before) * (sweep.growth or 1)
            return self.workload.size(width, before, layers=sweep.layers)
        return self.workload.size(sweep.width or self.workload.narrow, layers=sweep.layers)

    def layers(self, sweep: Sweep) -> int | None:
        """How many layers its models have, where the study says so."""
        said = any(each.layers is not None for each in self.study.sweeps.values())
        return depth_of(self.size(sweep)) if said else None

    def width(self, sweep: Sweep) -> int:
        """That, in the family's unit."""
        return self.workload.width(self.size(sweep))

    def lengths(self, sweep: Sweep) -> list[int]:
        """The steps at which its runs end, ascending; of a checkpoint, what its history says."""
        if sweep.begin == "checkpoint":
            return [self.narrow_history.steps] if self.narrow_history else [0]
        ratios = () if sweep.steps else sweep.lengths or (sweep.tokens_per_parameter,)
        parameters = self.workload.parameters(self.size(sweep)) / self.items_per_step(sweep)
        said = [ratio * parameters for ratio in ratios if ratio]
        if math.inf in said:
            key = "lengths" if sweep.lengths else "tokens_per_parameter"
            raise FieldError(
                sweep.table, key, f"{max(filter(None, ratios)):g}: too long; give a smaller number"
            )
        found = {*self.study.ends(sweep), *(max(1, round(steps)) for steps in said)}
        if sweep.match is not None:
            found.add(max(1, round(self.cost(self.study.sweeps[sweep.match]) / self.step_flops(sweep))))
        return sorted(found)

    def steps(self, sweep: Sweep) -> int:
        """Of a run that is not cut short."""
        return self.lengths(sweep)[-1]

    def trained_steps(self, sweep: Sweep) -> int:
        """How many optimizer steps one run takes, with all its ends."""
        if not sweep.branches:
            return self.steps(sweep)
        configs = [self.config(sweep, steps) for steps in self.lengths(sweep)]
        branches = configs if sweep.constant else configs[:-1]
        return configs[-1].steps + sum(config.cooldown_steps for config in branches)

    def items_per_step(self, sweep: Sweep) -> int:
        """Tokens, or other items, in a step."""
        config = self.config(sweep, ANY_STEPS)
        return config.batch_size * (config.block_size if self.study.model.reads_text else 1)

    def step_flops(self, sweep: Sweep) -> int:
        """Floating point operations of one step of training."""
        if sweep.name not in self._flops:
            with torch.device("meta"):
                model = self.workload.empty(self.size(sweep))
            config = self.config(sweep, ANY_STEPS)
            self._flops[sweep.name] = self.workload.data.step_flops(model, config)
        return self._flops[sweep.name]

    def run_flops(self, sweep: Sweep) -> int | None:
        """Of one run to its longest end; None for a checkpoint whose history is not known."""
        if sweep.begin == "checkpoint":
            return self.narrow_history.flops if self.narrow_history else None
        return self.step_flops(sweep) * self.steps(sweep)

    def cost(self, sweep: Sweep) -> int:
        """Of one run, with those of its line before it."""
        return sum(self.run_flops(each) or 0 for each in (sweep, *self.study.line(sweep)))

    def config(self, sweep: Sweep, steps: int, **values: Any) -> TrainConfig:
        """The settings of a run of so many steps."""
        return self.study.config(sweep, **{**values, "steps": steps})

    @property
    def checkpoint(self) -> Path:
        """The checkpoint that the study is about."""
        assert self.workload.line is not None
        return self.workload.line

    @cached_property
    def weights(self) -> str:
        """Checksum of the checkpoint: another narrow model makes another study."""
        digest = hashlib.sha256()
        for path in sorted(self.checkpoint.glob("*.safetensors")):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:16]

    @cached_property
    def narrow_history(self) -> History | None:
        """How the checkpoint was trained, if it says."""
        return History.load(self.checkpoint)

    def stream(self, sweep: Sweep, seed: int) -> tuple[int, int]:
        """The data a run sees: the seed of its stream, and the place in it where it begins.

        What begins from other runs goes on in their stream. All seeds that begin from one run go on in its
        stream, each in a part of its own.
        """
        place = sweep.after or sweep.source
        if place is None:
            return seed, self.study.skip_blocks
        before = self.study.sweeps[place]
        begun = self.study.begun_from(before, seed)
        if before.begin == "checkpoint":
            known = self.narrow_history
            stream, start = (
                int(known.settings["config"]["seed"]) if known else 0,
                seen_blocks(self.checkpoint),
            )
        else:
            stream, start = self.stream(before, begun)
            start += self._items(before)
        return stream, start + (seed - begun) * self._items(sweep)

    def _items(self, sweep: Sweep) -> int:
        """Blocks, or other items, that a run takes."""
        steps = self.steps(sweep)
        return steps * self.config(sweep, steps).batch_size

    def passes(self, sweep: Sweep) -> float:
        """How often the runs of its line have been through the training data, at its end."""
        if sweep.begin == "checkpoint":
            return 0.0
        config = self.config(sweep, self.steps(sweep))
        return (self.stream(sweep, sweep.seeds[0])[1] + self._items(sweep)) / self.workload.data.size(config)
