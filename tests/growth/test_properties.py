"""Growth over random architectures and factors: exact at rest and in training, whatever the shapes.

d_model is at least 4: a norm over fewer entries divides by next to nothing and turns rounding into noise.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import SGD, Adam, AdamW
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

import mupscale
from lockstep import assert_duplicates
from mupscale.models.precision import Float64

VOCAB = 23
factors = st.integers(1, 3)


@st.composite
def rotary(draw):
    kv_heads, q_per_kv, head_dim = (
        draw(st.integers(1, 2)),
        draw(st.integers(1, 2)),
        2 * draw(st.integers(1, 3)),
    )
    family = draw(st.sampled_from([LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config]))
    growth = {axis: draw(factors) for axis in ("d_ff", "kv_heads", "q_per_kv")}
    # Llama's config wants d_model to be a multiple of the heads, before and after.
    heads = kv_heads * q_per_kv
    growth["d_model"] = growth["kv_heads"] * growth["q_per_kv"]
    biases = (
        {"attention_bias": draw(st.booleans()), "mlp_bias": draw(st.booleans())}
        if family is LlamaConfig
        else {}
    )
    config = family(
        hidden_size=heads * draw(st.integers(4, 7)),
        intermediate_size=draw(st.integers(1, 9)),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        num_hidden_layers=draw(st.integers(1, 2)),
        tie_word_embeddings=draw(st.booleans()),
        vocab_size=VOCAB,
        bos_token_id=0,
        eos_token_id=1,
        **biases,
    )
    return config, growth


@st.composite
def gpt2(draw):
    heads, head_dim = draw(st.integers(1, 3)), draw(st.integers(4, 6))
    config = GPT2Config(
        n_embd=heads * head_dim,
        n_head=heads,
        n_inner=draw(st.none() | st.integers(1, 9)),
        n_layer=draw(st.integers(1, 2)),
        n_positions=16,
        vocab_size=VOCAB,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=draw(st.booleans()),
        scale_attn_weights=draw(st.booleans()),
        scale_attn_by_inverse_layer_idx=draw(st.booleans()),
        attn_pdrop=0,
        resid_pdrop=0,
        embd_pdrop=0,
    )
    growth = {axis: draw(factors) for axis in ("d_ff", "heads", "head_dim")}
    return config, growth | {"d_model": growth["heads"] * growth["head_dim"]}


OPTIMIZERS = [
    lambda p: AdamW(p, lr=1e-2, weight_decay=0.1),
    lambda p: Adam(p, lr=1e-2, weight_decay=0.01, eps=1e-3, amsgrad=True),
    lambda p: SGD(p, lr=1e-2, momentum=0.9, nesterov=True, weight_decay=0.01),
]


CASES = {
    "case": rotary() | gpt2(),
    "seed": st.integers(0, 99),
    "optimizer": st.sampled_from(OPTIMIZERS),
    "noise": st.sampled_from(["balanced:1", "balanced:4", "uneven:1"]),
}


@settings(max_examples=12)
@given(**CASES)
def test_any_architecture_grows_exactly_and_trains_in_lockstep(case, seed, optimizer, noise):
    hold(*case, seed, optimizer, noise)


@pytest.mark.slow
@settings(max_examples=200)
@given(**CASES)
def test_two_hundred_architectures_grow_exactly_and_train_in_lockstep(case, seed, optimizer, noise):
    hold(*case, seed, optimizer, noise)


def hold(config, growth, seed, optimizer, noise):
    torch.manual_seed(seed)
    narrow = AutoModelForCausalLM.from_config(config).double()
    with torch.no_grad():
        for p in narrow.parameters():
            p.add_(torch.randn_like(p), alpha=0.2)
    plan = mupscale.plan(narrow, axes=growth)
    assert mupscale.Plan.from_json(plan.to_json()).params == plan.params
    ids = torch.randint(VOCAB, (3, 9))
    narrow_optimizer = optimizer(narrow.parameters())

    def step(model, optim):
        optim.zero_grad()
        loss = model(ids, labels=ids).loss
        loss.backward()
        optim.step()
        return loss.item()

    with Float64():
        step(narrow, narrow_optimizer)
        noisy = mupscale.grow(narrow, plan, noise=noise, seed=seed, operator="duplicate")
        assert (noisy(ids).logits - narrow(ids).logits).abs().max() < 1e-10
        wide = mupscale.grow(narrow, plan, noise=None, operator="duplicate")
        wide_optimizer = mupscale.carry_optimizer(narrow_optimizer, narrow, wide, plan)
        for _ in range(5):
            assert abs(step(narrow, narrow_optimizer) - step(wide, wide_optimizer)) < 1e-10
    assert_duplicates(narrow, wide, plan, rtol=1e-7)
