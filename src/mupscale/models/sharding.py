"""Between whole tensors and the shards of FSDP2. Knows `DTensor`; nothing of models or growth."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


def reshard_(*models: nn.Module) -> None:
    """Let modules of FSDP2 hold their shards: after a forward pass alone the root holds whole parameters.

    What is written into those is lost.
    """
    for model in models:
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def local(tensor: Tensor) -> Tensor:
    """This rank's shard of a sharded tensor; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether ranks may hold parts of it."""
    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """All of a sharded tensor, gathered from every rank; any other tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def held_by_this_rank(tensor: Tensor) -> tuple[slice, ...]:
    """Where in the whole tensor this rank's shard lies, dim by dim; all of it where it is not sharded."""
    if not isinstance(tensor, DTensor):
        return tuple(slice(0, n) for n in tensor.shape)
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tuple(slice(start, start + n) for start, n in zip(offset, shape, strict=True))


def rows_held(tensor: Tensor) -> slice | None:
    """The rows of which this rank holds something; None of a single number."""
    return next(iter(held_by_this_rank(tensor)), None)


def fill_shard_(param: Tensor, blocks: Iterable[Tensor]) -> None:
    """Fill what this rank holds of a tensor from its `rows_held`, in blocks, whole in the other dims."""
    shard, (_, *rest), end = local(param), held_by_this_rank(param) or (None,), 0
    for block in blocks:
        if not param.ndim:
            shard.copy_(block)
            continue
        shard[end : end + len(block)] = block[(slice(None), *rest)]
        end += len(block)


def with_shard(shard: Tensor, param: Tensor) -> Tensor:
    """A tensor sharded as ``param`` is, of which every rank brings what it holds."""
    if not isinstance(param, DTensor):
        return shard
    return DTensor.from_local(
        shard.contiguous(), param.device_mesh, param.placements, shape=param.shape, stride=param.stride()
    )
