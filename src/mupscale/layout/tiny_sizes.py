"""Which size a field of any transformers config says, and how small a tiny config has it.

Sizes are known by the names of their fields, not by family: a family that came out yesterday names its sizes
as its forebears did.
"""

from __future__ import annotations

import re
from typing import Any, TypeGuard

HIDDEN, HEADS, VOCABULARY, POSITIONS, MOST_LAYERS = 128, 8, 96, 64, 6
STAGE = 80  # the width of a first stage; like no other size, so that none is taken for it

# Names of one meaning. Where a field's own name tells nothing, the config's `attribute_map` is asked.
_SYNONYMS = {
    "hidden_size": "d_model|dim|emb_dim|embed_dim|embedding_dim|n_embd",
    "num_attention_heads": "n_heads?|num_heads|attention_heads|encoder_attention_heads",
    "num_key_value_heads": "num_kv_heads|kv_n_heads|num_query_groups|n_head_kv",
    "num_hidden_layers": "n_layers?|num_layers|depth|num_blocks|decoder_layers",
    "head_dim": "d_head|d_kv|kv_channels|dim_head|attention_head_size",
    "max_position_embeddings": "n_positions|n_ctx|max_seq_len|context_length|model_max_length",
    "intermediate_size": "ffn_dim|d_ff|dff|dim_ff|hidden_dim|mlp_dim|n_inner|d_inner|ffn_hidden_size"
    "|feed_forward_size",
}

# Name, its tiny value, and the field of the same config whose value it takes where they agree to begin with.
# The first row that fits the whole name wins; zero, negative and absent values stay as they are.
Row = tuple[str, int, str]
_WIDTHS: tuple[Row, ...] = (
    ("hidden_size_per_layer_input", 24, ""),
    ("(input_)?embedding_size|word_embed_proj_dim", 32, "hidden_size"),
    ("output_embedding_size", 40, "hidden_size"),
    ("attention_hidden_size", 2 * HIDDEN, "hidden_size"),
    ("router_hidden_size", 24, ""),
    (".*hidden_size.*|input_size|(projector|vision)_(in|out)put_dim|projection_(dim|size)", HIDDEN, ""),
    ("lru_width|pooler_output_size|ple_embed_dim", HIDDEN, ""),
    ("qk_rope_head_dim|rotary_dim", 8, ""),
    ("(qk_nope|v|index|indexer|linear|linear_(key|value)|mamba)_head_dim|mamba_d_head|mamba_headdim", 16, ""),
    ("(moe_)?shared.*intermediate_size", 40, "intermediate_size"),
    ("(moe_|expert_).*(intermediate|ffn|hidden).*", 24, "intermediate_size"),
    ("intermediate_size|(en|de)coder_ffn_dim", 48, ""),
    (".*intermediate_size.*", 56, "intermediate_size"),
    ("time_step_rank|mamba_dt_rank", 4, ""),
    ("q_lora_rank", 24, ""),
    (".*_rank|.*lowrank|.*_adapter_dim", 16, ""),
    ("mamba_d_ssm", 2 * HIDDEN, ""),
    ("(mamba_)?d_state|(ssm_)?state_size", 16, ""),
    ("conv_dim", 32, ""),
    ("max_position_embeddings|max_(source|target)_positions|rel_extent", POSITIONS, ""),
    ("(.*_)?chunk_size|.*_chunk_length", 8, ""),
    ("(.*_)?sliding_window(_size)?|(.*_)?window_size|local_attention", 4, ""),
    ("image_size", 32, ""),
    ("(.*_)?num_attention_heads|(en|de)coder_attention_heads", HEADS, ""),
    ("(?!make_)(.*_)?vocab(_size)?(_.*)?", VOCABULARY, ""),
)
# Counts: as widths, but never more than there were.
COUNTS: tuple[Row, ...] = (
    ("patch_size", 8, ""),
    ("mm_tokens_per_image", 4, ""),
    ("encoder_stride", 8, "patch_size"),
    ("(moe_)?num_(local_)?experts|n_routed_experts|zero_expert_num", 4, ""),
    ("index(er)?_n_heads|linear_num_heads|index_topk|index_block_size|indexer_budget", 4, ""),
    ("linear_num_value_heads", 8, ""),
    ("linear_num_key_heads", 4, "linear_num_value_heads"),
    ("(.*_)?num_key_value_heads|(mamba_)?n(um)?_?groups|o_groups|num_mem_blocks|sr_ratios", 2, ""),
    ("num_experts_per_tok(en)?|moe_(top_?)?k|top_k_experts|(.*_)?n(um)?_shared_experts", 2, ""),
    ("n_group|num_expert_group|topk_group|index_topk_blocks|indexer_compress_ratio|split_ngram_parts", 2, ""),
)
# Fields that say something of layers by a count from the first or the last, by their numbers, or by a period.
FIRST_LAYERS = (
    "first_k_dense_replace|num_dense_layers|max_window_layers|num_hash_layers|moe_layer_start_index"
)
LAST_LAYERS = "num_kv_shared_layers"
LAYER_NUMBERS = (
    "full_attn_idxs|moe_layers|cross_attention_layers|hybrid_layer_ids|mlp_only_layers|global_attn_indexes"
    "|ple_layer_ids|attn_layer_indices"
)
LAYER_PERIODS = (
    "decoder_sparse_step|(attn|expert)_layer_period|.*sliding_window_pattern|global_attn_every_n_layers"
    "|interleave_moe_layer_step|no_rope_layer_interval|layer_group_size|moe_layer_interval"
    "|n_layers_per_attn_res_block"
)
# What follows from other fields and is worked out anew where left out, or tells of stored weights only.
LEFT_OUT = re.compile("stage_names|_?out_features|_?out_indices|quantization_config")


def canonical(field: str) -> str | None:
    """The one name of what a field says; None where its own name tells nothing."""
    if field in _SYNONYMS or row_for(field):
        return field
    return next((name for name, other in _SYNONYMS.items() if re.fullmatch(other, field)), None)


def row_for(name: str) -> Row | None:
    """The first row whose pattern fits the whole name."""
    return next((row for row in _WIDTHS + COUNTS if re.fullmatch(row[0], name)), None)


def is_positive(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
