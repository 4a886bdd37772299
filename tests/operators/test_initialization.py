"""The law of a fresh parameter, read off the initializer, and μP from it."""

import math

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, LlamaConfig, Mamba2Config, MambaConfig, ViTConfig

import mupscale
from models import CONFIGS, PLAIN, make_mlp
from mupscale import GrowthError
from mupscale.operators.fresh import Law, fresh_laws, truncated_normal


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3_tied", "mlp", "resnet"])
def test_the_law_that_is_read_off_is_the_one_that_is_drawn(name):
    torch.manual_seed(0)
    if name in PLAIN:
        model, plan = PLAIN[name](1), mupscale.plan(PLAIN[name], width=2)
    else:
        model = AutoModelForCausalLM.from_config(CONFIGS[name]())
        plan = mupscale.plan(model, width=2)
    laws = fresh_laws(plan)
    assert laws.keys() >= dict(model.named_parameters()).keys()
    for n, p in model.named_parameters():
        law = laws[n]
        if law.std == 0:
            assert (p == law.mean).all(), n
        elif p.numel() > 500:
            assert p.std().item() == pytest.approx(law.std, rel=0.1), n
            assert p.mean().item() == pytest.approx(law.mean, abs=5 * law.std / p.numel() ** 0.5), n


def test_residual_projections_of_gpt2_are_scaled_by_depth():
    laws = fresh_laws(mupscale.plan(CONFIGS["gpt2"](), width=2))
    assert laws["transformer.h.1.mlp.c_proj.weight"].std == pytest.approx(0.02 / 2)
    assert laws["transformer.h.1.mlp.c_fc.weight"].std == 0.02


def test_a_truncated_law_is_read_off_though_on_the_meta_device_nothing_is_filled():
    """By transformers' vision models; they were refused."""
    config = ViTConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4)
    model = AutoModel.from_config(config)
    plan = mupscale.plan(model, width=2)
    laws = fresh_laws(plan)
    assert laws["embeddings.cls_token"] == laws["layers.0.mlp.fc1.weight"] == Law(0.0, pytest.approx(0.02))
    wide = mupscale.grow(model, plan, operator="zero_pad", shrink=0)
    assert wide.embeddings.position_embeddings.std().item() == pytest.approx(0.02, rel=0.05)

    sample = nn.init.trunc_normal_(torch.empty(100_000), mean=0.3, std=0.5, a=-0.2, b=0.9)
    law = truncated_normal(0.3, 0.5, -0.2, 0.9)
    assert (sample.mean().item(), sample.std().item()) == pytest.approx((law.mean, law.std), abs=5e-3)


def test_what_state_space_models_begin_from_is_made_by_their_own_code():
    """The logarithms of 1, 2, …, and steps that are drawn by a law of their own: both were refused."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 61, "state_size": 8}
    for config, name in (
        (MambaConfig(**sizes), "backbone.layers.1.mixer.A_log"),
        (Mamba2Config(**sizes, num_heads=8, head_dim=16, n_groups=1), "backbone.layers.1.mixer.dt_bias"),
    ):
        torch.manual_seed(0)
        narrow = AutoModelForCausalLM.from_config(config)
        plan = mupscale.plan(narrow, width=2)
        stock, fresh = (AutoModelForCausalLM.from_config(plan.config) for _ in range(2))
        mupscale.init_(fresh, plan, seed=3)
        same = mupscale.grow(narrow, plan, operator="zero_pad", shrink=0, seed=3)
        assert all(torch.equal(p, fresh.get_parameter(n)) for n, p in same.named_parameters())
        value, own = fresh.get_parameter(name), stock.get_parameter(name)
        if name.endswith("A_log"):
            assert torch.equal(value, own)
            assert torch.equal(mupscale.grow(narrow, plan).get_parameter(name), own)
            with torch.no_grad():
                narrow.get_parameter(name)[:] += 1
            wide = mupscale.grow(narrow, plan, operator="zero_pad", shrink=0.5).get_parameter(name)
            torch.testing.assert_close(wide[:128] - own[:128], torch.full((128, 8), 0.5))
            assert torch.equal(wide[128:], own[128:])
        else:
            assert not torch.equal(value, own)
            steps = nn.functional.softplus(value)
            assert config.time_step_min * 0.99 < steps.min() < steps.max() < config.time_step_max * 1.01
            weaker = mupscale.grow(narrow, plan, operator="zero_pad", shrink=0, noise="fresh:0.5", seed=3)
            half = weaker.get_parameter(name)
            torch.testing.assert_close(half - half.mean(), (value - value.mean()) / 2)


def test_what_shows_no_law_is_measured():
    class Lognormal(nn.Linear):
        def reset_parameters(self):
            nn.init.zeros_(self.bias)
            with torch.no_grad():
                self.weight.log_normal_(mean=-1, std=0.1)

    law = fresh_laws(mupscale.plan(lambda w: Lognormal(30, 40 * w), width=2))["weight"]
    mean = math.exp(-1 + 0.01 / 2)
    assert (law.mean, law.std) == pytest.approx((mean, mean * math.sqrt(math.exp(0.01) - 1)), rel=0.1)


@pytest.mark.parametrize("name", ["llama", "qwen3_tied", "gpt2"])
def test_init_follows_the_mup_law(name):
    torch.manual_seed(0)
    plan = mupscale.plan(CONFIGS[name](), width=4)
    laws, wide = fresh_laws(plan), AutoModelForCausalLM.from_config(plan.config)
    mupscale.init_(wide, plan, seed=0)
    for n, p in wide.named_parameters():
        scaling, law = plan.params[n], laws[n]
        if law.std:
            assert p.std().item() == pytest.approx(law.std * scaling.init_scale, rel=0.05), n
        else:
            assert (p == law.mean * scaling.weight_scale).all(), n


def test_init_of_a_plain_module_shrinks_hidden_by_root_and_readout_by_width():
    plan = mupscale.plan(make_mlp, width=16)
    wide = mupscale.init_(make_mlp(16), plan, seed=1)
    uniform = 3**-0.5
    assert wide[0].weight.std().item() == pytest.approx(uniform / 7**0.5, rel=0.05)
    assert wide[2].weight.std().item() == pytest.approx(uniform / (12 * 16) ** 0.5, rel=0.05)
    assert wide[4].weight.std().item() == pytest.approx(uniform / 8**0.5 / 16, rel=0.1)


def test_init_depends_on_the_seed_alone():
    plan = mupscale.plan(make_mlp, width=2)
    a, b, c = (mupscale.init_(make_mlp(2), plan, seed=s)[2].weight for s in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_a_parameter_without_an_initializer_is_named():
    class Raw(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.linear = nn.Linear(3, 4 * width)
            self.offset = nn.Parameter(torch.zeros(3))

    assert fresh_laws(mupscale.plan(Raw, width=2))["offset"].std == 0
    plan = mupscale.plan(Raw(1), to=Raw(2))
    with pytest.raises(GrowthError, match=r"offset: .*reset_parameters"):
        mupscale.init_(Raw(2), plan)


def test_fractional_width_ratios_scale_from_scratch():
    """From d_model 32 to 48: no copies, but μP all the same."""
    narrow = LlamaConfig(**CONFIGS["llama"]().to_dict())
    wide_config = LlamaConfig(
        **narrow.to_dict()
        | {"hidden_size": 48, "intermediate_size": 72, "num_attention_heads": 6, "num_key_value_heads": 3}
    )
    plan = mupscale.plan(narrow, to=wide_config)
    wide = mupscale.init_(AutoModelForCausalLM.from_config(wide_config), plan)
    ratio = 2 / 3
    assert wide.lm_head.weight.std().item() == pytest.approx(0.02 * ratio, rel=0.05)
    assert wide.model.layers[0].mlp.up_proj.weight.std().item() == pytest.approx(0.02 * ratio**0.5, rel=0.05)
    assert wide.model.embed_tokens.weight.std().item() == pytest.approx(0.02, rel=0.05)
    groups = mupscale.param_groups(wide, plan, torch.optim.AdamW, lr=1.0)
    rates = {n: g["lr"] for g in groups for n in g["param_names"]}
    assert rates["model.layers.0.mlp.up_proj.weight"] == pytest.approx(ratio)
    assert rates["model.embed_tokens.weight"] == 1.0


class Own(nn.Module):
    """Initialized as nanoGPT is: by the constructor, over what its parts have done."""

    def __init__(self, width):
        super().__init__()
        self.up, self.down = nn.Linear(8, 40 * width), nn.Linear(40 * width, 8)
        self.norm = nn.LayerNorm(40 * width)
        for linear, std in ((self.up, 0.02), (self.down, 0.02 / math.sqrt(12))):
            nn.init.normal_(linear.weight, std=std)
            nn.init.zeros_(linear.bias)

    def forward(self, x):
        return self.down(self.norm(self.up(x)))


def test_the_constructor_has_the_last_word_on_what_is_fresh():
    laws = fresh_laws(mupscale.plan(Own, width=2))
    assert laws["up.weight"].std == pytest.approx(0.02, rel=0.15)
    assert laws["down.weight"].std == pytest.approx(0.02 / math.sqrt(12), rel=0.15)
    assert laws["up.bias"] == laws["down.bias"] == Law(0, 0)
    assert laws["norm.weight"] == Law(1, 0)


def test_what_is_fresh_is_not_read_off_a_model_that_was_trained():
    trained = {
        width: nn.Sequential(nn.Linear(8, 40 * width), nn.ReLU(), nn.Linear(40 * width, 8))
        for width in (1, 2)
    }
    with torch.no_grad():
        for model in trained.values():
            for p in model.parameters():
                p.mul_(3)
    laws = fresh_laws(mupscale.plan(trained.__getitem__, width=2))
    assert laws["0.weight"].std == pytest.approx(1 / math.sqrt(3 * 8))
