"""What to call a transformers model with, worked out from its config and the signature of its forward."""

from __future__ import annotations

import inspect
import math
import re
from typing import Any

import torch
from torch import Tensor, nn

from mupscale.errors import GrowthError
from mupscale.models.media import image_size, media_inputs, media_of, with_tokens

TOKENS = ("input_ids", "decoder_input_ids")
# Hidden states of another model, which cross-attention reads: as wide as this one's, unless the config says.
HIDDEN_STATES = frozenset({"encoder_hidden_states", "encoder_outputs", "cross_attention_states"})
_CROSS_ATTENTION = re.compile(r"cross_?att|encoder_att")
# These read the codebooks of one sequence as rows of their own.
_A_ROW_PER_CODEBOOK = ("musicgen_decoder", "musicgen_melody_decoder")


def example_inputs(model: nn.Module, *, seed: int = 0, batch: int = 2, length: int = 12) -> dict[str, Any]:
    """Arguments for one call of `model`: its main input, what goes with it, and no cache.

    Token ids leave out the special ones: some models read more out of those than an embedding.
    """
    config: Any = model.config
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())
    draw = torch.Generator().manual_seed(seed)
    takes = inspect.signature(model.forward).parameters
    main = getattr(model, "main_input_name", "input_ids")
    wanted = {main}
    if "vision_config" in config and "text_config" in config and not getattr(model, "can_generate", bool)():
        wanted |= {"input_ids", "pixel_values"}  # two towers, as CLIP's
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in takes:
        wanted.add("decoder_input_ids")
    if "noise" in takes:
        wanted.add("noise")  # a masked autoencoder draws its mask by it, and draws one of its own without
    media = media_of(model)
    if media:
        wanted |= {"input_ids"}
    elif "pixel_values" in takes and "vision_config" in config:
        wanted |= {"pixel_values"}
    wanted -= {*media}
    if "decoder_input_ids" not in takes and "input_ids" in takes and _reads_other_states(model):
        wanted |= HIDDEN_STATES & takes.keys()
    made: dict[str, Any] = {}
    for name in sorted(wanted):
        if name in TOKENS:
            rows = batch * (config.num_codebooks if config.model_type in _A_ROW_PER_CODEBOOK else 1)
            made[name] = _ids(config, (rows, length + 2 * (name != main)), draw)
        else:
            made[name] = torch.randn(_shape(config, name, batch, length), generator=draw, dtype=dtype)
    for name in media:
        given = media_inputs(model, name, batch, draw, dtype)
        try:
            made |= given | with_tokens(model, name, made | given)
        except Exception:  # whatever a tower that takes its input otherwise raises: then the text goes alone
            continue
    # Some of what the model reads is masked, so that the embedding which stands for it is used.
    if "bool_masked_pos" in takes and any(n.endswith("mask_token") for n, _ in model.named_parameters()):
        patches = _shape(config, "noise", batch, length)
        made["bool_masked_pos"] = torch.rand(patches, generator=draw) < 0.5
    if "mask_time_indices" in takes:
        frames = int(model._get_feat_extract_output_lengths(made[main].shape[1]))  # type: ignore[operator]
        made["mask_time_indices"] = torch.rand(batch, frames, generator=draw) < 0.5
    if "use_cache" in takes:
        made["use_cache"] = False
    return made


def _reads_other_states(model: nn.Module) -> bool:
    """Whether the model attends to the states of another one, of a width that is known."""
    has = any(map(_CROSS_ATTENTION.search, model.state_dict()))
    return has and _other_width(model.config) is not None


def _other_width(config: Any) -> Any:
    own = getattr(config, "cross_attention_hidden_size", None)
    return own or getattr(config.get_text_config(), "hidden_size", None)


def _special(config: Any) -> set[int]:
    """Ids that a config gives a meaning of their own."""
    found: set[int] = set()
    for key, value in config.to_dict().items():
        if isinstance(value, dict):
            sub = vars(config).get(key)
            found |= _special(sub) if hasattr(sub, "to_dict") else set()
        elif "_token_" in key:
            found |= {v for v in (value if isinstance(value, list) else [value]) if isinstance(v, int)}
    return found


def _ids(config: Any, shape: tuple[int, int], draw: torch.Generator) -> Tensor:
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    tables = ("vocab_size", "decoder_vocab_size", "vocab_size_per_layer_input")
    named = (getattr(of, table, None) for of in (text, config) for table in tables)
    vocabulary = min((size for size in named if isinstance(size, int) and size > 0), default=None)
    if vocabulary is None:
        raise GrowthError("vocab_size: not in its config; expected it, for the range of token ids")
    plain = sorted(set(range(vocabulary)) - _special(config)) or [0]
    return torch.tensor(plain)[torch.randint(len(plain), shape, generator=draw)]


def _shape(config: Any, name: str, batch: int, length: int) -> tuple[int, ...]:
    if name in ("pixel_values", "noise"):
        vision = getattr(config, "vision_config", config)
        height, width = image_size(vision)
        if name == "noise":
            return batch, (height // vision.patch_size) * (width // vision.patch_size)
        video = (config.num_frames,) if "num_frames" in config else ()
        return batch, *video, getattr(vision, "num_channels", 3), height, width
    if name in HIDDEN_STATES:
        return batch, length // 2 + 1, _other_width(config)
    if name == "input_features":
        # An encoder of fixed length halves the frames once.
        frames = 2 * getattr(config, "max_source_positions", length)
        return batch, getattr(config, "num_mel_bins", 80), frames
    if name == "input_values" and "num_mel_bins" in config and "max_length" in config:
        return batch, config.max_length, config.num_mel_bins
    if name == "input_values":
        strides = getattr(config, "conv_stride", [1])
        return batch, math.prod(strides) * (length + 1) + sum(getattr(config, "conv_kernel", [0]))
    raise GrowthError(
        f"{type(config).__name__}: no example of the input {name!r} can be made; give your own, "
        "plan(model, to=wide_config, inputs=x)"
    )
