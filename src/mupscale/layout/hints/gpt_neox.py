"""GPT-NeoX (Pythia): rotary positions, query, key and value fused head by head, attention beside the MLP."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from transformers import PreTrainedConfig

from mupscale.errors import GrowthError
from mupscale.layout.base import Fold
from mupscale.layout.declared import Family, Folds


def _sizes(config: PreTrainedConfig) -> dict[str, int]:
    return {
        "d_model": config.hidden_size,
        "d_ff": config.intermediate_size,
        "heads": config.num_attention_heads,
        "head_dim": config.hidden_size // config.num_attention_heads,
        "vocab": config.vocab_size,
        "layers": config.num_hidden_layers,
    }


def _fields(config: PreTrainedConfig, wide: Mapping[str, int]) -> dict[str, Any]:
    if wide["d_model"] != wide["heads"] * wide["head_dim"]:
        raise GrowthError(
            f"gpt_neox has d_model = heads × head_dim, but the growth asked for gives {wide['d_model']} ≠ "
            f"{wide['heads']} × {wide['head_dim']}; grow heads by the same factor as d_model"
        )
    return {
        "hidden_size": wide["d_model"],
        "num_attention_heads": wide["heads"],
        "intermediate_size": wide["d_ff"],
        "num_hidden_layers": wide["layers"],
    }


def _folds(config: PreTrainedConfig, tied: bool) -> Folds:
    ending = ("final_layer_norm.weight", "final_layer_norm.bias")
    return dict.fromkeys(ending, (Fold("d_model", Fraction(-1)),)) if tied else {}


FAMILY = Family(
    model_types=("gpt_neox",),
    axes={
        "embed_in.weight": "vocab d_model",
        "input_layernorm.weight": "d_model",
        "input_layernorm.bias": "d_model",
        "post_attention_layernorm.weight": "d_model",
        "post_attention_layernorm.bias": "d_model",
        "attention.query_key_value.weight": "(heads 3 head_dim) [d_model]",
        "attention.query_key_value.bias": "(heads 3 head_dim)",
        "attention.dense.weight": "d_model [heads head_dim]",
        "attention.dense.bias": "d_model",
        "mlp.dense_h_to_4h.weight": "d_ff [d_model]",
        "mlp.dense_h_to_4h.bias": "d_ff",
        "mlp.dense_4h_to_h.weight": "d_model [d_ff]",
        "mlp.dense_4h_to_h.bias": "d_model",
        "final_layer_norm.weight": "d_model",
        "final_layer_norm.bias": "d_model",
        "lm_head.weight": "vocab [d_model]",
        "score.weight": "labels [d_model]",
    },
    sizes=_sizes,
    fields=_fields,
    width=("d_model", "d_ff", "heads"),
    fixed={
        "vocab": "the vocabulary is given by the tokenizer",
        "labels": "the number of classes is not a width",
    },
    inexact={
        "head_dim": "rotary positions turn pairs within a head, so copies inside it are not exact; "
        "grow heads instead",
    },
    folds=_folds,
    readouts=("lm_head.weight", "score.weight"),
    stored_as={"embed_out.weight": "lm_head.weight"},
    ignored=("attention.bias", "attention.masked_bias", "attention.rotary_emb.inv_freq"),
)
