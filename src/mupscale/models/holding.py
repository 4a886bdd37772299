"""What a module holds, by name: asked of the modules, as state-dict hooks may rename what they give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


def persistent_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that a checkpoint holds, shared ones under their first name."""
    computed = {
        f"{prefix}.{leaf}".lstrip(".")
        for prefix, module in model.named_modules()
        for leaf in module._non_persistent_buffers_set
    }
    return {name: buffer for name, buffer in model.named_buffers() if name not in computed}


def state_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and persistent buffer, tied ones under their first name."""
    return {**dict(model.named_parameters()), **persistent_buffers(model)}


def attribute_tensors(model: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Tensors that modules hold as plain attributes, neither parameters nor buffers: nothing moves them."""
    for module in model.modules():
        for key, value in vars(module).items():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                yield module, key, value


def held(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor that a module holds under a name, tied ones under their first."""
    names = {id(module): name for name, module in model.named_modules()}
    plain = {f"{names[id(m)]}.{key}".lstrip("."): tensor for m, key, tensor in attribute_tensors(model)}
    return {**dict(model.named_parameters()), **dict(model.named_buffers()), **plain}


def overlaps(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Parameters in whose memory another tensor of the model lies, each with the name of the other first.

    Training one changes the other, although they are not one parameter.
    """
    spans = sorted(
        (tensor.data_ptr(), tensor.data_ptr() + _extent(tensor), name, id(tensor))
        for name, tensor in held(model).items()
        if type(tensor) in (Tensor, nn.Parameter) and tensor.numel() and not tensor.is_meta
    )
    params = dict(model.named_parameters())
    for i, (_, end, name, own) in enumerate(spans):
        for start, _, other, theirs in spans[i + 1 :]:
            if start >= end:
                break
            if own != theirs and other in params:
                yield name, other
            elif own != theirs and name in params:
                yield other, name


def _extent(tensor: Tensor) -> int:
    """How many bytes lie between its first entry and the end of its last."""
    last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def tie_names(model: nn.Module) -> dict[str, str]:
    """The other names of tied parameters, each with the first one."""
    first = {id(p): name for name, p in model.named_parameters()}
    every = model.named_parameters(remove_duplicate=False)
    return {name: first[id(p)] for name, p in every if name != first[id(p)]}


def tie_(model: nn.Module, ties: Mapping[str, str]) -> nn.Module:
    """Let every parameter in ``ties`` be the one whose name it has there, where it is not so yet."""
    present = tie_names(model)
    for alias, name in ties.items():
        owner, _, leaf = alias.rpartition(".")
        if alias not in present and leaf in model.get_submodule(owner)._parameters:
            model.get_submodule(owner)._parameters[leaf] = model.get_parameter(name)
    return model


def unwrapped(model: nn.Module) -> nn.Module:
    """The module that torch.compile has wrapped; any other as it is."""
    while isinstance(model, torch._dynamo.OptimizedModule):
        model = model._orig_mod
    return model
