"""GPT-2: learned positions, fused query/key/value in a Conv1D (stored fan_in first), usually tied."""

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
        "d_model": config.n_embd,
        "d_ff": config.n_inner or 4 * config.n_embd,
        "heads": config.n_head,
        "head_dim": config.n_embd // config.n_head,
        "vocab": config.vocab_size,
        "positions": config.n_positions,
        "layers": config.n_layer,
    }


def _fields(config: PreTrainedConfig, wide: Mapping[str, int]) -> dict[str, Any]:
    if wide["d_model"] != wide["heads"] * wide["head_dim"]:
        raise GrowthError(
            f"gpt2 has d_model = heads × head_dim, but the growth asked for gives {wide['d_model']} ≠ "
            f"{wide['heads']} × {wide['head_dim']}; grow heads (or head_dim) by the same factor as d_model"
        )
    d_ff = None if wide["d_ff"] == 4 * wide["d_model"] else wide["d_ff"]
    return {
        "n_embd": wide["d_model"],
        "n_head": wide["heads"],
        "n_inner": d_ff,
        "n_layer": wide["layers"],
    }


def _folds(config: PreTrainedConfig, tied: bool) -> Folds:
    # Grown head_dim sums g times as many terms into each score, of which 1/√head_dim takes back √g (or
    # nothing where it is switched off). The rest is folded into q and k alike; v, in the same fused
    # parameter, takes it along and c_proj gives it back: every parameter keeps one scale of its own.
    power = Fraction(1, 4) if config.scale_attn_weights else Fraction(1, 2)
    folds = {
        "attn.c_attn.weight": (Fold("head_dim", -power),),
        "attn.c_attn.bias": (Fold("head_dim", -power),),
        "attn.c_proj.weight": (Fold("head_dim", power),),
    }
    if tied:
        folds |= dict.fromkeys(("ln_f.weight", "ln_f.bias"), (Fold("d_model", Fraction(-1)),))
    return folds


FAMILY = Family(
    model_types=("gpt2",),
    axes={
        "wte.weight": "vocab d_model",
        "wpe.weight": "positions d_model",
        "ln_1.weight": "d_model",
        "ln_1.bias": "d_model",
        "ln_2.weight": "d_model",
        "ln_2.bias": "d_model",
        "attn.c_attn.weight": "[d_model] (3 heads head_dim)",
        "attn.c_attn.bias": "(3 heads head_dim)",
        "attn.c_proj.weight": "[heads head_dim] d_model",
        "attn.c_proj.bias": "d_model",
        "mlp.c_fc.weight": "[d_model] d_ff",
        "mlp.c_fc.bias": "d_ff",
        "mlp.c_proj.weight": "[d_ff] d_model",
        "mlp.c_proj.bias": "d_model",
        "ln_f.weight": "d_model",
        "ln_f.bias": "d_model",
        "lm_head.weight": "vocab [d_model]",
        "score.weight": "labels [d_model]",
    },
    sizes=_sizes,
    fields=_fields,
    width=("d_model", "d_ff", "heads"),
    fixed={
        "vocab": "the vocabulary is given by the tokenizer",
        "positions": "the number of positions is not a width",
        "labels": "the number of classes is not a width",
    },
    folds=_folds,
    readouts=("lm_head.weight", "score.weight"),
    # Causal masks that older versions stored beside the weights.
    ignored=("attn.bias", "attn.masked_bias"),
)
