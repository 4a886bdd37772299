import torch
from transformers import GPT2Config, LlamaConfig, PreTrainedConfig

from mupscale.study.data.flops import training_flops
from mupscale.study.runs.models import fresh_model


def flops(config: PreTrainedConfig, batch: int, block: int) -> int:
    ids = torch.zeros(batch, block, dtype=torch.long)
    return training_flops(fresh_model(config, 0), {"input_ids": ids, "labels": ids})


def test_llama_matches_the_count_by_hand(model_config: LlamaConfig) -> None:
    batch, block = 3, 32
    c = model_config
    heads = c.num_attention_heads * c.head_dim
    weights = c.hidden_size * (2 * heads + 2 * c.num_key_value_heads * c.head_dim + 3 * c.intermediate_size)
    readout = c.hidden_size * c.vocab_size
    attention = 2 * block * heads  # scores and values, per token
    forward = 2 * batch * block * (c.num_hidden_layers * (weights + attention) + readout)
    assert flops(c, batch, block) == 3 * forward  # backward: twice


def test_any_family_counts_and_is_linear_in_the_batch() -> None:
    config = GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=100, n_positions=64)
    one, four = (flops(config, b, 16) for b in (1, 4))
    assert four == 4 * one
