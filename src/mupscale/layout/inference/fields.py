"""The size fields of a config, and what the axes that follow from them are called.

Which dims follow which field is never read off a name: that is measured (see `measuring`). Names decide only
what ``width=g`` means, and what an axis is called.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

from mupscale.layout.base import DEPTH
from mupscale.layout.tiny_sizes import canonical
from mupscale.models.skeletons import PreTrainedConfig, quiet, shapes, transformers_config, worked_out

Path = tuple[str, ...]

# What a wider model has more of. Head dims, ranks, states, experts and vocabularies stay as they are.
_WIDER = re.compile(
    r"(.*_)?hidden_sizes?|(.*_)?embed_dims?|(.*_)?embedding_size|word_embed_proj_dim|d_model|dim|lru_width|conv_dim"
    r"|mamba_d_ssm|pooler_output_size|projection_size|hidden_dim"
    r"|(.*_)?intermediate_size.*|(.*_)?ffn_(hidden_size|dim)|mlp_dim|n_inner"
    r"|(.*_)?heads(_per_layer)?|n_heads?|(mamba_)?n(um)?_?groups"
)
# Whole numbers that are no sizes.
_NOT_SIZES = re.compile(
    r".*token_(id|index|ids)|.*_layers?|num_labels|.*_id|.*layers?_.*|depths?|num_beams|.*window.*|.*kernel.*"
    r"|max_(?!position).*|.*multiple_of|chunk_size.*|.*stride.*|.*dropout.*|seed|.*_per_tok(en)?|.*top_?k.*|.*epoch.*|.*theta.*"
)
# Axes that are no widths, with the reason.
NO_WIDTH = {
    "vocab": "the vocabulary is given by the tokenizer",
    "type_vocab": "the number of segment types is not a width",
    "positions": "the number of positions is not a width",
    "labels": "the number of classes is not a width",
    DEPTH: "depth is not a width",
}
# Fields that say nothing about the function.
NOTES = {"dtype", "transformers_version", "_name_or_path", "use_cache", "initializer_range"}
_AXIS = {
    "hidden_size": "d_model",
    "intermediate_size": "d_ff",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "vocab_size": "vocab",
    "max_position_embeddings": "positions",
}


def size_fields(config: PreTrainedConfig) -> dict[Path, Any]:
    """Every whole number above 1 in a config that may be a size, and every list of such, by its path.

    Those that the config's class works out from others are none of them.
    """
    fields = _leaves(_stated(config), ())
    return {p: value for p, value in fields if "heads" in p[-1] or not _NOT_SIZES.fullmatch(p[-1])}


def _leaves(fields: Mapping[str, Any], path: Path) -> Iterator[tuple[Path, Any]]:
    for key, value in fields.items():
        if _is_config(key, value):
            yield from _leaves(value, (*path, key))
        elif type(value) is int and value > 1:
            yield (*path, key), value
        elif isinstance(value, list | tuple) and value and all(type(v) is int and v > 1 for v in value):
            yield (*path, key), list(value)


def _is_config(key: str, value: Any) -> bool:
    """Whether a field is a config by itself: most are called so, all of T5Gemma's only say their type."""
    return isinstance(value, dict) and (key.endswith("config") or "model_type" in value)


_PROBE = 8 * 19  # no other size is a multiple of it, and a quarter of a head dim is even


def explicit(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config with sizes that it leaves to be derived written out: ``n_inner`` of a GPT-2 as 4 · n_embd.

    Each is set to a number of its own first, to see which dims follow it.
    """
    plain = shapes(config, buffers=False)
    for path in _left_out(config.to_dict(), ()):
        if path[-1] != "head_dim" and not _WIDER.fullmatch(field_name(config, path)):
            continue
        try:
            probe = shapes(with_fields(config, {path: _PROBE}), buffers=False)
            values = {
                Fraction(old * _PROBE, new)
                for name in plain
                for old, new in zip(plain[name], probe[name], strict=True)
                if old != new
            }
            if len(values) == 1 and (value := values.pop()).denominator == 1:
                written = with_fields(config, {path: int(value)})
                config = written if shapes(written) == shapes(config) else config
        except Exception:  # not a size after all, or not one that may be this large
            continue
    return config


def _left_out(fields: Mapping[str, Any], path: Path) -> Iterator[Path]:
    """Fields that are None, and the head_dim that many models look for though configs do not name it."""
    for key, value in {"head_dim": None, **fields}.items():
        if _is_config(key, value):
            yield from _left_out(value, (*path, key))
        elif value is None:
            yield (*path, key)


def is_wider(config: PreTrainedConfig, path: Path) -> bool:
    """Whether ``width=g`` multiplies this field."""
    name = field_name(config, path)
    return bool(_WIDER.fullmatch(name)) or name in ("hidden_size", "intermediate_size")


def field_name(config: PreTrainedConfig, path: Path) -> str:
    """A field by the name that most configs have for it: ``n_embd`` of a GPT-2 is ``hidden_size``."""
    for key in path[:-1]:
        config = getattr(config, key, config)
    mapped = {own: standard for standard, own in getattr(config, "attribute_map", {}).items()}
    return canonical(path[-1]) or mapped.get(path[-1], path[-1])


def axis_name(config: PreTrainedConfig, powers: Mapping[Path, int], factor: Fraction) -> str:
    """What to call an axis of size ``factor · Π field^power``.

    >>> from transformers import LlamaConfig
    >>> axis_name(LlamaConfig(), {("num_attention_heads",): 1, ("num_key_value_heads",): -1}, Fraction(1))
    'q_per_kv'
    """
    names = {path: _word(config, path) for path in powers}
    above = [names[path] for path, power in powers.items() for _ in range(power)]
    below = [names[path] for path, power in powers.items() for _ in range(-power)]
    name = "_".join(above) + ("_per_" + "_".join(below) if below else "")
    name = {"d_model_per_heads": "head_dim", "heads_per_kv_heads": "q_per_kv"}.get(name, name)
    if factor != 1:
        name += f"_x{factor}".replace("/", "_over_").replace("_x1_over_", "_over_")
    return name


def _word(config: PreTrainedConfig, path: Path) -> str:
    name = field_name(config, path)
    word = _AXIS.get(name) or next(
        (name.removesuffix(long) + short for long, short in _AXIS.items() if name.endswith("_" + long)), None
    )
    word = word or re.sub(r"^num_|_size$", "", name)
    prefix = "_".join(key.removesuffix("_config").removesuffix("config") for key in path[:-1])
    return word if prefix in ("", "text") else f"{prefix}_{word}"


def with_fields(config: PreTrainedConfig, values: Mapping[Path, Any]) -> PreTrainedConfig:
    """A config of the same class with other values; what its class works out of these is worked out anew."""
    fields = _stated(config)
    for path, value in values.items():
        inner = fields
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
    with quiet():
        return type(config).from_dict(fields)


def _stated(config: PreTrainedConfig) -> dict[str, Any]:
    """The fields of a config without the numbers that its class works out from others."""
    fields: dict[str, Any] = config.to_dict()
    for field in worked_out(config):
        del fields[field]
    for name in fields:
        if (sub := transformers_config(vars(config).get(name))) is not None:
            fields[name] = _stated(sub)
    return fields


def value_at(config: PreTrainedConfig, path: Path) -> Any:
    """The value of a field; None where the config leaves it to be derived."""
    value: Any = config.to_dict()
    for key in path:
        value = value.get(key)
    return value


def one_number(value: Any) -> int | None:
    """A field's number; of a list, such as a height and a width, the one that all its entries are."""
    if isinstance(value, list | tuple) and len({*value}) == 1:
        value = value[0]
    return value if isinstance(value, int) else None


def times(value: Any, factor: Fraction | int) -> Any:
    """A field's value, or every entry of its list, times a factor that gives whole numbers."""
    if isinstance(value, list | tuple):
        return [times(v, factor) for v in value]
    product = value * Fraction(factor)
    if product.denominator != 1:
        raise ValueError(f"{value} × {factor} is not a whole number")
    return int(product)
