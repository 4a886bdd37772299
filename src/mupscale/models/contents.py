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


def is_made_anew(module: nn.Module, key: str) -> bool:
    """Whether a plain tensor is made of a parameter in every call, as spectral norm and pruning do."""
    return f"{key}_orig" in module._parameters


def tie_names(model: nn.Module) -> dict[str, str]:
    """The other names of tied parameters, each with the first one."""
    first = {id(p): name for name, p in model.named_parameters()}
    every = model.named_parameters(remove_duplicate=False)
    return {name: first[id(p)] for name, p in every if name != first[id(p)]}


def one_memory(model: nn.Module) -> tuple[str, str] | None:
    """Two tensors that are not one but lie in one memory, a parameter among them; None if there are none.

    One changes with the other as it trains, which nothing but the memory knows.
    """
    params = {id(p) for p in model.parameters()}
    spans = sorted(
        (*_span(tensor), key in params, name)
        for key, (name, tensor) in _every_tensor(model).items()
        if type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided
        if tensor.numel() and not tensor.is_meta
    )
    ends: dict[bool, tuple[int, str]] = {}  # the furthest that a parameter reaches, and anything else
    for start, end, trained, name in spans:
        for other in (True, False):
            if other in ends and ends[other][0] > start and (trained or other):
                return ends[other][1], name
        if trained not in ends or end > ends[trained][0]:
            ends[trained] = end, name
    return None


def not_dense(model: nn.Module) -> str | None:
    """The first tensor that is sparse, or laid out otherwise than by strides; None if there is none."""
    every = _every_tensor(model).values()
    return next((name for name, tensor in every if tensor.layout is not torch.strided), None)


def _every_tensor(model: nn.Module) -> dict[int, tuple[str, Tensor]]:
    """All that a module holds, plain attributes too, by id: under the first name, with it."""
    names = {id(module): name for name, module in model.named_modules()}
    every = {id(t): (n, t) for n, t in (*model.named_buffers(), *model.named_parameters())}
    for module, key, tensor in attribute_tensors(model):
        if not is_made_anew(module, key):
            every.setdefault(id(tensor), (f"{names[id(module)]}.{key}".lstrip("."), tensor))
    return every


def _span(tensor: Tensor) -> tuple[int, int]:
    """Where a tensor's memory begins and ends."""
    reach = sum((n - 1) * abs(stride) for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (reach + 1) * tensor.element_size()


def tie_(model: nn.Module, ties: Mapping[str, str]) -> nn.Module:
    """Let every parameter in ``ties`` be the one whose name it has there, where it is not so yet."""
    present = tie_names(model)
    for alias, name in ties.items():
        owner, _, leaf = alias.rpartition(".")
        if alias not in present and leaf in model.get_submodule(owner)._parameters:
            model.get_submodule(owner)._parameters[leaf] = model.get_parameter(name)
    return model


def unwrapped(model: nn.Module) -> nn.Module:
    """The module that torch.compile, DDP or DataParallel has wrapped; any other as it is."""
    while True:
        if isinstance(model, torch._dynamo.OptimizedModule):
            model = model._orig_mod
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model
