"""Images and sounds for models that read them among their text: what to call these with, and how many tokens.

A model of text and images puts what its tower made of an image in the place of special tokens. How many these
have to be, no config says in one way; so the tower runs, and what it gives is counted.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from mupscale.models.calls import every_tensor
from mupscale.models.precision import Float64, float64

MEDIA = {"pixel_values": "image", "input_features": "audio"}  # what a model reads, and what that is
_KINDS = {"image": 1, "audio": 3}  # as ``mm_token_type_ids`` counts them


def media_of(model: nn.Module) -> list[str]:
    """Inputs that the model reads in the place of special tokens of its text."""
    takes = inspect.signature(model.forward).parameters
    if "input_ids" not in takes or getattr(model, "main_input_name", "input_ids") not in (
        "input_ids",
        *MEDIA,
    ):
        return []
    return [name for name, kind in MEDIA.items() if name in takes and _token(model.config, kind) is not None]


def media_inputs(
    model: nn.Module, name: str, batch: int, draw: torch.Generator, dtype: torch.dtype
) -> dict[str, Tensor]:
    """An image or a sound for every row, with what goes along with it."""
    config: Any = model.config
    takes = inspect.signature(model.forward).parameters
    tower = getattr(config, "vision_config" if MEDIA[name] == "image" else "audio_config", config)
    made: dict[str, Tensor] = {}
    if name == "input_features":
        frames = 2 * getattr(tower, "max_source_positions", 32)
        shape: tuple[int, ...] = (batch, getattr(tower, "num_mel_bins", 80), frames)
        for mask in {"input_features_mask", "feature_attention_mask", "padding_mask"} & takes.keys():
            made[mask] = torch.ones(batch, frames, dtype=torch.long)
    else:
        channels: int = getattr(tower, "num_channels", None) or getattr(tower, "in_channels", None) or 3
        height, width = image_size(tower)
        patch = _side(getattr(tower, "patch_size", 1))
        if "image_grid_thw" in takes:  # patches in rows of their own
            merged = getattr(tower, "spatial_merge_size", 1)
            grid = torch.tensor([[1, 2 * merged, 3 * merged]] * batch)
            made["image_grid_thw"] = grid
            length = channels * int(getattr(tower, "temporal_patch_size", 1)) * patch**2
            shape = (int(grid.prod(-1).sum()), length)
        elif "vision_config" not in config:  # patches, without a tower
            shape = (batch, (height // patch) * (width // patch), channels * patch**2)
        else:
            several = (1,) if "pixel_attention_mask" in takes else ()  # images, each of one row of the text
            shape = (batch, *several, channels, height, width)
            if _needs(model, "image_sizes"):
                made["image_sizes"] = torch.tensor([[height, width]] * batch)
    return {name: torch.randn(shape, generator=draw, dtype=dtype), **made}


def image_size(config: Any) -> tuple[int, int]:
    side = getattr(config, "image_size", 32)
    return (side, side) if isinstance(side, int) else (side[0], side[1])


def _side(size: Any) -> int:
    return size if isinstance(size, int) else int(size[0])


def with_tokens(model: nn.Module, name: str, made: Mapping[str, Any]) -> dict[str, Tensor]:
    """The text with as many special tokens in it as the model's tower gives vectors, and which these are."""
    kind, ids = MEDIA[name], made["input_ids"]
    token = _token(model.config, kind)
    assert token is not None
    count = _vectors(model, name, made) // len(ids)
    media = torch.full((len(ids), count), token, dtype=ids.dtype)
    ids = torch.cat([ids[:, :2], media, ids[:, 2:]], dim=1)
    takes = inspect.signature(model.forward).parameters
    found = {"input_ids": ids}
    for types, number in (("token_type_ids", 1), ("mm_token_type_ids", _KINDS[kind])):
        if types in takes:
            found[types] = number * ids.eq(token).long()
    return found


def _token(config: Any, kind: str) -> int | None:
    """The id of the token that stands for a part of an image or a sound."""
    part = getattr(config, "vision_config" if kind == "image" else "audio_config", None)
    names = [f"{kind}_token_id", f"{kind}_token_index"]
    found = (getattr(of, name, None) for of in (config, part) for name in names)
    return next((value for value in found if isinstance(value, int)), None)


def _features(model: nn.Module, kind: str) -> Any:
    """The method that gives what a tower makes of an image or a sound."""
    return next(
        (
            method
            for part in (model, getattr(model, "model", None))
            if (method := getattr(part, f"get_{kind}_features", None)) is not None
        ),
        None,
    )


def _needs(model: nn.Module, argument: str) -> bool:
    method = _features(model, "image")
    return method is not None and argument in inspect.signature(method).parameters


def _vectors(model: nn.Module, name: str, made: Mapping[str, Any]) -> int:
    """How many vectors the tower makes of all that is in the batch."""
    method = _features(model, MEDIA[name])
    takes = inspect.signature(method).parameters
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if made[name].dtype == torch.float64:
            stack.enter_context(float64())
            stack.enter_context(Float64())
        output = method(**{k: v for k, v in made.items() if k in takes})
    pooled = getattr(output, "pooler_output", None)
    found = every_tensor(pooled if pooled is not None else getattr(output, "last_hidden_state", output))
    return sum(math.prod(tensor.shape[:-1]) for tensor in found)
