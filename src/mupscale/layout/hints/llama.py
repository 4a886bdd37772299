"""Llama and its kin: rotary positions, gated MLP, grouped-query attention.

Qwen2 adds biases on q, k and v; Qwen3 norms q and k over head_dim; Mistral changes no shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from transformers import PreTrainedConfig

from mupscale.layout.base import Fold
from mupscale.layout.declared import Family, Folds


def _sizes(config: PreTrainedConfig) -> dict[str, int]:
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    return {
        "d_model": config.hidden_size,
        "d_ff": config.intermediate_size,
        "kv_heads": kv_heads,
        "q_per_kv": heads // kv_heads,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // heads,
        "vocab": config.vocab_size,
        "layers": config.num_hidden_layers,
    }


def _fields(config: PreTrainedConfig, wide: Mapping[str, int]) -> dict[str, Any]:
    kinds = getattr(config, "layer_types", None)
    repeats = wide["layers"] // len(kinds) + 1 if kinds else 0
    return {
        "num_hidden_layers": wide["layers"],
        **({"layer_types": (kinds * repeats)[: wide["layers"]]} if kinds else {}),
        "hidden_size": wide["d_model"],
        "intermediate_size": wide["d_ff"],
        "num_attention_heads": wide["kv_heads"] * wide["q_per_kv"],
        "num_key_value_heads": wide["kv_heads"],
        "head_dim": wide["head_dim"],
    }


def _folds(config: PreTrainedConfig, tied: bool) -> Folds:
    return {"norm.weight": (Fold("d_model", Fraction(-1)),)} if tied else {}


FAMILY = Family(
    model_types=("llama", "mistral", "qwen2", "qwen3"),
    axes={
        "embed_tokens.weight": "vocab d_model",
        "input_layernorm.weight": "d_model",
        "post_attention_layernorm.weight": "d_model",
        "self_attn.q_proj.weight": "(kv_heads q_per_kv head_dim) [d_model]",
        "self_attn.q_proj.bias": "(kv_heads q_per_kv head_dim)",
        "self_attn.k_proj.weight": "(kv_heads head_dim) [d_model]",
        "self_attn.k_proj.bias": "(kv_heads head_dim)",
        "self_attn.v_proj.weight": "(kv_heads head_dim) [d_model]",
        "self_attn.v_proj.bias": "(kv_heads head_dim)",
        "self_attn.o_proj.weight": "d_model [kv_heads q_per_kv head_dim]",
        "self_attn.o_proj.bias": "d_model",
        "self_attn.q_norm.weight": "head_dim",
        "self_attn.k_norm.weight": "head_dim",
        "mlp.gate_proj.weight": "d_ff [d_model]",
        "mlp.gate_proj.bias": "d_ff",
        "mlp.up_proj.weight": "d_ff [d_model]",
        "mlp.up_proj.bias": "d_ff",
        "mlp.down_proj.weight": "d_model [d_ff]",
        "mlp.down_proj.bias": "d_model",
        "norm.weight": "d_model",
        "lm_head.weight": "vocab [d_model]",
        "score.weight": "labels [d_model]",
    },
    sizes=_sizes,
    fields=_fields,
    width=("d_model", "d_ff", "kv_heads"),
    fixed={
        "vocab": "the vocabulary is given by the tokenizer",
        "labels": "the number of classes is not a width",
    },
    inexact={
        "head_dim": "rotary positions turn pairs within a head, so copies inside it are not exact; "
        "grow the heads instead: kv_heads or q_per_kv",
    },
    folds=_folds,
    readouts=("lm_head.weight", "score.weight"),
)
