"""peft's adapters, on a small perceptron and on transformers' models; the base is frozen, as they leave it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from foreign_cases import Case, draw, of, tokens
from foreign_cases.transformers import bert, gpt2, llama


def perceptron(w: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 16 * w), nn.ReLU(), nn.Linear(16 * w, 24 * w), nn.ReLU(), nn.Linear(24 * w, 5)
    )


def cases() -> Iterator[Case]:
    import peft

    def adapted(base: Any, config: Any) -> nn.Module:
        return peft.get_peft_model(base, config)

    layers = {"target_modules": ["0", "2"]}
    yield from of(
        {
            "lora": lambda w: adapted(perceptron(w), peft.LoraConfig(r=4, **layers)),
            "lora_rank_grows": lambda w: adapted(
                perceptron(w), peft.LoraConfig(r=4 * w, lora_alpha=8 * w, **layers)
            ),
            "lora_saved_head": lambda w: adapted(
                perceptron(w), peft.LoraConfig(r=4, modules_to_save=["4"], **layers)
            ),
            "rslora": lambda w: adapted(perceptron(w), peft.LoraConfig(r=4, use_rslora=True, **layers)),
            "dora": lambda w: adapted(perceptron(w), peft.LoraConfig(r=4, use_dora=True, **layers)),
            "ia3": lambda w: adapted(
                perceptron(w), peft.IA3Config(target_modules=["0", "2"], feedforward_modules=[])
            ),
            "loha": lambda w: adapted(perceptron(w), peft.LoHaConfig(r=4, **layers)),
            "vera": lambda w: adapted(perceptron(w), peft.VeraConfig(r=4, target_modules=["2"])),
            "ln_tuning": lambda w: adapted(
                nn.Sequential(nn.Linear(6, 16 * w), nn.LayerNorm(16 * w), nn.Linear(16 * w, 5)),
                peft.LNTuningConfig(target_modules=["1"]),
            ),
            "lora_merged": lambda w: (
                adapted(perceptron(w), peft.LoraConfig(r=4, **layers)).merge_and_unload().requires_grad_(True)
            ),
        },
        draw(16, 6),
    )
    attention = {"target_modules": ["q_proj", "v_proj"]}
    yield from of(
        {
            "lora_llama": lambda w: adapted(llama(w), peft.LoraConfig(r=4, **attention)),
            "lora_llama_all": lambda w: adapted(llama(w), peft.LoraConfig(r=4, target_modules="all-linear")),
            "dora_llama": lambda w: adapted(llama(w), peft.LoraConfig(r=4, use_dora=True, **attention)),
            "ia3_llama": lambda w: adapted(
                llama(w), peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
            ),
            "lora_gpt2": lambda w: adapted(gpt2(w), peft.LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True)),
            "lora_bert": lambda w: adapted(bert(w), peft.LoraConfig(r=4, target_modules=["query", "value"])),
            "lora_embedding": lambda w: adapted(llama(w), peft.LoraConfig(r=4, target_modules=["embed_tokens"])),
            "prompt_tuning": lambda w: adapted(
                llama(w), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, token_dim=32 * w, num_layers=2, num_attention_heads=4 * w)
            ),
        },
        {"input_ids": tokens()},
    )  # fmt: skip
