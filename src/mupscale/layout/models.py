"""Models by names and shapes alone, and what a config is a model of."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.utils import logging

from mupscale.errors import GrowthError


def model_class(config: PreTrainedConfig) -> type[nn.Module]:
    """The transformers class that a config's ``architectures`` names, or else its causal language model.

    Raises:
        GrowthError: transformers knows none.
    """
    for name in config.architectures or ():
        if hasattr(transformers, name):
            named: type[nn.Module] = getattr(transformers, name)
            return named
    for mapping in (transformers.MODEL_FOR_CAUSAL_LM_MAPPING, transformers.MODEL_MAPPING):
        if type(config) in mapping:
            found = mapping[type(config)]
            first: type[nn.Module] = found[0] if isinstance(found, tuple) else found
            return first
    raise GrowthError(f"model_type {config.model_type!r}: transformers has no model class for it")


def own_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """What its model is built from: the config, or of a composite one the part that the class takes."""
    wanted = getattr(model_class(config), "config_class", type(config))
    if wanted is not type(config):
        for name, kind in getattr(config, "sub_configs", {}).items():
            if kind is wanted:
                part: PreTrainedConfig = copy.deepcopy(getattr(config, name))
                part.architectures = [model_class(config).__name__]
                return part
    return config


def transformers_config(model: object) -> PreTrainedConfig | None:
    """The config of a transformers model or the config itself; None for anything else."""
    config = model if isinstance(model, PreTrainedConfig) else getattr(model, "config", None)
    return config if isinstance(config, PreTrainedConfig) else None


def skeleton(config: PreTrainedConfig) -> nn.Module:
    """The model of a config on the ``meta`` device: names and shapes, no memory."""
    with torch.device("meta"):
        return model_class(config)(config)


def shapes(config: PreTrainedConfig, *, buffers: bool = True) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of the model of a config, and of every buffer."""
    with quiet():
        model = skeleton(config)
    tensors = (*model.named_parameters(), *(model.named_buffers() if buffers else ()))
    return {name: tuple(tensor.shape) for name, tensor in tensors}


def stored_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The persistent buffers by name: from the modules, since a hook may rename what `state_dict` gives."""
    volatile = {
        f"{prefix}.{name}".removeprefix(".")
        for prefix, module in model.named_modules()
        for name in module._non_persistent_buffers_set
    }
    return {name: buffer for name, buffer in model.named_buffers() if name not in volatile}


def ties(model: nn.Module) -> dict[str, str]:
    """The other names of tied parameters, each with the first one."""
    first = {id(p): name for name, p in model.named_parameters()}
    every = model.named_parameters(remove_duplicate=False)
    return {name: first[id(p)] for name, p in every if name != first[id(p)]}


@contextmanager
def quiet() -> Iterator[None]:
    """Without what transformers has to say on configs of odd sizes."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)
