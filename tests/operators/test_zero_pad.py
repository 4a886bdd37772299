"""Shrink, pad, perturb: every narrow entry in its named place, and the rest by `init_`'s own law."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPTNeoXConfig

import mupscale
from models import CONFIGS, NAMES, VOCAB, batch, build, loss_of, plan_source
from mupscale import GrowthError
from mupscale.growth import grow_checkpoint
from mupscale.operators.zero_pad import Shrink

# d_model, heads and about how many parameters (Mallik et al. 2024, Table 1).
SIZES = {"5M": (48, 2), "10M": (96, 6), "22M": (192, 8), "35M": (288, 12), "70M": (512, 16)}


def neox(size, vocab_size=VOCAB, layers=6):
    d_model, heads = SIZES[size]
    return GPTNeoXConfig(
        hidden_size=d_model,
        intermediate_size=4 * d_model,
        num_attention_heads=heads,
        num_hidden_layers=layers,
        vocab_size=vocab_size,
        max_position_embeddings=1024,
        bos_token_id=0,
        eos_token_id=1,
    )


def padded(narrow, plan, **kwargs):
    return mupscale.grow(narrow, plan, operator="zero_pad", **kwargs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_shrunk_to_nothing_it_is_a_fresh_model(name, dtype):
    narrow = build(name).to(dtype)
    plan = mupscale.plan(plan_source(name, narrow), width=2)
    wide = padded(narrow, plan, shrink=0, seed=5)
    fresh = mupscale.init_(padded(narrow, plan).to(dtype), plan, seed=5)
    for (key, a), (_, b) in zip(wide.named_parameters(), fresh.named_parameters(), strict=True):
        assert torch.equal(a, b), key


def test_a_plain_pad_keeps_heads_in_a_fused_conv1d():
    narrow = build("gpt2")
    wide = padded(narrow, mupscale.plan(narrow, width=3), shrink=1, noise=None)
    key = "transformer.h.1.attn.c_attn.weight"
    before = narrow.get_parameter(key).view(32, 3, 2, 16)  # d_model, q/k/v, heads, head_dim
    after = wide.get_parameter(key).view(96, 3, 6, 16)
    assert torch.equal(after[:32, :, :2], before)
    assert not after[32:].any()
    assert not after[:, :, 2:].any()


def test_a_plain_pad_keeps_heads_in_neox_interleaved_layout():
    narrow = build("gpt_neox")
    wide = padded(narrow, mupscale.plan(narrow, width=2), shrink=1, noise=None)
    key = "gpt_neox.layers.0.attention.query_key_value.weight"
    before = narrow.get_parameter(key).view(2, 3, 16, 32)  # heads, q/k/v, head_dim, d_model
    after = wide.get_parameter(key).view(4, 3, 16, 64)
    assert torch.equal(after[:2, :, :, :32], before)
    assert after.count_nonzero() == before.count_nonzero()


def test_a_plain_pad_keeps_grouped_queries_beside_their_keys():
    config = CONFIGS["llama"]()
    config.num_attention_heads, config.num_key_value_heads = 12, 3  # from 4 over 2: two axes grow
    config.hidden_size, config.head_dim, config.intermediate_size = 36, 10, 50
    narrow = build("llama")
    plan = mupscale.plan(narrow, to=config)
    wide = padded(narrow, plan, shrink=1, noise=None)
    key = "model.layers.0.self_attn.q_proj.weight"
    before = narrow.get_parameter(key).view(2, 2, 8, 32)  # kv_heads, q_per_kv, head_dim, d_model
    after = wide.get_parameter(key).view(3, 4, 10, 36)
    assert torch.equal(after[:2, :2, :8, :32], before)
    assert after.count_nonzero() == before.count_nonzero()


def test_new_gains_start_fresh_and_not_silent():
    narrow = build("llama")
    gain = narrow.model.norm.weight.detach()
    plan = mupscale.plan(narrow, width=2)
    wide = padded(narrow, plan, shrink=0.5, noise=None).model.norm.weight.detach()
    torch.testing.assert_close(wide[:32], 1 + 0.5 * (gain - 1))
    assert (wide[32:] == 1).all()


def test_statistics_of_norms_are_padded_too():
    narrow = build("resnet")
    narrow.bn.running_var.fill_(3.0)
    narrow.bn.running_mean.fill_(0.5)
    wide = padded(narrow, mupscale.plan(plan_source("resnet", narrow), width=2), shrink=1)
    assert wide.bn.running_var.tolist() == [3.0, 3.0, 1.0, 1.0]
    assert wide.bn.running_mean.tolist() == [0.5, 0.5, 0.0, 0.0]


def test_the_random_term_has_the_law_of_a_fresh_wide_model():
    narrow = build("llama")
    plan = mupscale.plan(narrow, width=4)
    noisy, plain = (padded(narrow, plan, shrink=0.4, noise=noise) for noise in ("fresh:0.5", None))
    fresh = mupscale.init_(padded(narrow, plan), plan, seed=0)
    key = "model.layers.0.mlp.up_proj.weight"
    added = noisy.get_parameter(key) - plain.get_parameter(key)
    torch.testing.assert_close(added, 0.5 * fresh.get_parameter(key))
    assert fresh.get_parameter(key).std().item() == pytest.approx(0.02 / 2, rel=0.05)


def test_shrink_by_pattern():
    narrow = build("gpt2")
    plan = mupscale.plan(narrow, width=2)
    wide = padded(narrow, plan, shrink={"*": 1, "*.mlp.*": 0.5, "*.1.mlp.c_fc.*": 0}, noise=None)
    for key, factor in {
        "transformer.h.0.attn.c_proj.weight": 1,
        "transformer.h.0.mlp.c_fc.weight": 0.5,
        "transformer.h.1.mlp.c_fc.weight": 0,
    }.items():
        before = narrow.get_parameter(key)
        assert torch.equal(wide.get_parameter(key)[: before.shape[0], : before.shape[1]], factor * before)
    with pytest.raises(GrowthError, match=r"shrink pattern '\*\.ffn\.\*' matches no parameter"):
        padded(narrow, plan, shrink={"*.ffn.*": 0.5})


def test_padded_again_what_is_fresh_has_the_size_from_the_first_model(tmp_path):
    build("llama").float().save_pretrained(tmp_path / "one")
    for source, destination in (("one", "two"), ("two", "four")):
        grow_checkpoint(
            tmp_path / source, tmp_path / destination, width=2, operator="zero_pad", shrink=0, seed=3
        )
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "four")
    fresh = AutoModelForCausalLM.from_config(again.config)
    mupscale.init_(fresh, mupscale.Plan.load(tmp_path / "four"), seed=3)
    for (name, a), (_, b) in zip(again.named_parameters(), fresh.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_shrink_as_a_word_is_a_number():
    assert Shrink.parse("0.4", 1) == Shrink.parse(0.4, 1)
    with pytest.raises(GrowthError, match="two values for the same parameters"):
        Shrink.parse(["0.4", "0.6"], 1)


@pytest.mark.parametrize("wrong", [-0.1, float("nan"), ["0.4", "mlp=much"], ["half"]])
def test_shrink_must_be_a_number(wrong):
    with pytest.raises(GrowthError, match="expected a number of at least 0"):
        Shrink.parse(wrong, 1)


def test_words_of_the_command_line_and_mappings_say_the_same():
    assert Shrink.parse(["0.3", "*.mlp.*=0.6"], 1) == Shrink.parse({"*": 0.3, "*.mlp.*": 0.6}, 1)
    assert str(Shrink.parse(["0.3", "*.mlp.*=0.6"], 1)) == "0.3 *.mlp.*=0.6"


@pytest.mark.parametrize("target", list(SIZES)[1:])
def test_all_sizes_of_the_paper_are_reached(target):
    """From 2 heads of 24; to 6 of 16 and to 12 of 24 heads, sizes of heads and ratios all differ."""
    torch.manual_seed(0)
    narrow = AutoModelForCausalLM.from_config(neox("5M", layers=2))
    plan = mupscale.plan(narrow, to=neox(target, layers=2))
    wide = padded(narrow, plan, noise=None, shrink=1)
    d_model, heads = SIZES[target]
    assert (wide.config.hidden_size, wide.config.num_attention_heads) == (d_model, heads)
    for name, before in narrow.named_parameters():
        if before.ndim == 2:
            after = wide.get_parameter(name)
            # Whatever is not padding is the narrow matrix, in its order; where no heads are, in one corner.
            if target != "10M" or "query_key_value" not in name:  # whose heads are smaller: see below
                assert torch.equal(after[after != 0], before.flatten()), name
            if "attention" not in name:
                assert torch.equal(after[: before.shape[0], : before.shape[1]], before), name


def test_sizes_of_the_paper_with_its_vocabulary():
    for size, expected in {"5M": 5e6, "10M": 10e6, "22M": 22e6, "35M": 35e6, "70M": 70e6}.items():
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(neox(size, vocab_size=50_304))
        assert model.num_parameters() == pytest.approx(expected, rel=0.15)


def test_where_head_dim_shrinks_the_merged_axis_is_padded_and_the_plan_says_so():
    torch.manual_seed(0)
    narrow = AutoModelForCausalLM.from_config(neox("5M"))
    plan = mupscale.plan(narrow, to=neox("10M"))
    assert "head_dim: shrinks by 2/3, so that heads and it can only be padded as one axis" in str(plan)
    wide = padded(narrow, plan, shrink=1, noise=None)
    key = "gpt_neox.layers.2.attention.query_key_value.weight"
    before = narrow.get_parameter(key).view(2, 3, 24, 48).transpose(0, 1).reshape(3, 48, 48)
    after = wide.get_parameter(key).view(6, 3, 16, 96).transpose(0, 1).reshape(3, 96, 96)
    assert torch.equal(after[:, :48, :48], before)  # queries are queries, keys keys, values values
    assert after.count_nonzero() == before.count_nonzero()
    with pytest.raises(GrowthError, match="padded as one axis"):
        mupscale.grow(narrow, plan, operator="duplicate")


def test_nothing_may_shrink_altogether():
    narrow = neox("10M")
    with pytest.raises(GrowthError, match="'d_model' goes from 96 to 48; no dim of a parameter may shrink"):
        mupscale.plan(narrow, to=neox("5M"))


def test_optimizer_state_is_padded_when_asked_for():
    narrow = build("llama")
    optimizer = torch.optim.AdamW(narrow.parameters(), lr=1e-3)
    loss_of(narrow, batch("llama", 0)).backward()
    optimizer.step()
    plan = mupscale.plan(narrow, width=2)
    wide = padded(narrow, plan)
    carried = mupscale.carry_optimizer(optimizer, narrow, wide, plan, operator="zero_pad")
    before = optimizer.state[narrow.model.layers[0].mlp.up_proj.weight]
    after = carried.state[wide.model.layers[0].mlp.up_proj.weight]
    assert after["step"] == before["step"]
    for key in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(after[key][:48, :32], before[key])
        assert after[key].count_nonzero() == before[key].count_nonzero()
    loss_of(wide, batch("llama", 1)).backward()
    carried.step()
    copies = mupscale.grow(narrow, mupscale.plan(narrow, axes={"d_ff": 2}), operator="net2net")
    with pytest.raises(GrowthError, match="uneven, so no optimizer state"):
        mupscale.carry_optimizer(optimizer, narrow, copies, plan)


def test_state_in_parameter_space_cannot_be_padded():
    narrow = build("mlp")
    optimizer = torch.optim.Rprop(narrow.parameters())
    loss_of(narrow, batch("mlp", 0)).backward()
    optimizer.step()
    plan = mupscale.plan(plan_source("mlp", narrow), width=2)
    with pytest.raises(GrowthError, match="'step_size' cannot be zero"):
        mupscale.carry_optimizer(optimizer, narrow, padded(narrow, plan), plan, operator="zero_pad")


class Tables(nn.Module):
    """Beside its weights it holds buffers of every kind that people register."""

    def __init__(self, width: int) -> None:
        super().__init__()
        channels = 8 * width
        self.enter, self.leave = nn.Linear(4, channels), nn.Linear(channels, 3)
        angles = torch.arange(200)[:, None] / 100 ** (torch.arange(channels) / channels)
        self.register_buffer("waves", angles.sin())
        self.register_buffer("drawn", torch.randn(200, channels))
        self.register_buffer("numbers", torch.arange(5))
        self.register_buffer("mask", torch.ones(3, 3).tril().bool())
        self.register_buffer("seen", torch.tensor(0))
        self.register_buffer("average", torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.leave(self.enter(x) + self.waves[0] + self.drawn[0] - self.average)


@pytest.mark.parametrize(("operator", "fresh_share"), [("zero_pad", 1), ("expand", 0.6)])
def test_a_table_is_that_of_the_wide_model_and_what_was_learned_in_buffers_is_shrunk(operator, fresh_share):
    torch.manual_seed(0)
    narrow = Tables(1)
    narrow.seen += 7
    narrow.average += 2
    plan = mupscale.plan(Tables, width=2, inputs=torch.ones(2, 4))
    wide, fresh = mupscale.grow(narrow, plan, operator=operator, shrink=0.4), Tables(2)
    for name in ("waves", "numbers", "mask"):
        assert torch.equal(wide.get_buffer(name), fresh.get_buffer(name)), name
        assert wide.get_buffer(name).dtype == fresh.get_buffer(name).dtype
    assert wide.seen == 7
    assert torch.equal(wide.average, torch.tensor([0.8] * 8 + [0.0] * 8))
    assert wide.drawn[:, 8:].std() == pytest.approx(1, rel=0.1)
    assert (wide.drawn[:, :8] - 0.4 * narrow.drawn).std() == pytest.approx(fresh_share, rel=0.1)


def test_where_it_is_not_known_what_a_fresh_buffer_holds_only_one_that_does_not_grow_stays():
    narrow, wide = Tables(1), Tables(2)
    plan = mupscale.plan(narrow, to=wide, inputs=torch.ones(2, 4))
    with pytest.raises(
        GrowthError, match=r"waves: cannot tell how a fresh one is initialized; plan from a function"
    ):
        mupscale.grow(narrow, plan, operator="zero_pad")
    for module in (narrow, wide):
        del module.waves, module.drawn, module.numbers, module.average
        module.forward = lambda x, module=module: module.leave(module.enter(x))
    grown = mupscale.grow(narrow, mupscale.plan(narrow, to=wide), operator="zero_pad")
    assert torch.equal(grown.mask, narrow.mask)
