"""What a study is made of: model, widths, data, stages. Each checks its own values.

Knows the settings of training; nothing of TOML, of how models are made, or of Optuna.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mupscale.errors import GrowthError
from mupscale.operators.zero_pad import DEFAULT_SHRINK
from mupscale.study.recipe import TrainConfig
from mupscale.study.tune.space import Space, grid

FAMILIES = ("llama", "gpt2", "mlp", "resnet18")
TEXT_FAMILIES = ("llama", "gpt2")
# The knobs of growth, and what each is when the file does not say. None: as the operator's paper or the
# settings have it. Where neither noise nor its kind is a knob, noise is the operator's own.
KNOBS: dict[str, Any] = {
    "operator": "duplicate",
    "noise_kind": "balanced",
    "noise": 1.0,
    "shrink": DEFAULT_SHRINK,
    "optimizer_state": None,
    "warmup_steps": None,
}


class FieldError(GrowthError):
    """A value that cannot be, and the table and key where it stands."""

    def __init__(self, table: str, key: str, message: str) -> None:
        super().__init__(message)
        self.table, self.key = table, key


@dataclass(frozen=True, kw_only=True)
class Model:
    """What is trained.

    Attributes:
        family: of `FAMILIES`; width means d_model, hidden units, or channels of the first stage.
        config: instead of a family, a transformers config.json of a causal language model, as wide as
            `Widths.narrow`.
        layers: depth; a ResNet-18 has its own.
        head_dim: of a transformer's attention heads, whose number grows with the width.
        heads: of a GPT-2: this many at every width, and head_dim grows.
    """

    family: str = "llama"
    config: str | None = None
    layers: int = 3
    head_dim: int = 16
    heads: int | None = None

    def __post_init__(self) -> None:
        one_of("model", "family", self.family, FAMILIES)
        if self.heads is not None:
            at_least("model", self, 1, "heads")
            if self.family != "gpt2" or self.config is not None:
                raise FieldError("model", "heads", "only a GPT-2's heads can widen; leave it out")
        at_least("model", self, 1, "layers", "head_dim")

    @property
    def reads_text(self) -> bool:
        """Whether it is a language model."""
        return self.config is not None or self.family in TEXT_FAMILIES


@dataclass(frozen=True, kw_only=True)
class Widths:
    """How wide.

    Attributes:
        narrow: n, where everything is tuned; all learning rates are said as this model's.
        large: N, of the base model that is to grow.
        growth: k; n → k·n and N → k·N.
        check: the narrow widths of the transfer check.
    """

    narrow: int
    large: int
    growth: int = 2
    check: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        at_least("widths", self, 1, "narrow")
        at_least("widths", self, 2, "growth")
        for key, widths in (("large", (self.large,)), ("check", self.check)):
            for width in widths:
                if width < self.narrow or width % self.narrow:
                    raise FieldError(
                        "widths", key, f"{width} is not a whole multiple of narrow, {self.narrow}"
                    )
        if list(self.check) != sorted(set(self.check)):
            raise FieldError("widths", "check", f"{list(self.check)}: expected ascending widths")


@dataclass(frozen=True, kw_only=True)
class Data:
    """What to learn from.

    Attributes:
        source: a text file or a folder of them (from where the study file lies), ``stdlib`` for the source of
            Python's standard library, ``hub:NAME`` or ``hub:NAME/SUBSET`` for a text data set of the Hugging
            Face hub, or, for classifiers, a name that `mupscale.study.labelled` knows.
        vocab_size: of the tokenizer that is trained on the text.
        held_out: share kept for evaluation.
        max_bytes: of text to read.
    """

    source: str = "stdlib"
    vocab_size: int = 1024
    held_out: float = 0.05
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        at_least("data", self, 257, "vocab_size")
        if not 0 < self.held_out <= 0.5:
            raise FieldError("data", "held_out", f"{self.held_out}: expected more than 0, at most 0.5")
        if self.max_bytes is not None:
            at_least("data", self, 1, "max_bytes")


@dataclass(frozen=True, kw_only=True)
class Search:
    """How a stage is swept.

    Attributes:
        sampler: of `SAMPLERS`; a grid tries every combination.
        trials: how many points, for the other samplers.
        pruner: of `PRUNERS`; stops a point early whose first seed does badly.
    """

    sampler: str = "grid"
    trials: int | None = None
    pruner: str = "none"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage: how long it trains, and what it tries.

    Attributes:
        steps: optimizer steps of a run.
        space: knobs and their values.
        search: how they are gone through.
        seeds: repetitions of every point; each has its own weights, noise and order of the data.
        lengths: of the last stage: shares of the steps at which a grown model's training also ends, with a
            cooldown of its own.
        training: fields of `TrainConfig` in which it differs.
    """

    steps: int
    space: Space
    search: Search
    seeds: int
    lengths: tuple[float, ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)

    @property
    def points(self) -> int:
        """How many points are tried."""
        return self.search.trials or len(grid(self.space))


@dataclass(frozen=True, kw_only=True)
class Study:
    """Everything that fixes a study, and the file that says so."""

    file: Path
    name: str
    seeds: int
    model: Model
    widths: Widths
    data: Data
    training: Mapping[str, Any]
    scratch: Stage
    base: Stage
    grow: Stage
    final: Stage

    @property
    def final_lengths(self) -> list[int]:
        """Steps of each length of the grown model's training in the last stage."""
        return [max(1, round(share * self.final.steps)) for share in self.final.lengths or (1.0,)]

    def config(self, stage: Stage, **values: Any) -> TrainConfig:
        """The settings of a run of one stage."""
        return TrainConfig(**{**self.training, **stage.training, "steps": stage.steps, **values})


def one_of(table: str, key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise FieldError(table, key, f"{value!r}: expected one of {', '.join(known)}")


def at_least(table: str, holder: Any, least: int, *keys: str) -> None:
    for key in keys:
        if getattr(holder, key) < least:
            raise FieldError(table, key, f"{getattr(holder, key)}: expected at least {least}")
