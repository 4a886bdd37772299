"""x-transformers under one after another of its options; 16·width wide in 2·width heads, if not said otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from foreign_cases import PLACES, ROTARY, Case, Make, draw, images, of, tokens

# The options of the stack of layers; a number in a list grows with the width.
LAYERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "flash": {"attn_flash": True},
    "head_dim_grows": {"heads": 2, "attn_dim_head": [8]},
    "head_dim_grows_flash": {"heads": 2, "attn_dim_head": [8], "attn_flash": True},
    "rotary": {"rotary_pos_emb": True},
    "rotary_head_dim_grows": {"rotary_pos_emb": True, "heads": 2, "attn_dim_head": [8]},
    "rotary_xpos": {"rotary_xpos": True},
    "alibi": {"alibi_pos_bias": True},
    "alibi_head_dim_grows": {"alibi_pos_bias": True, "heads": 2, "attn_dim_head": [8]},
    "t5_bias": {"rel_pos_bias": True},
    "dynamic_bias": {"dynamic_pos_bias": True},
    "data_dependent_alibi": {"attn_data_dependent_alibi": True},
    "cope": {"attn_use_cope": True},
    "rmsnorm_swiglu": {"use_rmsnorm": True, "ff_glu": True, "ff_swish": True, "ff_no_bias": True},
    "scalenorm": {"use_scalenorm": True},
    "simple_rmsnorm": {"use_simple_rmsnorm": True},
    "dynamic_tanh": {"use_dynamic_tanh": True},
    "post_norm": {"pre_norm": False},
    "sandwich_norm": {"sandwich_norm": True},
    "layerscale": {"use_layerscale": True, "layerscale_init_value": 0.1},
    "relu_squared": {"ff_relu_squared": True, "ff_post_act_ln": True},
    "macaron": {"macaron": True},
    "qk_norm": {"attn_qk_norm": True, "attn_qk_norm_dim_scale": True},
    "qk_rmsnorm": {"attn_qk_rmsnorm": True},
    "value_rmsnorm": {"attn_value_rmsnorm": True},
    "one_kv_head": {"attn_one_kv_head": True},
    "kv_heads": {"heads": [4], "attn_kv_heads": [2]},
    "talking_heads": {"attn_pre_talking_heads": True, "attn_post_talking_heads": True},
    "head_scale": {"attn_head_scale": True},
    "sparse_topk": {"attn_sparse_topk": 4},
    "memory_kv": {"attn_num_mem_kv": 3},
    "gated_values": {"attn_gate_values": True, "attn_gate_value_heads": True},
    "sigmoid": {"attn_sigmoid": True},
    "softclamp": {"attn_softclamp_logits": True},
    "selective": {"attn_selective": True},
    "laser": {"attn_laser": True},
    "latent_q_kv": {"attn_use_latent_q": True, "attn_dim_latent_q": [8], "attn_use_latent_kv": True, "attn_dim_latent_kv": [8]},
    "residual_attention": {"residual_attn": True},
    "value_residual": {"add_value_residual": True},
    "gated_residual": {"gate_residual": True},
    "scaled_residual": {"scale_residual": True},
    "hyper_connections": {"num_residual_streams": 2},
    "integrated_layers": {"integrate_layers": True},
    "shifted_tokens": {"shift_tokens": 1},
    "tied_layers": {"weight_tie_layers": True},
    "unet_skips": {"unet_skips": True},
    "dropouts": {"layer_dropout": 0.0, "attn_dropout": 0.1, "ff_dropout": 0.1},
}  # fmt: skip

# The options of what stands around it.
WRAPPERS: dict[str, dict[str, Any]] = {
    "tied_embedding": {"tie_embedding": True},
    "narrow_embedding": {"emb_dim": [8]},
    "normed_embedding": {"post_emb_norm": True},
    "unit_embedding": {"l2norm_embed": True},
    "sinusoidal_places": {"scaled_sinu_pos_emb": True},
    "no_places": {"use_abs_pos_emb": False},
    "memory_tokens": {"num_memory_tokens": 3},
    "mixture_of_softmax": {"mixture_of_softmax": True, "mixture_of_softmax_k": 2},
}

INEXACT = {
    "rotary_head_dim_grows": ROTARY,
    "alibi": "heads grow, whose slopes are computed from their number",
    "selective": "the first head gates all of them, and only one of its copies would",
    "unit_embedding": "of unit length, copies come out √g smaller, and eps of the norms stays",
    "sinusoidal_places": PLACES,
}


def sized(options: dict[str, Any], w: int) -> dict[str, Any]:
    return {key: value[0] * w if isinstance(value, list) else value for key, value in options.items()}


def cases() -> Iterator[Case]:
    import x_transformers as x

    def layers(w: int, kind: Any = x.Decoder, **options: Any) -> nn.Module:
        return kind(
            **{"dim": 16 * w, "depth": 2, "heads": 2 * w, "attn_dim_head": 8, "verbose": False, **options}
        )

    def language(w: int, stack: dict[str, Any], wrapper: dict[str, Any]) -> nn.Module:
        body = layers(w, **sized(stack, w))
        return x.TransformerWrapper(num_tokens=64, max_seq_len=16, attn_layers=body, **sized(wrapper, w))

    table: dict[str, Make] = {
        **{name: lambda w, o=options: language(w, o, {}) for name, options in LAYERS.items()},
        **{name: lambda w, o=options: language(w, {}, o) for name, options in WRAPPERS.items()},
    }
    yield from of(table, tokens(), INEXACT)
    yield from of(
        {
            "vit": lambda w: x.ViTransformerWrapper(
                image_size=16, patch_size=4, num_classes=7, attn_layers=layers(w, x.Encoder)
            ),
            "vit_registers": lambda w: x.ViTransformerWrapper(
                image_size=16,
                patch_size=4,
                num_classes=7,
                num_register_tokens=2,
                attn_layers=layers(w, x.Encoder),
            ),
        },
        images(16, batch=3),
    )
    yield from of(
        {
            "continuous": lambda w: x.ContinuousTransformerWrapper(
                dim_in=6, dim_out=5, max_seq_len=16, attn_layers=layers(w, x.Encoder)
            ),
            "hidden_states": lambda w: nn.Sequential(nn.Linear(6, 16 * w), layers(w, x.Encoder)),
        },
        draw(3, 9, 6),
    )
    yield Case(
        "encoder_decoder",
        lambda w: x.XTransformer(
            dim=16 * w, enc_num_tokens=64, enc_depth=1, enc_heads=2 * w, enc_max_seq_len=16, enc_attn_dim_head=8,
            dec_num_tokens=64, dec_depth=1, dec_heads=2 * w, dec_max_seq_len=16, dec_attn_dim_head=8, tie_token_emb=True,
        ),
        (tokens(), tokens(10)),
    )  # fmt: skip
    yield Case("loss", lambda w: x.AutoregressiveWrapper(language(w, {}, {})), tokens())
    yield Case(
        "multi_input",
        lambda w: x.MultiInputTransformerWrapper(
            num_tokens={"note": 20, "pitch": 30},
            max_seq_len=16,
            attn_layers=layers(w),
            return_only_embed=False,
        ),
        {"x": {"note": torch.arange(24).reshape(2, 12) % 20, "pitch": torch.arange(24).reshape(2, 12) % 29}},
    )
