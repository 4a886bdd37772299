"""What a study trains: models of any width of one family, and their data.

Widths are told in the family's own unit (d_model, hidden units, channels). Hyperparameters are always said as
the narrowest model's.

Knows models, data and plans; nothing of what a stage does, or of Optuna.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedConfig

import mupscale
from mupscale.errors import GrowthError
from mupscale.models.skeletons import skeleton
from mupscale.study import networks
from mupscale.study.corpus import DataConfig, text_from_hub
from mupscale.study.data import END_OF_TEXT, Data, load_tokens
from mupscale.study.labelled import Labelled, Shape, load_labelled
from mupscale.study.models import read_config, small_llama
from mupscale.study.tune.spec import FieldError, Study
from mupscale.study.tune.study_file import located

HUB = "hub:"


@dataclass(frozen=True)
class Workload:
    """A family of models and its data.

    Attributes:
        narrow: the width that hyperparameters are relative to.
        data: to train on and to evaluate on.
        source: a transformers config as wide as ``narrow``, or a function of the width that builds a module.
        axes: of a transformer, what grows with the width; by default the family's own choice.
    """

    narrow: int
    data: Data
    source: PreTrainedConfig | Callable[[int], nn.Module]
    axes: tuple[str, ...] = ()

    def plan(self, start: int, end: int) -> mupscale.Plan:
        """From one width to another, a whole multiple of it."""
        if isinstance(self.source, PreTrainedConfig):
            config = self.source
            if start != self.narrow:
                wide = self._grow(config, start // self.narrow).config
                assert wide is not None
                config = wide
            return self._grow(config, end // start)
        return mupscale.plan(partial(_times, self.source, start), width=end // start)

    def _grow(self, config: PreTrainedConfig, factor: int) -> mupscale.Plan:
        if self.axes:
            return mupscale.plan(config, axes=dict.fromkeys(self.axes, factor))
        return mupscale.plan(config, width=factor)

    def relative(self, width: int) -> mupscale.Plan:
        """What hyperparameters become at this width."""
        return self.plan(self.narrow, width)

    def fresh(self, width: int, seed: int) -> nn.Module:
        """A model from scratch, initialized under μP relative to the narrowest."""
        plan = self.relative(width)
        return mupscale.init_(self.empty(width), plan, seed=seed)

    def empty(self, width: int) -> nn.Module:
        """A model whose weights are yet to be set."""
        if isinstance(self.source, PreTrainedConfig):
            return AutoModelForCausalLM.from_config(self.relative(width).config)  # type: ignore[no-any-return]
        return self.source(width)

    def parameters(self, width: int) -> int:
        """How many numbers a model learns."""
        config = self.relative(width).config
        model = skeleton(config) if config is not None else self.empty(width)
        return sum(p.numel() for p in model.parameters())


def load_workload(study: Study, cache: Path | None = None) -> Workload:
    """The models and the data that a study file asks for.

    Args:
        cache: a folder to keep encoded text in.

    Raises:
        GrowthError: data that is not there, or a width that the family cannot have; names field and line.
    """
    try:
        data = _data(study, cache)
        axes = () if study.model.heads is None else ("d_model", "d_ff", "head_dim")
        workload = Workload(study.widths.narrow, data, _source(study, data), axes)
        _check(study, workload)
        return workload
    except FieldError as error:
        raise located(study.file, error) from None


def _check(study: Study, workload: Workload) -> None:
    """Every stage has data enough, and models that take them."""
    if study.training.get("optimizer") == "muon" and not study.model.reads_text:
        raise FieldError("training", "optimizer", "muon: classifiers are trained with sgd or adamw here")
    try:
        model, data = workload.empty(study.widths.narrow), workload.data
    except GrowthError as error:
        raise FieldError("model", "layers", str(error)) from None
    for stage in (study.scratch, study.base, study.grow, study.final):
        try:
            config = study.config(stage)
            data.check(model, config)
            data.training(config)
            data.held_out(config)
        except GrowthError as error:
            raise FieldError("data", "source", str(error)) from None


def _data(study: Study, cache: Path | None) -> Data:
    about = study.data
    try:
        if not study.model.reads_text:
            return load_labelled(about.source, held_out=about.held_out)
        path = None
        if about.source.startswith(HUB):
            name = about.source.removeprefix(HUB)
            path = text_from_hub(name, about.max_bytes, cache, end=END_OF_TEXT)
        elif about.source != "stdlib":
            path = study.file.parent / about.source
        return load_tokens(
            DataConfig(
                path=path,
                vocab_size=about.vocab_size,
                held_out=about.held_out,
                max_bytes=about.max_bytes,
            ),
            cache=cache,
        )
    except GrowthError as error:
        raise FieldError("data", "source", str(error)) from None


def _source(study: Study, data: Data) -> PreTrainedConfig | Callable[[int], nn.Module]:
    model, width = study.model, study.widths.narrow
    if isinstance(data, Labelled):
        if model.family == "resnet18" and data.shape.channels is None:
            raise FieldError("data", "source", f"{study.data.source}: a table; a ResNet looks at images")
        return partial(_network, model.family, model.layers, data.shape)
    if model.config is not None:
        try:
            config = read_config(study.file.parent / model.config)
        except GrowthError as error:
            raise FieldError("model", "config", str(error)) from None
        if config.hidden_size != width:
            raise FieldError("widths", "narrow", f"{width}, but {model.config} is {config.hidden_size} wide")
        return config
    if model.heads is not None and width % model.heads:
        raise FieldError("widths", "narrow", f"{width}: expected a multiple of heads, {model.heads}")
    heads = 2 if model.family == "llama" else 1  # a Llama here has two queries to a key
    if model.heads is None and width % (heads * model.head_dim):
        raise FieldError(
            "widths",
            "narrow",
            f"{width}: expected a multiple of {heads * model.head_dim}, so many whole heads (head_dim "
            f"{model.head_dim})",
        )
    positions = study.config(study.scratch).block_size
    vocab = len(data.tokenizer) if data.tokenizer is not None else study.data.vocab_size
    if model.family == "llama":
        return small_llama(
            width, model.layers, vocab_size=vocab, positions=positions, head_dim=model.head_dim
        )
    return GPT2Config(
        vocab_size=vocab,
        n_embd=width,
        n_layer=model.layers,
        n_head=model.heads or width // model.head_dim,
        n_positions=positions,
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
