"""transformers' models, as a user's ``make`` returns them or has them inside."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from foreign_cases import UNEQUAL, Case, Make, images, of, tokens


def sizes(w: int) -> dict[str, Any]:
    return {
        "vocab_size": 64, "hidden_size": 32 * w, "intermediate_size": 48 * w, "num_hidden_layers": 2,
        "num_attention_heads": 4 * w, "num_key_value_heads": 2 * w, "head_dim": 8, "max_position_embeddings": 32,
    }  # fmt: skip


def llama(w: int, **options: Any) -> nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes(w) | options))


def gpt2(w: int, **options: Any) -> nn.Module:
    sizes: dict[str, Any] = {
        "vocab_size": 64,
        "n_positions": 32,
        "n_embd": 32 * w,
        "n_layer": 2,
        "n_head": 4 * w,
    }
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes | options))


def bert(w: int, kind: str = "BertModel", **options: Any) -> nn.Module:
    model: nn.Module = getattr(transformers, kind)(transformers.BertConfig(**sizes(w) | options))
    return model


def t5(w: int) -> nn.Module:
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=64,
            d_model=32 * w,
            d_kv=8,
            d_ff=48 * w,
            num_layers=2,
            num_heads=4 * w,
            decoder_start_token_id=0,
        )
    )


def vit(w: int) -> nn.Module:
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=32 * w, intermediate_size=48 * w, num_hidden_layers=2, num_attention_heads=4 * w, image_size=16,
            patch_size=4, num_labels=5,
        )
    )  # fmt: skip


class Classifier(nn.Module):
    """A body of transformers' with a head of one's own."""

    def __init__(self, w: int) -> None:
        super().__init__()
        self.body, self.head = (
            bert(w),
            nn.Sequential(nn.Linear(32 * w, 16 * w), nn.Tanh(), nn.Linear(16 * w, 3)),
        )

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.body(input_ids=ids).last_hidden_state[:, 0])


class Reward(nn.Module):
    """A language model that gives one number a text."""

    def __init__(self, w: int) -> None:
        super().__init__()
        self.config = transformers.LlamaConfig()  # of the full size, and not what the body is built from
        self.body, self.value = llama(w).model, nn.Linear(32 * w, 1, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.value(self.body(input_ids=ids).last_hidden_state).mean(1)


class Seer(nn.Module):
    """Pictures projected into the embeddings of a language model."""

    def __init__(self, w: int) -> None:
        super().__init__()
        self.eye, self.text = vit(w).vit, llama(w)
        self.projector = nn.Linear(32 * w, 32 * w)

    def forward(self, pixels: Tensor, ids: Tensor) -> Tensor:
        seen = self.projector(self.eye(pixel_values=pixels).last_hidden_state)
        words = self.text.get_input_embeddings()(ids)
        return self.text(inputs_embeds=torch.cat([seen, words], 1)).logits


def cases() -> Iterator[Case]:
    table: dict[str, Make] = {
        "llama": llama,
        "llama_tied": lambda w: llama(w, tie_word_embeddings=True),
        "llama_eager": lambda w: llama(w, attn_implementation="eager"),
        "gpt2": gpt2,
        "gpt2_head_dim_grows": lambda w: gpt2(w, n_head=4),
        "bert": bert,
        "bert_masked": lambda w: bert(w, "BertForMaskedLM"),
        "bert_classes": lambda w: bert(w, "BertForTokenClassification", num_labels=5),
        "qwen3": lambda w: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**sizes(w))),
        "gemma2": lambda w: transformers.Gemma2ForCausalLM(
            transformers.Gemma2Config(**sizes(w), query_pre_attn_scalar=8, sliding_window=8)
        ),
        "mixtral": lambda w: transformers.MixtralForCausalLM(
            transformers.MixtralConfig(**sizes(w), num_local_experts=3, num_experts_per_tok=2, experts_implementation="eager")
        ),
        "mamba": lambda w: transformers.MambaForCausalLM(
            transformers.MambaConfig(vocab_size=64, hidden_size=16 * w, state_size=4, num_hidden_layers=2, time_step_rank=2 * w)
        ),
    }  # fmt: skip
    yield from of(table, {"input_ids": tokens()}, {"mamba": UNEQUAL})
    yield Case("llama_loss", llama, {"input_ids": tokens(), "labels": tokens()})
    yield Case("t5", t5, {"input_ids": tokens(), "decoder_input_ids": tokens(8)})
    yield Case("vit", vit, {"pixel_values": images(16)})
    yield from of({"own_head": Classifier, "reward_model": Reward}, tokens())
    yield Case("pictures_and_text", Seer, (images(16, batch=3), tokens()))
