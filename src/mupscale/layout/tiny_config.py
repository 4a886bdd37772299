"""Shrink any transformers config to a tiny one of the same class that keeps every flag and relation.

What is learned of a tiny model (which dims follow which field, which growth is exact) holds for the real one
as long as both run the same code, so sizes shrink here and nothing else changes. Which fields are sizes, and
how small they may be, stands in `tiny_sizes`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from mupscale.errors import said_as
from mupscale.layout.tiny_sizes import (
    COUNTS,
    FIRST_LAYERS,
    HEADS,
    HIDDEN,
    LAST_LAYERS,
    LAYER_NUMBERS,
    LAYER_PERIODS,
    LEFT_OUT,
    MOST_LAYERS,
    POSITIONS,
    STAGE,
    VOCABULARY,
    Row,
    canonical,
    is_positive,
    row_for,
)
from mupscale.models.skeletons import PreTrainedConfig, quiet, transformers_config, worked_out


def tiny(config: PreTrainedConfig, *, grouped: bool = False) -> PreTrainedConfig:
    """A config of the same class with every size tiny, and each kind of layer once.

    The given config is left as it is. Raises GrowthError where the class takes no such config.

    Args:
        grouped: let several query heads share a key/value head whatever the given config says, and heads
            stand in more than one group, so that each of these numbers can be doubled.

    >>> from transformers import LlamaConfig
    >>> small = tiny(LlamaConfig(num_key_value_heads=4, attention_bias=True))
    >>> small.hidden_size, small.num_attention_heads, small.num_key_value_heads, small.attention_bias
    (128, 8, 2, True)
    """
    with said_as(f"no tiny {type(config).__name__} can be built"), quiet():
        return type(config).from_dict(_Node(config, None, grouped).shrunk())


class _Node:
    """One config of the tree: its fields as given, their canonical names, and the `new` values so far."""

    def __init__(self, config: PreTrainedConfig, parent: _Node | None, grouped: bool) -> None:
        self.config, self.parent, self.grouped = config, parent, grouped
        self.moved: dict[int, int] = {} if parent is None else parent.moved  # ids of special tokens
        self.fields: dict[str, Any] = config.to_dict()
        mapped = {v: k for k, v in getattr(config, "attribute_map", {}).items()}
        self.names = {f: canonical(f) or mapped.get(f, f) for f in self.fields}
        self.new: dict[str, Any] = {}

    def shrunk(self) -> dict[str, Any]:
        """The fields to build the tiny config of."""
        self.new = {field: self.size(field) for field in self.fields}
        special = _SPECIAL.get(self.config.model_type)
        for rule in (_heads, _mamba, _layers, _stages, _windows, _ratios, _tokens, _rope, special):
            self.new |= rule(self) if rule else {}
        for field in self.fields:
            if (sub := transformers_config(vars(self.config).get(field))) is not None:
                self.new[field] = _Node(sub, self, self.grouped).shrunk()
        kept = {k: v for k, v in self.new.items() if not LEFT_OUT.fullmatch(k)}
        anew = self.worked_out(kept)
        return {k: v for k, v in kept.items() if k not in anew}

    def worked_out(self, kept: dict[str, Any]) -> set[str]:
        """The fields that the class works out from others, so that they are tiny where these are."""
        fields = worked_out(self.config)
        if not fields:
            return set()
        made = type(self.config).from_dict({k: v for k, v in kept.items() if k not in fields}).to_dict()
        return {name for name, n in fields.items() if made.get(name) != n}

    def size(self, field: str) -> Any:
        """The tiny value of a field by its name alone."""
        value, row = self.fields[field], row_for(self.names[field])
        if row is None:
            return value
        return [self.one(v, row) for v in value] if isinstance(value, (list, tuple)) else self.one(value, row)

    def one(self, value: Any, row: Row) -> Any:
        if not is_positive(value):
            return value
        if self.grouped and re.search(r"key_heads|_\?groups", row[0]):
            return row[1]
        like = row_for(row[2]) if row[2] and value == self.before(row[2]) else None
        if like is not None:
            return like[1]
        return min(value, row[1]) if row in COUNTS or (value == 1 and "key_value" in row[0]) else row[1]

    def before(self, name: str) -> Any:
        """The given value of a canonical field, here or in the nearest config around this one."""
        field = next((f for f, n in self.names.items() if n == name), None)
        if field is not None or self.parent is None:
            return None if field is None else self.fields[field]
        return self.parent.before(name)

    def after(self, name: str) -> Any:
        """The tiny value of a canonical field of this config."""
        return next((self.new[f] for f, n in self.names.items() if n == name), None)

    def matching(self, pattern: str) -> dict[str, Any]:
        """The fields of such a name that hold a positive number or a list."""
        found = {k: v for k, v in self.fields.items() if re.fullmatch(pattern, k)}
        return {k: v for k, v in found.items() if is_positive(v) or isinstance(v, (list, tuple))}


def _heads(node: _Node) -> dict[str, Any]:
    """Key/value heads and head dims, by how they stand to heads and hidden size in the given config."""
    made: dict[str, Any] = {}
    for field, name in node.names.items():
        value = node.fields[field]
        match = re.fullmatch("(swa_|global_|)(num_key_value_heads|head_dim)|attention_head_dim", name)
        if not match or not is_positive(value):
            continue
        heads = node.before(f"{match[1] or ''}num_attention_heads") or node.before("num_attention_heads")
        rotary = node.before("qk_rope_head_dim")
        if match[2] == "num_key_value_heads":
            made[field] = 2 if node.grouped else 1 if value == 1 else HEADS if value == heads else 2
        elif is_positive(rotary):  # the rotary part of latent attention, or all of it
            made[field] = max(8, 8 * value // rotary)
        else:
            whole = is_positive(heads) and heads * value == node.before("hidden_size")
            made[field] = HIDDEN // HEADS if whole else 16
    if "qk_head_dim" in node.fields:
        made["qk_head_dim"] = node.new["qk_rope_head_dim"] + node.new["qk_nope_head_dim"]
    return made


def _mamba(node: _Node) -> dict[str, Any]:
    """Heads of a state space layer, so that heads times head dim is the inner width."""
    own = node.config.model_type == "mamba2"  # has no other heads that they could be told from
    dim = node.matching("head_dim" if own else "mamba_d_head|mamba_head_?dim")
    count = node.matching("num_heads" if own else "mamba_n(um)?_heads|n_mamba_heads")
    inner = int(next(iter(node.matching("(mamba_)?expand").values()), 2) * HIDDEN)
    return {**dict.fromkeys(dim, 16), **dict.fromkeys(count, inner // 16)} if dim and count else {}


_LAYER_COUNTS = "num_hidden_layers|(num_)?(en|de)coder_layers|decoder_num_hidden_layers"


def _layers(node: _Node) -> dict[str, Any]:
    """As few layers as have each kind of layer once, and at least two."""
    counts = [
        f for f, n in node.names.items() if re.fullmatch(_LAYER_COUNTS, n) and is_positive(node.fields[f])
    ]
    made: dict[str, Any] = {f: min(2, node.fields[f]) for f in counts}
    total = node.before("num_hidden_layers") if node.after("num_hidden_layers") else None
    if not is_positive(total) or "depths" in node.fields:
        return made
    first, last, numbers, periods = (
        node.matching(p) for p in (FIRST_LAYERS, LAST_LAYERS, LAYER_NUMBERS, LAYER_PERIODS)
    )
    lists = {
        k: v for k, v in node.matching(".*").items() if isinstance(v, (list, tuple)) and k not in numbers
    }
    lists = {k: v for k, v in lists.items() if len(v) == total}
    single: dict[int, Any] = {int(k): v for k, v in (node.fields.get("per_layer_config") or {}).items()}
    if "mlp_only_layers" in numbers and periods.get("decoder_sparse_step", 1) > 1:
        step = periods.pop("decoder_sparse_step")  # the same said in one way: a list of the dense layers
        dense = [i for i in range(total) if i in numbers["mlp_only_layers"] or (i + 1) % step]
        numbers["mlp_only_layers"], made["decoder_sparse_step"] = dense, 1
    kinds = [
        (
            "n_layers_per_attn_res_block" in periods and i == 0,  # no block before it to look back on
            str(single.get(i)),
            *(str(v[i]) for v in lists.values()),
            *(i < v for v in first.values()),
            *(i >= total - v for v in last.values()),
            *(i in v for v in numbers.values()),
        )
        for i in range(total)
    ]
    # Of two periods side by side the longer one takes in the shorter one twice.
    long = max(periods.values()) if "attn_layer_period" in periods and len(periods) > 1 else 0
    # Blocks that "hybrid" layers share are tied between them, so that there have to be two of each.
    shared = [i for i, kind in enumerate(lists.get("layers_block_type", ())) if kind == "hybrid"]
    kept = _each_once(kinds, shared[: 2 * node.fields.get("num_mem_blocks", 1)], max(2, min(4, long)))
    made |= {k: min(v, 4 if v == long else 2) for k, v in periods.items()}
    made |= {k: v % made[k.replace("offset", "period")] for k, v in node.matching(".*_layer_offset").items()}
    made |= {k: [node.new[k][i] for i in kept] for k in lists}
    made |= {k: sum(i < v for i in kept) for k, v in first.items()}
    made |= {k: sum(i >= total - v for i in kept) for k, v in last.items()}
    made |= {k: [at for at, i in enumerate(kept) if i in v] for k, v in numbers.items()}
    made |= {f: len(kept) for f in counts if node.fields[f] == total}
    if single:
        made["per_layer_config"] = {
            at: _override(node, single[i]) for at, i in enumerate(kept) if i in single
        }
    return made


def _override(node: _Node, values: dict[str, Any]) -> dict[str, Any]:
    """What one layer has otherwise, in the ratio to the rest that it had."""
    made = dict(values)
    for field, value in values.items():
        usual, small = node.fields.get(field), node.new.get(field)
        if is_positive(value) and is_positive(usual) and is_positive(small):
            made[field] = max(1, small * value // usual)
    return made


def _each_once(kinds: Sequence[tuple[Any, ...]], also: Sequence[int], least: int) -> list[int]:
    """The first layer of each kind; where kinds are too many, layers that show each entry of them once."""
    kept = sorted({kind: i for i, kind in reversed(list(enumerate(kinds)))}.values())
    if len(kept) > MOST_LAYERS:
        seen: set[tuple[int, Any]] = set()
        every, kept = kept, []
        for i in every:
            if new := set(enumerate(kinds[i])) - seen:
                kept.append(i)
                seen |= new
    kept = sorted({*kept, *also})
    others = [i for i in range(len(kinds)) if i not in kept]
    return sorted(kept + others[: max(0, least - len(kept))])


def _stages(node: _Node) -> dict[str, Any]:
    """The first and the last stage of a model of several, two layers each: a stage's first is special."""
    name = "depths" if "depths" in node.fields else "depth"
    depths = node.fields.get(name)
    if not isinstance(depths, (list, tuple)):
        return {}
    made: dict[str, Any] = dict.fromkeys(node.matching("num_stages|num_encoder_blocks|num_layers"), 2)
    for field, value in node.matching(".*").items():
        if isinstance(value, (list, tuple)) and len(value) == len(depths):
            made[field] = [node.new[field][0], node.new[field][-1]]
    made[name] = [min(2, d) for d in made[name]]
    for field in node.matching("num(_attention)?_heads"):  # other numbers in other stages show which is whose
        if isinstance(node.fields[field], (list, tuple)) and len({*node.fields[field]}) > 1:
            made[field] = [HEADS // 2, HEADS]
    for field in ("hidden_sizes", "embed_dim"):
        if field in made:
            made[field] = [STAGE, 2 * STAGE]
    if "hidden_sizes" in made and node.fields.get("embedding_size") == node.fields["hidden_sizes"][0]:
        made["embedding_size"] = STAGE
    return made


def _windows(node: _Node) -> dict[str, Any]:
    """Windows that are said in pixels: two by two of what is merged into one token."""
    merged = node.fields.get("spatial_merge_size")
    patch = node.new.get("patch_size")  # what merges patches of another config has none of its own
    return dict.fromkeys(node.matching("window_size"), 2 * merged * patch) if merged and patch else {}


def _ratios(node: _Node) -> dict[str, Any]:
    """Sizes said as multiples of others: by halves, so that no tiny size has to be rounded."""
    factors = {k: v for k, v in node.fields.items() if k.endswith("_proj_factor") and isinstance(v, float)}
    return {k: max(0.5, round(2 * v) / 2) for k, v in factors.items()}


def _tokens(node: _Node) -> dict[str, Any]:
    """Ids of special tokens, moved inside of the vocabulary: equal ids stay equal, others apart."""

    def inside(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [inside(v) for v in value]
        if not is_positive(value) or value < VOCABULARY // 2:
            return value
        return node.moved.setdefault(value, VOCABULARY - 1 - len(node.moved) % (VOCABULARY // 2))

    return {k: inside(v) for k, v in node.fields.items() if re.fullmatch(".*_token_(ids?|index)", k)}


def _rope(node: _Node) -> dict[str, Any]:
    """Rope settings, with what counts head dims or positions cut to fit."""
    dims = [d for d in (node.after("head_dim"), node.after("qk_rope_head_dim")) if is_positive(d)]
    head_dim = dims[0] if dims else HIDDEN // HEADS
    longest = node.before("max_position_embeddings")

    def fit(values: dict[str, Any]) -> dict[str, Any]:
        made = {k: fit(v) if isinstance(v, dict) else v for k, v in values.items()}
        given = values.get("partial_rotary_factor") or node.fields.get("partial_rotary_factor") or 1.0
        pairs = max(1, int(head_dim * given) // 2)
        if values.get("partial_rotary_factor") and int(head_dim * given) != 2 * pairs:
            made["partial_rotary_factor"] = 2 * pairs / head_dim
        for key in ("short_factor", "long_factor"):
            if isinstance(factors := values.get(key), (list, tuple)):
                made[key] = [factors[i * len(factors) // pairs] for i in range(pairs)]
        if isinstance(sections := values.get("mrope_section"), (list, tuple)):
            made["mrope_section"] = _share(pairs, sections)
        if is_positive(original := values.get("original_max_position_embeddings")):
            made["original_max_position_embeddings"] = max(
                16, min(original, POSITIONS * original // (longest or original))
            )
        return made

    flat = {k: v for k, v in node.fields.items() if not isinstance(v, dict)}
    made = {k: v for k, v in fit(flat).items() if v != flat[k]}
    made |= {k: fit(v) for k, v in node.fields.items() if k.startswith("rope") and isinstance(v, dict)}
    if is_positive(rotary := node.fields.get("rotary_dim")):
        before = node.before("head_dim") or node.before("hidden_size") // node.before("num_attention_heads")
        made["rotary_dim"] = max(2, 2 * (head_dim * rotary // (2 * before)))
    return made


def _share(total: int, parts: Sequence[int]) -> list[int]:
    """`total` shared out as `parts` are to each other."""
    ends = [round(total * sum(parts[: i + 1]) / sum(parts)) for i in range(len(parts))]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def _cycles(node: _Node) -> dict[str, Any]:
    stack = node.fields["num_layers_per_stack"]
    layers = min(2, stack)
    return {
        "num_layers_per_stack": layers,
        "num_hidden_layers": node.fields["num_hidden_layers"] // stack * layers,
    }


def _axes(node: _Node) -> dict[str, Any]:
    dims, axes = _share(HIDDEN, node.fields["axial_pos_embds_dim"]), len(node.fields["axial_pos_shape"])
    return {"axial_pos_embds_dim": dims, "axial_pos_shape": [POSITIONS // 2 ** (axes - 1)] + [2] * (axes - 1)}


def _cycled(node: _Node) -> dict[str, Any]:
    kinds = list(dict.fromkeys(node.fields["block_types"]))
    return {"block_types": kinds, "num_hidden_layers": max(2, len(kinds))}


def _compressed(node: _Node) -> dict[str, Any]:
    rates = node.fields["compress_rates"]
    return {"compress_rates": {k: 2 + 2 * sorted(set(rates.values())).index(v) for k, v in rates.items()}}


def _patches(node: _Node) -> dict[str, Any]:
    sides = (node.parent or node).config
    width = HIDDEN * max(1, sides.global_config.hidden_size // sides.encoder_config.hidden_size)
    if node.config.model_type == "blt_global_transformer":
        return {"hidden_size": width, "head_dim": width // HEADS}
    return {"hidden_size_global": width}


_SPECIAL: dict[str, Callable[[_Node], dict[str, Any]]] = {
    "audio-spectrogram-transformer": lambda node: {"max_length": 40, "num_mel_bins": 32},
    "blt_global_transformer": _patches,  # reads several vectors of the local encoder as one
    "blt_local_encoder": _patches,
    "blt_local_decoder": _patches,
    "deepseek_v4": _compressed,  # has block lengths by the kind of layer
    "gpt_neo": lambda node: {"attention_types": [[node.new["attention_layers"], 1]]},  # kinds in nested lists
    "hrm_text": _cycles,  # counts its layers once for every cycle through them
    "recurrent_gemma": _cycled,  # goes through a short list of kinds again and again
    "reformer": _axes,  # splits hidden size and positions over two axes
}
