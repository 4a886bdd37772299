"""`expand`: the function is kept and nothing copied, or the growth is refused; λ leads from there to `init_`."""

import copy
import re
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, MixtralConfig, Qwen2Config

import mupscale
from models import batch, build, loss_of
from mupscale import GrowthError
from mupscale.growth import grow_checkpoint
from mupscale.models.precision import Float64
from mupscale.notation.axes import Axes
from mupscale.operators.expand import Norms, expand
from mupscale.operators.fresh import fresh_laws
from mupscale.study.runs.networks import mlp, resnet18

VOCAB = 23
FAMILIES = [LlamaConfig, MistralConfig, Qwen2Config]
KEPT = ["llama", "llama_tied", "llama_biases", "mistral", "qwen2", "gpt2", "gpt2_untied", "gpt_neox"]


def expanded(narrow, plan, **how):
    """Grown, and the largest difference of the logits, in float64."""
    wide = mupscale.grow(narrow, plan, operator="expand", **how)
    ids = torch.randint(VOCAB, (3, 9))
    with Float64(), torch.no_grad():
        return wide, (wide(ids).logits - narrow(ids).logits).abs().max().item()


@st.composite
def sizes(draw):
    """A config and a wider one, by whatever fractions."""
    kv_heads, q_per_kv, head_dim = (
        draw(st.integers(1, 2)),
        draw(st.integers(1, 2)),
        2 * draw(st.integers(1, 3)),
    )
    family, tied = draw(st.sampled_from(FAMILIES)), draw(st.booleans())
    width, d_ff = draw(st.integers(4, 7)), draw(st.integers(1, 9))

    def config(kv_heads, q_per_kv, width, d_ff):
        return family(
            hidden_size=kv_heads * q_per_kv * width,
            intermediate_size=d_ff,
            num_attention_heads=kv_heads * q_per_kv,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            num_hidden_layers=2,
            tie_word_embeddings=tied,
            vocab_size=VOCAB,
            bos_token_id=0,
            eos_token_id=1,
        )

    more = draw(st.integers(0, 2)), draw(st.integers(0, 2)), draw(st.integers(0, 3)), draw(st.integers(1, 9))
    narrow = (kv_heads, q_per_kv, width, d_ff)
    return config(*narrow), config(*(old + new for old, new in zip(narrow, more, strict=True)))


@settings(max_examples=8)
@given(case=sizes(), seed=st.integers(0, 99))
def test_any_size_is_reached_without_a_difference(case, seed):
    reach(*case, seed)


@pytest.mark.slow
@settings(max_examples=200)
@given(case=sizes(), seed=st.integers(0, 99))
def test_two_hundred_sizes_are_reached_without_a_difference(case, seed):
    reach(*case, seed)


def reach(config, wider, seed):
    torch.manual_seed(seed)
    narrow = AutoModelForCausalLM.from_config(config).double()
    with torch.no_grad():
        for p in narrow.parameters():
            p.add_(torch.randn_like(p), alpha=0.2)
    plan = mupscale.plan(narrow, to=wider)
    wide, difference = expanded(narrow, plan, seed=seed)
    assert difference < 1e-10
    old = narrow.model.layers[0].mlp.down_proj.weight
    assert torch.equal(wide.model.layers[0].mlp.down_proj.weight[: old.shape[0], : old.shape[1]], old)


@pytest.mark.parametrize("name", KEPT)
def test_what_is_new_learns_from_the_second_step(name):
    """Either what writes to a new unit is zero at first, or what reads it; the other then moves it."""
    narrow = build(name)
    wide, difference = expanded(narrow, mupscale.plan(narrow, width=2), seed=1)
    assert difference < 1e-10
    optimizer = torch.optim.SGD(wide.parameters(), lr=0.1)
    for step in range(2):
        optimizer.zero_grad()
        loss_of(wide, batch(name, step)).backward()
        optimizer.step()
    for key, param in wide.named_parameters():
        # Of a token that is not in the batch nothing is learned; nor by the bias of a key, ever.
        if not re.search("embed|wte|wpe|(k_proj|c_attn|query_key_value).bias", key):
            dead = (param.grad == 0).double().mean().item()
            assert dead < 0.02, key


@pytest.mark.parametrize("name", ["llama", "llama_tied", "gpt2"])
def test_old_weights_have_their_gradients(name):
    """So that padding the optimizer's state is right: what is new is not seen, and c = 1. Gains are √(d/d↑) of
    what they were, and their gradients √(d↑/d)."""
    narrow = build(name)
    plan = mupscale.plan(narrow, width=2)
    wide = mupscale.grow(narrow, plan, operator="expand")
    with Float64():
        for model in (narrow, wide):
            loss_of(model, batch(name, 0)).backward()
    silent = set(Norms.of(plan, fresh_laws(plan)).gains)
    for key, param in narrow.named_parameters():
        scaling = plan[key]
        places = [dim.places(plan.layout.sizes, plan.growth) for dim in scaling.axes.dims]
        grad = wide.get_parameter(key).grad[torch.meshgrid(*places, indexing="ij")]
        expected = param.grad * float(scaling.copies) ** 0.5 if key in silent else param.grad
        if name == "gpt2" and scaling.axes.names[-1:] == ("d_model",) and key not in silent:
            continue  # what writes to old channels writes their mean to the new ones, too
        torch.testing.assert_close(grad, expected, rtol=1e-8, atol=1e-12, msg=key)


def test_experts_keep_the_function_where_their_number_stays():
    config = MixtralConfig(
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=1,
        num_local_experts=4,
        vocab_size=VOCAB,
        bos_token_id=0,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    narrow = AutoModelForCausalLM.from_config(config)
    plan = mupscale.plan(narrow, width=2)
    assert mupscale.verify(narrow, mupscale.grow(narrow, plan, operator="expand"), plan, operator="expand")


def test_one_eps_for_norms_of_which_not_all_grow_is_refused_and_the_rest_still_grows():
    narrow = build("qwen3")
    with pytest.raises(GrowthError, match=r"with expand is not exact, .*grow d_ff and heads alone"):
        expanded(narrow, mupscale.plan(narrow, width=2))
    assert expanded(narrow, mupscale.plan(narrow, axes={"d_ff": 2}))[1] < 1e-10


def test_less_than_whole_it_leads_to_a_fresh_model():
    narrow = build("llama")
    plan = mupscale.plan(narrow, width=2)
    fresh = mupscale.init_(AutoModelForCausalLM.from_config(plan.config).double(), plan, seed=3)
    gone, _ = expanded(narrow, plan, shrink=0, seed=3)
    for key, param in gone.named_parameters():
        assert torch.equal(param, fresh.get_parameter(key)), key
    whole, kept = expanded(narrow, plan, seed=3)
    half, changed = expanded(narrow, plan, shrink=0.5, seed=3)
    assert kept < 1e-10 < changed
    for key, param in half.named_parameters():
        torch.testing.assert_close(param, (whole.get_parameter(key) + fresh.get_parameter(key)) / 2)
    assert half.config.rms_norm_eps == narrow.config.rms_norm_eps == 2 * whole.config.rms_norm_eps


def test_by_its_definition():
    """θ↑[o, i] over a silent and a loud axis, written and read."""
    theta, fresh = torch.tensor([[3.0]]), torch.full((2, 2), 5.0)
    growth = {"quiet": Fraction(2), "loud": Fraction(2)}

    def grown(axes):
        parsed = Axes.parse(axes)
        return expand(theta, parsed, {"quiet": 1, "loud": 1}, growth, fresh=fresh, silent={"quiet"}).tolist()

    assert grown("quiet [loud]") == [[3, 0], [0, 0]]
    assert grown("loud [quiet]") == [[3, 5], [5, 5]]
    assert grown("loud [loud]") == [[3, 0], [5, 5]]
    assert grown("quiet [quiet]") == [[3, 5], [0, 0]]


@pytest.mark.parametrize("make", [mlp, resnet18])
def test_plain_modules_are_proved_on_the_inputs_that_they_were_planned_with(make):
    shape = {"inputs": 8} if make is mlp else {"channels": 1}
    x = torch.randn(4, 8) if make is mlp else torch.randn(4, 1, 8, 8)

    def build_one(width):
        return make(4 * width, classes=3, **shape)

    narrow = build_one(1).double().eval()
    plan = mupscale.plan(build_one, width=2, inputs=x)
    wide = mupscale.grow(narrow, plan, operator="expand")
    assert (wide(x.double())["logits"] - narrow(x.double())["logits"]).abs().max() < 1e-10
    with pytest.raises(GrowthError, match="proved on a run; make the plan here"):
        mupscale.grow(narrow, mupscale.plan(build_one, width=2), operator="expand")


def test_a_plain_norm_over_what_grows_is_refused():
    def make(width):
        return nn.Sequential(nn.Linear(4, 8 * width), nn.LayerNorm(8 * width), nn.Linear(8 * width, 2))

    plan = mupscale.plan(make, width=2, inputs=torch.randn(3, 4))
    with pytest.raises(GrowthError, match="with expand is not exact"):
        mupscale.grow(make(1), plan, operator="expand")


def test_under_a_mode_of_the_caller_a_norm_is_seen_to_subtract_the_mean():
    def make(width):
        return nn.Sequential(nn.Linear(4, 8 * width), nn.LayerNorm(8 * width, eps=0), nn.Linear(8 * width, 2))

    x = torch.randn(3, 4)
    narrow, plan = make(1), mupscale.plan(make, width=2, inputs=x)
    with Float64():
        wide = mupscale.grow(narrow, plan, operator="expand")
        assert torch.tensor(1.0).float().dtype == torch.float64  # the mode is on again
    torch.testing.assert_close(wide(x), narrow(x))


def test_a_checkpoint_keeps_its_function_its_optimizer_and_its_eps(tmp_path):
    narrow = build("llama").float()
    optimizer = torch.optim.AdamW(narrow.parameters(), lr=1e-3)
    loss_of(narrow, batch("llama", 0)).backward()
    optimizer.step()
    narrow.save_pretrained(tmp_path / "narrow")
    torch.save(optimizer.state_dict(), tmp_path / "narrow" / "optimizer.pt")
    plan = grow_checkpoint(
        tmp_path / "narrow", tmp_path / "wide", width=2, operator="expand", optimizer=True, seed=2
    )
    wide = AutoModelForCausalLM.from_pretrained(tmp_path / "wide")
    assert wide.config.rms_norm_eps == plan.config.rms_norm_eps == narrow.config.rms_norm_eps / 2
    assert mupscale.verify(narrow, wide, plan, operator="expand")
    own = mupscale.grow(narrow, mupscale.plan(narrow, width=2), operator="expand", seed=2)
    assert all(torch.equal(p, own.get_parameter(n)) for n, p in wide.named_parameters())
    saved = torch.load(tmp_path / "wide" / "optimizer.pt", weights_only=True)["state"]
    carried = mupscale.carry_optimizer(optimizer, narrow, own, plan, operator="expand")
    moments = sorted(state["exp_avg"].norm().item() for state in carried.state.values())
    assert moments == pytest.approx(sorted(state["exp_avg"].norm().item() for state in saved.values()))
    for operator, share in (("expand", 4), ("duplicate", 2)):
        grow_checkpoint(tmp_path / "wide", tmp_path / operator, width=2, operator=operator)
        again = AutoModelForCausalLM.from_pretrained(tmp_path / operator)
        assert again.config.rms_norm_eps == narrow.config.rms_norm_eps / share
        last = mupscale.Plan.load(tmp_path / operator, last_growth=True)
        assert mupscale.verify(wide, again, last, operator=operator)
        assert mupscale.Plan.load(tmp_path / operator).narrow_config.hidden_size == 32


def test_the_seed_decides_what_is_new_and_nothing_else():
    narrow = build("llama")
    plan = mupscale.plan(narrow, width=2)
    one, same, other = (expanded(narrow, plan, seed=seed)[0] for seed in (0, 0, 1))
    key = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(one.get_parameter(key), same.get_parameter(key))
    assert not torch.equal(one.get_parameter(key), other.get_parameter(key))
    assert copy.deepcopy(plan) == plan


@pytest.mark.parametrize("shrink", [{"*": 1, "*.mlp.*": 1}, ["1", "*.mlp.*=1"], {"*": 0.4, "*.*": 1}])
def test_a_shrink_of_one_keeps_the_function_however_it_is_written(shrink):
    narrow = build("llama")
    plan = mupscale.plan(narrow, width=2)
    wide, differing = expanded(narrow, plan, shrink=shrink)
    assert wide.config.rms_norm_eps == narrow.config.rms_norm_eps / 2
    assert differing < 1e-12
