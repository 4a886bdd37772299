"""State that an optimizer keeps in few bits: unpacked to be grown, and packed again as the optimizer does it.

torchao's tensors of 8, 4 and (in floating point) 8 bits, and bitsandbytes' of 8; all have a scale for every
block of the flat tensor. Knows how they are kept; nothing of growth, and imports neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mupscale.models.sharding import local, with_shard

_BLOCK = 256  # of bitsandbytes


def unpacked(state: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter's state in floating point, the block scales gone."""
    if "absmax1" in state:
        from bitsandbytes.functional import dequantize_blockwise

        plain = {k: v for k, v in state.items() if not k.startswith(("absmax", "qmap"))}
        for n in ("1", "2"):
            if f"absmax{n}" in state:
                plain[f"state{n}"] = dequantize_blockwise(
                    state[f"state{n}"], absmax=state[f"absmax{n}"], code=state[f"qmap{n}"], blocksize=_BLOCK
                )
        return plain
    return {
        key: with_shard(local(value).dequantize(), value) if _is_packed(value) else value
        for key, value in state.items()
    }


def packed(optimizer: torch.optim.Optimizer, param: Tensor, state: dict[str, Any]) -> dict[str, Any]:
    """The state as ``optimizer`` keeps it for ``param``: as it is for all that pack nothing."""
    packages = {base.__module__.partition(".")[0] for base in type(optimizer).__mro__}
    if "torchao" in packages:
        return {key: _by_torchao(optimizer, param, key, value) for key, value in state.items()}
    if "bitsandbytes" in packages:
        return _by_bitsandbytes(optimizer, param, state)
    return state


def loss_by_packing(state: Mapping[str, Any], kept: Mapping[str, Any]) -> float:
    """By how much of its largest number what is kept differs from what was to be packed; else 0."""
    if "absmax1" not in kept and not any(map(_is_packed, kept.values())):
        return 0.0
    again, apart = unpacked(kept), [torch.zeros(())]
    for key, value in state.items():
        if isinstance(value, Tensor) and value.ndim and local(value).numel():
            mine, theirs = local(value), local(again[key])
            apart.append(((mine - theirs).abs().max() / mine.abs().max().clamp(min=1e-38)).cpu())
    return float(torch.stack(apart).max())  # NaN, too


def _is_packed(value: Any) -> bool:
    return isinstance(value, Tensor) and type(local(value)).__module__.startswith("torchao.")


def _by_torchao(optimizer: Any, param: Tensor, key: str, value: Any) -> Any:
    if not isinstance(value, Tensor) or not value.ndim:
        return value
    buffer = optimizer._new_buffer(param, key == "exp_avg")  # the second moments have no sign
    local(buffer).copy_(local(value))
    return buffer


def _by_bitsandbytes(optimizer: Any, param: Tensor, state: dict[str, Any]) -> dict[str, Any]:
    from bitsandbytes.functional import quantize_blockwise

    for i, group in enumerate(optimizer.param_groups):
        for j, own in enumerate(group["params"]):
            if own is param:
                optimizer.init_state(group, param, i, j)
    kept: dict[str, Any] = optimizer.state[param]
    for key, value in state.items():
        if key.startswith("state") and kept[key].dtype == torch.uint8:
            n = key.removeprefix("state")
            quantize_blockwise(
                value, code=kept[f"qmap{n}"], absmax=kept[f"absmax{n}"], out=kept[key], blocksize=_BLOCK
            )
        elif key.startswith("state"):
            kept[key].copy_(value)
        else:
            kept[key] = value
    return kept
