"""What a study trains: models of any size of one family, and their data.

Widths are told in the family's own unit (d_model, hidden units, channels). Hyperparameters are always said as
the narrowest model's.

Knows models, data and plans; nothing of what a sweep does, or of Optuna.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedConfig

import mupscale
from mupscale.errors import GrowthError
from mupscale.growth import from_first
from mupscale.layout.base import DEPTH
from mupscale.layout.depth import depth_of
from mupscale.models.skeletons import skeleton
from mupscale.study.data.corpus import NAMED, text_from_hub
from mupscale.study.data.labelled import Labelled, Shape, load_labelled
from mupscale.study.data.stream import Data
from mupscale.study.data.tokens import END_OF_TEXT, load_tokens
from mupscale.study.runs import networks
from mupscale.study.runs.models import fresh_model, read_config, read_tokenizer, small_llama
from mupscale.study.spec.sweeps import FieldError, Study

HUB = "hub:"
ANY_STEPS = 1_000_000  # where settings are asked for and their steps do not matter
# How large a model is: a width in the family's unit, or the whole config of a transformers model.
Size: TypeAlias = int | Any  # of PreTrainedConfig


@dataclass(frozen=True)
class Workload:
    """A family of models and its data.

    Attributes:
        narrow: the width that hyperparameters are relative to.
        data: to train on and to evaluate on.
        source: a transformers config as wide as ``narrow``, or a function of the width that builds a module.
        axes: of a transformer, what grows with the width; by default the family's own choice.
        line: the checkpoint that sweeps begin from; it may itself have been grown from a first model, which
            all hyperparameters are then relative to.
    """

    narrow: int
    data: Data
    source: PreTrainedConfig | Callable[[int], nn.Module]
    axes: tuple[str, ...] = ()
    line: Path | None = None
    _plans: dict[tuple[int | str, int, Fraction], mupscale.Plan] = field(default_factory=dict, repr=False)

    def size(self, width: int, before: Size | None = None, layers: int | None = None) -> Size:
        """How large a model of this width and depth is: ``before``, or else the narrowest one, grown to it.

        Raises:
            FieldError: only transformers models grow in depth.
        """
        if not isinstance(self.source, PreTrainedConfig):
            if layers is not None:
                raise FieldError(
                    "model", "family", "only language models grow in depth: llama, gpt2, a config"
                )
            return width
        before = self.source if before is None else before
        assert isinstance(before, PreTrainedConfig)
        deeper = Fraction(layers or depth_of(before), depth_of(before))
        wide = self._grow(before, width // before.hidden_size, deeper).config
        assert wide is not None
        return wide

    def plan(self, start: Size, end: Size) -> mupscale.Plan:
        """From one size to another."""
        if isinstance(start, PreTrainedConfig) and isinstance(end, PreTrainedConfig):
            factor, rest = divmod(end.hidden_size, start.hidden_size)
            grown = None if rest else self._grow(start, factor, Fraction(depth_of(end), depth_of(start)))
            if grown is not None and grown.config.to_dict() == end.to_dict():  # type: ignore[union-attr]
                return grown
            return mupscale.plan(start, to=end)
        assert isinstance(start, int)
        assert isinstance(end, int)
        return self._grow(start, end // start)

    def _grow(self, start: Size, factor: int, deeper: Fraction = Fraction(1)) -> mupscale.Plan:
        """Worked out once: all runs from one size to another share a plan."""
        key = start if isinstance(start, int) else start.to_json_string(use_diff=False), factor, deeper
        if key not in self._plans:
            self._plans[key] = self._planned(start, factor, deeper)
        return self._plans[key]

    def _planned(self, start: Size, factor: int, deeper: Fraction) -> mupscale.Plan:
        if not isinstance(self.source, PreTrainedConfig):
            return mupscale.plan(partial(_times, self.source, start), width=factor)
        depth: dict[str, int | Fraction] = {DEPTH: deeper} if deeper != 1 else {}
        if self.axes:
            return mupscale.plan(start, axes={**dict.fromkeys(self.axes, factor), **depth})
        return mupscale.plan(start, width=factor, axes=depth or None)

    def relative(self, size: Size) -> mupscale.Plan:
        """What hyperparameters become at this size."""
        plan = self.plan(self.size(self.narrow), size)
        return plan if self.line is None else from_first(self.line, plan)

    def fresh(self, size: Size, seed: int, *, standard: bool = False) -> nn.Module:
        """A model from scratch: under μP relative to the narrowest, or as its own code draws it."""
        if standard and isinstance(size, PreTrainedConfig):
            model: nn.Module = fresh_model(size, seed)
            return model
        return mupscale.init_(self.empty(size), self.relative(size), seed=seed)

    def empty(self, size: Size) -> nn.Module:
        """A model whose weights are yet to be set."""
        if isinstance(size, PreTrainedConfig):
            model: nn.Module = AutoModelForCausalLM.from_config(size)
            return model
        assert not isinstance(self.source, PreTrainedConfig)
        network: nn.Module = self.source(size)
        return network

    def width(self, size: Size) -> int:
        """In the family's unit."""
        return size if isinstance(size, int) else int(size.hidden_size)

    def parameters(self, size: Size) -> int:
        """How many numbers a model learns."""
        model = skeleton(size) if isinstance(size, PreTrainedConfig) else self.empty(size)
        return sum(p.numel() for p in model.parameters())


def load_workload(study: Study, cache: Path | None = None) -> Workload:
    """The models and the data that a study asks for.

    Args:
        cache: a folder to keep encoded text in.

    Raises:
        FieldError: data that is not there, or a width that the family cannot have.
    """
    data = _data(study, cache)
    narrow, source = _source(study, data)
    axes = () if study.model.heads is None else ("d_model", "d_ff", "head_dim")
    line = study.model.checkpoint and study.file.parent / study.model.checkpoint
    workload = Workload(narrow, data, source, axes, line or None)
    _check(study, workload)
    return workload


def _check(study: Study, workload: Workload) -> None:
    """The models can be trained on the data."""
    if study.training.get("optimizer") == "muon" and not study.model.reads_text:
        raise FieldError("training", "optimizer", "muon: classifiers are trained with sgd or adamw here")
    try:
        model = workload.empty(workload.size(workload.narrow))
    except GrowthError as error:
        raise FieldError("model", "layers", str(error)) from None
    for sweep in study.sweeps.values():
        try:
            workload.data.check(model, study.config(sweep, steps=ANY_STEPS))
        except GrowthError as error:
            raise FieldError("data", "source", str(error)) from None


def _data(study: Study, cache: Path | None) -> Data:
    about, tokenizer = study.data, None
    try:
        if not study.model.reads_text:
            return load_labelled(about.source, held_out=about.held_out)
        source: str | Path = about.source
        if about.source.startswith(HUB):
            name = about.source.removeprefix(HUB)
            source = text_from_hub(name, about.max_bytes, cache, end=END_OF_TEXT)
        elif about.source not in NAMED:
            source = study.file.parent / about.source
        if study.model.file is not None:
            folder = study.file.parent / study.model.file
            tokenizer = read_tokenizer(folder)
            if tokenizer is None and study.model.checkpoint is not None:
                said = f"{folder}: no tokenizer.json; the text must be encoded with the model's own tokenizer"
                raise FieldError("model", "checkpoint", said)
        return load_tokens(
            source,
            vocab_size=about.vocab_size,
            held_out=about.held_out,
            max_bytes=about.max_bytes,
            tokenizer=tokenizer,
            cache=cache,
        )
    except FieldError:
        raise
    except GrowthError as error:
        raise FieldError("data", "source", str(error)) from None


def _source(study: Study, data: Data) -> tuple[int, PreTrainedConfig | Callable[[int], nn.Module]]:
    """The narrowest width, and what builds the models."""
    model = study.model
    if model.file is not None:
        key = "config" if model.config else "checkpoint"
        try:
            config = read_config(study.file.parent / model.file)
        except GrowthError as error:
            raise FieldError("model", key, str(error)) from None
        if model.width not in (None, config.hidden_size):
            said = f"{model.width}, but {model.file} is {config.hidden_size} wide; leave it out"
            raise FieldError(*study.width_at, said)
        return config.hidden_size, config
    width = model.width
    assert width is not None  # of the narrowest sweep, if not said
    if isinstance(data, Labelled):
        if model.family == "resnet18" and data.shape.channels is None:
            raise FieldError("data", "source", f"{study.data.source}: a table; expected images, for a ResNet")
        return width, partial(_network, model.family, model.layers, data.shape)
    if model.heads is not None and width % model.heads:
        raise FieldError(*study.width_at, f"{width}: expected a multiple of heads, {model.heads}")
    heads = 2 if model.family == "llama" else 1  # a Llama here has two queries to a key
    if model.heads is None and width % (heads * model.head_dim):
        raise FieldError(
            *study.width_at,
            f"{width}: expected a multiple of {heads * model.head_dim}, so many whole heads (head_dim "
            f"{model.head_dim})",
        )
    longest = max(study.config(s, steps=ANY_STEPS).block_size for s in study.sweeps.values())
    vocab = len(data.tokenizer) if data.tokenizer is not None else study.data.vocab_size
    if model.family == "llama":
        return width, small_llama(
            width, model.layers, vocab_size=vocab, positions=longest, head_dim=model.head_dim
        )
    return width, GPT2Config(
        vocab_size=vocab,
        n_embd=width,
        n_layer=model.layers,
        n_head=model.heads or width // model.head_dim,
        n_positions=longest,
        bos_token_id=0,
        eos_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )


def _times(make: Callable[[int], nn.Module], width: int, factor: int) -> nn.Module:
    return make(width * factor)


def _network(family: str, layers: int, shape: Shape, width: int) -> nn.Module:
    if family == "mlp":
        return networks.mlp(width, inputs=shape.inputs, classes=shape.classes, layers=layers)
    assert shape.channels is not None
    return networks.resnet18(width, channels=shape.channels, classes=shape.classes)
