"""litgpt's GPT under the options of each family, two layers deep."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from foreign_cases import UNEQUAL, Case, of, tokens

# Names of litgpt's, one a family, with the options that a smaller one needs besides.
FAMILIES: dict[str, dict[str, Any]] = {
    "pythia-14m": {},
    "stablelm-base-alpha-3b": {},
    "falcon-7b": {"n_query_groups": 1},
    "Llama-2-7b-hf": {},
    "Llama-3.2-1B": {"n_query_groups": 2},
    "Mistral-7B-v0.1": {"n_query_groups": 2},
    "Mixtral-8x7B-v0.1": {"n_query_groups": 2, "n_expert": 3, "n_expert_per_token": 2},
    "Gemma-2b": {"n_query_groups": 1},
    "Gemma-2-2b": {"n_query_groups": 2, "sliding_window_size": 8},
    "Gemma-3-1b-it": {"n_query_groups": 2, "sliding_window_size": 8, "sliding_window_indices": [1, 0]},
    "phi-2": {"rotary_percentage": 0.5},
    "Phi-3-mini-4k-instruct": {},
    "Qwen2.5-0.5B": {"n_query_groups": 2},
    "Qwen3-0.6B": {"n_query_groups": 2},
    "OLMo-1B-hf": {},
    "OLMo-2-1124-7B": {"n_query_groups": 4},
    "SmolLM2-135M": {"n_query_groups": 2},
    "salamandra-2b": {"n_query_groups": 4},
    "phi-4": {"n_query_groups": 2},
    "Qwen3-30B-A3B": {"n_query_groups": 2, "n_expert": 3, "n_expert_per_token": 2},
    "tiny-llama-1.1b": {"n_query_groups": 2},
}

ONE_GROUP = ("falcon-7b", "Gemma-2b")  # of queries, and stays one


def cases() -> Iterator[Case]:
    import litgpt
    from litgpt.config import name_to_config

    def gpt(w: int, name: str, **options: Any) -> nn.Module:
        sizes: dict[str, Any] = {
            "n_layer": 2, "n_embd": 32 * w, "n_head": 4 * w, "head_size": 8, "intermediate_size": 48 * w,
            "padded_vocab_size": 64, "block_size": 32,
        }  # fmt: skip
        # What is given for one width: groups of queries grow where there are several.
        sizes |= {k: v * w if k == "n_query_groups" and v > 1 else v for k, v in FAMILIES[name].items()}
        if name_to_config[name].get("moe_intermediate_size"):
            sizes["moe_intermediate_size"] = 24 * w
        return litgpt.GPT(litgpt.Config.from_name(name, **sizes | options))

    yield from of(
        {name: lambda w, name=name: gpt(w, name) for name in FAMILIES},
        tokens(),
        dict.fromkeys(ONE_GROUP, UNEQUAL),
    )
