"""What a study is made of: a model, its data, sweeps of runs, and questions. Each checks its own values.

Knows the settings of training and the operators; nothing of TOML, of how models are made, or of Optuna.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mupscale.errors import GrowthError
from mupscale.study.spec.recipe import TrainConfig
from mupscale.study.spec.space import Choices, Space, grid

TEXT_FAMILIES = ("llama", "gpt2")
FAMILIES = (*TEXT_FAMILIES, "mlp", "resnet18")
WIDTH_WORDS = {"mlp": "hidden units", "resnet18": "channels of the first stage"}
BEGINNINGS = ("scratch", "grow", "continue", "checkpoint")
# Numbers of `TrainConfig` that a sweep may try.
TRAINING_KNOBS = (
    "lr",
    "warmup_steps",
    "weight_decay",
    "momentum",
    "eps",
    "max_grad_norm",
    "cooldown_fraction",
)
PARAMETRIZATIONS = ("mup", "standard")  # μP is relative to the narrowest model
GROWTH_SEED = 1_000_003  # past all seeds of models: what growth draws must not be what their init drew


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
        config: instead of a family, a transformers config.json of a causal language model.
        checkpoint: instead, a trained one: sweeps that begin with it grow or continue it.
        width: the narrowest, whose every learning rate is said; by default the narrowest of the sweeps, or
            that of the config.
        layers: depth, of the shallowest of the sweeps, whose every learning rate is said; a ResNet-18 has its
            own.
        head_dim: of a transformer's attention heads, whose number grows with the width.
        heads: of a GPT-2: this many at every width, and head_dim grows.
    """

    family: str = "llama"
    config: str | None = None
    checkpoint: str | None = None
    width: int | None = None
    layers: int = 3
    head_dim: int = 16
    heads: int | None = None

    def __post_init__(self) -> None:
        one_of("model", "family", self.family, FAMILIES)
        if self.config is not None and self.checkpoint is not None:
            raise FieldError("model", "config", "given beside checkpoint, which has its own; leave one out")
        if self.heads is not None:
            at_least("model", self, 1, "heads")
            if self.family != "gpt2" or self.file is not None:
                raise FieldError("model", "heads", "only a GPT-2's heads can widen; leave it out")
        at_least("model", self, 1, "layers", "head_dim")
        if self.width is not None:
            at_least("model", self, 1, "width")

    @property
    def file(self) -> str | None:
        """Where its config lies, if not in a family."""
        return self.config or self.checkpoint

    @property
    def reads_text(self) -> bool:
        """Whether it is a language model."""
        return self.file is not None or self.family in TEXT_FAMILIES

    @property
    def width_word(self) -> str:
        """What width means."""
        return "d_model" if self.reads_text else WIDTH_WORDS[self.family]


@dataclass(frozen=True, kw_only=True)
class Source:
    """What to learn from.

    Attributes:
        source: a text file or a folder of them (from where the study file lies), ``stdlib`` for the source of
            Python's standard library, ``site-packages`` for that and the sources of the installed packages,
            ``hub:NAME`` or ``hub:NAME/SUBSET`` for a text data set of the Hugging Face hub, or, for
            classifiers, a name that `mupscale.study.data.labelled` knows.
        vocab_size: of the tokenizer that is trained on the text, where the model has none.
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
    """How a sweep is gone through.

    Attributes:
        sampler: of `SAMPLERS`; a grid tries every combination.
        trials: how many points, for the other samplers.
        pruner: of `PRUNERS`; stops a point early whose first seed does badly.
    """

    sampler: str = "grid"
    trials: int | None = None
    pruner: str = "none"


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A set of runs of one kind.

    Attributes:
        name: as questions and other sweeps call it.
        begin: of `BEGINNINGS`: from scratch; grown from, or continuing, the runs of another sweep, seed by
            seed; or a checkpoint that is there already.
        source: the sweep whose runs it grows or continues; of several points, the best.
        width, growth, to: how wide: in the family's unit; as a multiple of the source; or as a config.json.
        layers: how deep, where that is not as deep as the source, or as the study's models.
        steps, tokens_per_parameter: how long a run is, or (without either) as long as ``lengths`` say.
        lengths: where runs also end, each time with a cooldown of its own, from one trunk at a constant rate:
            shares of the steps (up to 1) or steps; where no steps are given, tokens per parameter.
        match: a sweep; one more length is what its run cost, with all that came before it.
        constant: keep the trunk's loss to the last step beside those after a cooldown.
        tried: knobs and their values.
        take: knobs whose value is the best of another sweep's; beside what is tried of it.
        search: how what is tried is gone through.
        seeds: repetitions of every point; each has its own weights, noise and order of the data.
        extends: the sweep of which these are further seeds, at its best point.
        after: the sweep after whose text this one's begins; by default its source.
        training: fields of `TrainConfig` in which it differs from the study's.
        keep: keep the trained models, also where no sweep needs them.
        record: record the sizes of activations, weights and gradients this many times.
        verify: see that grown models compute what the narrow ones do.
        widen: where the best rate stands at the edge of its grid, at any length, try the next one, too.
        table: where it stands in the study file.
    """

    name: str
    begin: str
    source: str | None = None
    width: int | None = None
    growth: int | None = None
    to: str | None = None
    layers: int | None = None
    steps: int | None = None
    tokens_per_parameter: float | None = None
    lengths: tuple[float, ...] = ()
    match: str | None = None
    constant: bool = False
    tried: Space = field(default_factory=dict)
    take: Mapping[str, str] = field(default_factory=dict)
    search: Search = field(default_factory=Search)
    seeds: tuple[int, ...] = (0,)
    extends: str | None = None
    after: str | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    keep: bool = False
    record: int = 0
    verify: bool = False
    widen: bool = False
    table: str = ""

    @property
    def needs(self) -> tuple[str, ...]:
        """The sweeps that must be finished before."""
        named = (self.source, *self.take.values(), self.extends)
        return tuple(dict.fromkeys(name for name in named if name is not None))

    @property
    def branches(self) -> bool:
        """Whether its runs end in several places."""
        return bool(self.lengths or self.match or self.constant)

    @property
    def points(self) -> int:
        """How many points are tried, values that are yet to be taken not counted apart."""
        return self.search.trials or len(grid(self.tried))


@dataclass(frozen=True, kw_only=True)
class Study:
    """Everything that fixes a study.

    Attributes:
        file: where it was read from; what it names lies beside it.
        title: of the report.
        growth_seed: growth of seed i draws from this plus i.
        skip_blocks: of every stream of data, that no run sees.
        width_at: table and key of the narrowest width.
        questions: what is asked, in the order of the report: `mupscale.study.questions.ask` takes each.
    """

    file: Path
    name: str
    title: str
    model: Model
    data: Source
    training: Mapping[str, Any]
    sweeps: Mapping[str, Sweep]
    questions: tuple[Mapping[str, Any], ...] = ()
    growth_seed: int = GROWTH_SEED
    skip_blocks: int = 0
    width_at: tuple[str, str] = ("model", "width")

    def config(self, sweep: Sweep, **values: Any) -> TrainConfig:
        """The settings of a run of a sweep; ``steps`` must be among the values where it names none."""
        steps = {} if sweep.steps is None else {"steps": sweep.steps}
        return TrainConfig(**{**self.training, **steps, **sweep.training, **values})

    def line(self, sweep: Sweep) -> Iterator[Sweep]:
        """The sweep's sources, the nearest first."""
        while sweep.source is not None:
            sweep = self.sweeps[sweep.source]
            yield sweep

    def extension(self, sweep: Sweep) -> Sweep | None:
        """The sweep of its further seeds."""
        return self.sweeps.get(f"{sweep.name}+")

    def begun_from(self, source: Sweep, seed: int) -> int:
        """The seed of the run that a run with some seed begins from: its own, or the only one there is."""
        more = self.extension(source)
        return source.seeds[0] if len(source.seeds) == 1 and more is None else seed

    def is_kept(self, sweep: Sweep) -> bool:
        """Whether its models are: others begin from them, or it says so."""
        names = {sweep.name, sweep.extends}
        return sweep.keep or any(other.source in names for other in self.sweeps.values() if other.source)

    def trains_alone(self, sweep: Sweep) -> bool:
        """Whether every run is trained by itself, as more than its curve is wanted; else several at once."""
        return bool(self.is_kept(sweep) or sweep.branches or sweep.record or sweep.verify or sweep.extends)

    def by_seed(self, sweep: Sweep) -> bool:
        """Whether every seed is a trial of its own; else a trial averages over them.

        Samplers and pruners have to see a point as a whole.
        """
        whole = sweep.search.sampler != "grid" or sweep.search.pruner != "none"
        return self.trains_alone(sweep) and not whole

    def trials(self, sweep: Sweep) -> int:
        """Into how many trials its runs fall, values that are yet to be taken not counted apart."""
        if sweep.begin == "checkpoint":
            return 0
        return sweep.points * (len(sweep.seeds) if self.by_seed(sweep) else 1)

    def ends(self, sweep: Sweep) -> list[int]:
        """The steps at which its runs end, as far as they are said in steps."""
        if sweep.steps is None:
            return []
        return sorted({max(1, round(x * sweep.steps if x <= 1 else x)) for x in sweep.lengths or (1.0,)})

    def check_ends(self, sweep: Sweep, ends: Iterable[int]) -> None:
        """See that every length has room for the warmups that are tried, and ends in a cooldown.

        Raises:
            FieldError: it does not.
        """
        knobs = [sweep.tried, *(self.sweeps[name].tried for name in sweep.take.values())]
        warmups = [w for space in knobs for w in getattr(space.get("warmup_steps"), "values", ())]
        for steps in ends:
            for changes in [{"warmup_steps": warmup} for warmup in warmups] or [{}]:
                try:
                    config = self.config(sweep, **changes, steps=steps)
                except GrowthError as error:
                    own = "warmup_steps" in sweep.tried
                    key = "warmup_steps" if own else "lengths" if sweep.branches else "steps"
                    raise FieldError(sweep.table, key, f"a run of {steps} steps: {error}") from None
                if sweep.branches and not 0 < config.cooldown_steps < steps:
                    said = f"{config.cooldown_fraction:g} of {steps} steps are {config.cooldown_steps}; "
                    said += "expected a cooldown within the run: without, a smaller rate alone looks better"
                    raise FieldError(sweep.table, "cooldown_fraction", said)


def only(value: Any) -> Choices:
    """A knob with one value."""
    return Choices((value,))


def one_of(table: str, key: str, value: str, known: tuple[str, ...]) -> None:
    """Raise `FieldError` for a word that is none of those known."""
    if value not in known:
        raise FieldError(table, key, f"{value!r}: expected one of {', '.join(known)}")


def at_least(table: str, holder: Any, least: int, *keys: str) -> None:
    """Raise `FieldError` for a value that is too small."""
    for key in keys:
        if getattr(holder, key) < least:
            raise FieldError(table, key, f"{getattr(holder, key)}: expected at least {least}")
