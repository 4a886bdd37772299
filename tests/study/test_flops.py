from transformers import GPT2Config, LlamaConfig

from mupscale.study.data.flops import training_flops


def test_llama_matches_the_count_by_hand(model_config: LlamaConfig) -> None:
    batch, block = 3, 32
    c = model_config
    heads = c.num_attention_heads * c.head_dim
    weights = c.hidden_size * (2 * heads + 2 * c.num_key_value_heads * c.head_dim + 3 * c.intermediate_size)
    readout = c.hidden_size * c.vocab_size
    attention = 2 * block * heads  # scores and values, per token
    forward = 2 * batch * block * (c.num_hidden_layers * (weights + attention) + readout)
    assert training_flops(c, batch_size=batch, block_size=block) == 3 * forward  # backward: twice


def test_any_family_counts_and_is_linear_in_the_batch() -> None:
    config = GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=100, n_positions=64)
    one, four = (training_flops(config, batch_size=b, block_size=16) for b in (1, 4))
    assert four == 4 * one
