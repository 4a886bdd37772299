"""Models by names and shapes alone, and what a config is a model of."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mupscale.errors import GrowthError, said_as
from mupscale.models.contents import unwrapped

if TYPE_CHECKING:
    from transformers import PreTrainedConfig as PreTrainedConfig
else:
    PreTrainedConfig = Any  # transformers is imported only where there is something of it


def class_name(kind: type) -> str:
    """What a config's ``architectures`` calls a class: a stock one by its name, others with their module."""
    if _is_of_transformers(kind):
        return str(kind.__name__)
    name = f"{kind.__module__}.{kind.__qualname__}"
    _own_classes[name] = kind
    return name


_own_classes: dict[str, type] = {}  # seen in this process; nothing is imported because a file names it


def model_class(config: PreTrainedConfig) -> type[nn.Module]:
    """The class that a config's ``architectures`` names, or else its causal language model.

    Raises:
        GrowthError: there is none, or it is not transformers' own and has not been seen yet.
    """
    import transformers

    names = config.architectures or []
    if not isinstance(names, list | tuple) or None in names:
        raise GrowthError(f"architectures: is {names!r}, expected a list of names, such as LlamaForCausalLM")
    for name in names:
        named = getattr(transformers, name, None) if isinstance(name, str) else name
        if isinstance(named, type) and issubclass(named, transformers.PreTrainedModel):
            return named
        if named is not None:
            raise GrowthError(
                f"architectures: {name!r} is no model of transformers; give one such as LlamaForCausalLM"
            )
        if name in _own_classes:
            return _own_classes[name]
        if "." in name:
            raise GrowthError(
                f"architectures: {name} is no class of transformers; plan from a model of it, "
                "mupscale.plan(model, ...), so that the class is known"
            )
    for mapping in (transformers.MODEL_FOR_CAUSAL_LM_MAPPING, transformers.MODEL_MAPPING):
        if type(config) in mapping:
            found = mapping[type(config)]
            first: type[nn.Module] = found[0] if isinstance(found, tuple) else found
            return first
    raise GrowthError(
        f"model_type {config.model_type!r}: transformers has no model class for it; name one in architectures"
    )


def config_class(data: Mapping[str, Any]) -> type[PreTrainedConfig]:
    """The class of a config that was written as plain values.

    Raises:
        GrowthError: it is not transformers' own, and no model that has it has been seen yet.
    """
    from transformers import CONFIG_MAPPING

    if data["model_type"] in CONFIG_MAPPING:
        return CONFIG_MAPPING[data["model_type"]]  # type: ignore[no-any-return]
    for name in data.get("architectures") or ():
        if name in _own_classes:
            return _own_classes[name].config_class  # type: ignore[attr-defined,no-any-return]
    raise GrowthError(
        f"model_type {data['model_type']!r}: no config of transformers; register its class first, with "
        "transformers.AutoConfig.register"
    )


def is_stock(config: PreTrainedConfig) -> bool:
    """Whether its model is a class of transformers, whose code goes with the version of the library."""
    return _is_of_transformers(model_class(config))


def _is_of_transformers(kind: type) -> bool:
    import transformers

    return getattr(transformers, kind.__name__, None) is kind


def parts_of(config: PreTrainedConfig) -> list[PreTrainedConfig]:
    """A config, and those of its towers."""
    inner = (getattr(config, name, None) for name in config.sub_configs)
    return [config, *(part for part in inner if part is not None)]


def own_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """What its model is built from: the config, or of a composite one the part that the class takes."""
    wanted = getattr(model_class(config), "config_class", type(config))
    if wanted is not type(config):
        for name, kind in getattr(config, "sub_configs", {}).items():
            if kind is wanted:
                part: PreTrainedConfig = copy.deepcopy(getattr(config, name))
                part.architectures = [class_name(model_class(config))]
                return part
    return config


def transformers_config(model: object) -> PreTrainedConfig | None:
    """The config of a transformers model or the config itself; None for anything else.

    A module of another kind is no transformers model because it keeps a config of one.
    """
    if "transformers" not in sys.modules:  # then nothing is of it
        return None
    from transformers import PreTrainedConfig, PreTrainedModel

    if isinstance(model, nn.Module):
        model = unwrapped(model)
        return model.config if isinstance(model, PreTrainedModel) else None
    return model if isinstance(model, PreTrainedConfig) else None


def worked_out(config: PreTrainedConfig) -> dict[str, int]:
    """The numbers that are no argument of the config's class, and that it comes to again where left out."""
    makers = [vars(kind)["__init__"] for kind in type(config).__mro__ if "__init__" in vars(kind)]
    arguments = {name for make in makers for name in inspect.signature(make).parameters}
    fields = config.to_dict()
    others = {name: n for name, n in fields.items() if type(n) is int and name not in arguments}
    if not others:
        return {}
    with quiet():
        made = type(config).from_dict({k: v for k, v in fields.items() if k not in others}).to_dict()
    return {name: n for name, n in others.items() if made.get(name) == n}


def skeleton(config: PreTrainedConfig) -> nn.Module:
    """The model of a config on the ``meta`` device: names and shapes, no memory.

    Raises:
        GrowthError: it has no class, or its class takes no such config.
    """
    found = model_class(config)
    with (
        torch.device("meta"),
        said_as(
            f"no {found.__name__} can be built of this {config.model_type} config", "; correct the config"
        ),
    ):
        return found(config)


def shapes(config: PreTrainedConfig, *, buffers: bool = True) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of the model of a config, and of every buffer."""
    with quiet():
        model = skeleton(config)
    return shapes_of({**dict(model.named_parameters()), **(dict(model.named_buffers()) if buffers else {})})


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


@contextmanager
def quiet() -> Iterator[None]:
    """Without what transformers has to say on configs of odd sizes."""
    if "transformers" not in sys.modules:
        yield
        return
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)
