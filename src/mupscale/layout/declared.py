"""Layouts of transformers models, from short declarations: one `Family` for each kind of architecture.

The declarations live in `mupscale.layout.hints`, one small file a family. Sizes are read from the config,
never from module attributes, which move between library versions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, TypeVar

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig

from mupscale.axes import Axes
from mupscale.errors import GrowthError
from mupscale.layout.base import Fold, Layout

Folds = Mapping[str, tuple[Fold, ...]]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Family:
    """What one architecture's shapes cannot show by themselves.

    Attributes:
        model_types: the ``model_type`` of the configs that this declaration covers.
        axes: notation by the ending of the parameter's name.
        sizes: config → size of every named axis.
        fields: (config, wide sizes) → the config fields to change; raises GrowthError for sizes that the
            config cannot express.
        width: the axes that ``width=g`` grows.
        fixed: axes that cannot grow, each with the reason.
        inexact: axes that can only be padded, since copies along them change the function, each with the
            reason and what to do instead.
        folds: (config, tied) → folds by the ending of the parameter's name.
        readouts: endings of the readouts' names.
        ignored: endings of tensors in old checkpoints that the model computes by itself.
        stored_as: names that checkpoints have for a tensor, each with the model's own.
    """

    model_types: tuple[str, ...]
    axes: Mapping[str, str]
    sizes: Callable[[PreTrainedConfig], dict[str, int]]
    fields: Callable[[PreTrainedConfig, Mapping[str, int]], dict[str, Any]]
    width: tuple[str, ...]
    fixed: Mapping[str, str]
    folds: Callable[[PreTrainedConfig, bool], Folds]
    readouts: tuple[str, ...]
    ignored: tuple[str, ...] = ()
    inexact: Mapping[str, str] = field(default_factory=dict)
    stored_as: Mapping[str, str] = field(default_factory=dict)


@cache
def _families() -> dict[str, Family]:
    hints = import_module("mupscale.layout.hints")
    modules = [import_module(f"{hints.__name__}.{m.name}") for m in iter_modules(hints.__path__)]
    return {model_type: m.FAMILY for m in modules for model_type in m.FAMILY.model_types}


def supported_model_types() -> list[str]:
    """The ``model_type`` of every transformers family that can be grown."""
    return sorted(_families())


def family_of(config: PreTrainedConfig) -> Family:
    """The declaration for a config.

    Raises:
        GrowthError: no declaration covers its ``model_type``.
    """
    family = _families().get(config.model_type)
    if family is None:
        raise GrowthError(
            f"model_type {config.model_type!r} is not supported; expected one of "
            f"{', '.join(supported_model_types())}"
        )
    return family


def model_class(config: PreTrainedConfig) -> type[nn.Module]:
    """The transformers class that a config's ``architectures`` names, or else its causal language model."""
    for name in config.architectures or ():
        if hasattr(transformers, name):
            return getattr(transformers, name)  # type: ignore[no-any-return]
    return transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]  # type: ignore[no-any-return]


def transformers_config(model: object) -> PreTrainedConfig | None:
    """The config of a transformers model or the config itself; None for anything else."""
    config = model if isinstance(model, PreTrainedConfig) else getattr(model, "config", None)
    return config if isinstance(config, PreTrainedConfig) else None


def skeleton(config: PreTrainedConfig) -> nn.Module:
    """The model of a config on the ``meta`` device: names and shapes, no memory."""
    with torch.device("meta"):
        return model_class(config)(config)


def declared_layout(model: nn.Module) -> Layout:
    """The layout of a transformers model (its weights are not read; `skeleton` is enough).

    Raises:
        GrowthError: the family is unknown, or has no declaration for one of the model's parameters.
    """
    config: PreTrainedConfig = model.config
    family = family_of(config)
    params = dict(model.named_parameters())
    first_name = {id(p): name for name, p in params.items()}
    ties = {
        name: first_name[id(p)]
        for name, p in model.named_parameters(remove_duplicate=False)
        if name not in params
    }
    sizes = family.sizes(config)
    folds = family.folds(config, bool(ties))
    axes = {}
    for name, param in params.items():
        notation = _by_ending(family.axes, name)
        if notation is None:
            raise GrowthError(
                f"{name}: the layout of {config.model_type!r} does not know this parameter; "
                "a layout has to name the axes of every one"
            )
        axes[name] = Axes.parse(notation)
        # Axes that only a special head has (class labels) take their size from its shape.
        for dim, size in zip(axes[name].dims, param.shape, strict=True):
            if len(dim.axes) == 1 and isinstance(dim.axes[0], str):
                sizes.setdefault(dim.axes[0], size)
        if axes[name].shape(sizes) != tuple(param.shape):
            raise GrowthError(
                f"{name}: expected shape {axes[name].shape(sizes)} for axes '{axes[name]}' "
                f"from the config, found {tuple(param.shape)}"
            )
    return Layout(
        sizes=sizes,
        params=axes,
        ties=ties,
        readouts=frozenset(n for n in params if n.endswith(family.readouts)),
        folds={n: f for n in params if (f := _by_ending(folds, n))},
        ignored=family.ignored,
        stored_as=family.stored_as,
    )


def _by_ending(table: Mapping[str, T], name: str) -> T | None:
    """The entry whose key is the name's ending, at a dot."""
    parts = name.split(".")
    return next((table[k] for i in range(len(parts)) if (k := ".".join(parts[i:])) in table), None)
