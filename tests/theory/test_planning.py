"""Layout × growth → scales: the μP tables, per-axis growth, the plan as a file, and what is refused."""

import copy
import io
import json
import pickle
from fractions import Fraction

import pytest
import torch
from torch import nn
from transformers import Dinov2Config, LlamaConfig, XLNetConfig

import mupscale
from models import CONFIGS, NAMES, PLAIN, build, make_mlp, plan_source
from mupscale import GrowthError, Plan
from mupscale.theory.registry import rule_for

ADAM, SGD = rule_for(torch.optim.AdamW, {}), rule_for(torch.optim.SGD, {})
LAYER = "model.layers.0."


def scales(plan, name):
    p = plan.params[name]
    return float(p.copies), p.weight_scale, p.grad_scale, ADAM.lr_scale(p), SGD.lr_scale(p), p.init_scale


def test_a_wide_gpt2_may_spell_out_its_d_ff():
    narrow, wide = CONFIGS["gpt2"](), CONFIGS["gpt2"]()
    wide.n_embd, wide.n_head, wide.n_inner = 64, 4, 384
    assert mupscale.plan(narrow, to=wide).growth == {"d_model": 2, "d_ff": 3, "heads": 2}


def test_scales_are_the_mup_tables():
    """Yang et al. 2021, Tables 3 and 8, at width ratio k: (m, s, c, Adam lr, SGD lr, init std)."""
    k = 4
    plan = mupscale.plan(CONFIGS["llama"](), width=k)
    hidden = (k * k, 1 / k, 1 / k, 1 / k, 1, k**-0.5)
    vector = (k, 1, 1 / k, 1, k, 1)
    readout = (k, 1 / k, 1, 1 / k, 1 / k, 1 / k)
    assert scales(plan, LAYER + "self_attn.q_proj.weight") == pytest.approx(hidden)
    assert scales(plan, LAYER + "mlp.down_proj.weight") == pytest.approx(hidden)
    assert scales(plan, "model.embed_tokens.weight") == pytest.approx(vector)
    assert scales(plan, LAYER + "input_layernorm.weight") == pytest.approx(vector)
    assert scales(plan, "lm_head.weight") == pytest.approx(readout)


def test_tied_embeddings_fold_into_the_last_norm():
    plan = mupscale.plan(CONFIGS["llama_tied"](), width=4)
    assert plan.params["model.norm.weight"].weight_scale == 0.25
    assert plan.params[LAYER + "input_layernorm.weight"].weight_scale == 1
    assert plan["lm_head.weight"] == plan.params["model.embed_tokens.weight"]


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_planned_and_the_shapes_are_the_wide_models(name):
    model = build(name)
    plan = mupscale.plan(plan_source(name, model), width=3)
    wide = PLAIN[name](3) if name in PLAIN else type(model)(plan.config)
    assert {n: plan.wide_shape(n) for n in plan.params} == {
        n: tuple(p.shape) for n, p in wide.named_parameters()
    }


@pytest.mark.parametrize("name", NAMES)
def test_plan_survives_json(name):
    plan = mupscale.plan(plan_source(name, build(name)), width=2)
    again = Plan.from_json(plan.to_json())
    assert again.params == plan.params
    assert again.layout == plan.layout
    assert json.loads(again.to_json()) == json.loads(plan.to_json())


@pytest.mark.parametrize("name", ["llama_tied", "resnet"])
def test_a_plan_is_pickled_as_json(name):
    """What only this process can call, a function that builds a plain model, stays here, also in copies."""
    plan = mupscale.plan(plan_source(name, build(name)), width=2)
    file = io.BytesIO()
    torch.save(plan, file)
    file.seek(0)
    for again in (pickle.loads(pickle.dumps(plan)), torch.load(file, weights_only=False)):
        assert again == Plan.from_json(plan.to_json())
        assert again.to_json() == plan.to_json()
        assert (again.build_wide is None) == (plan.config is None)
    assert copy.deepcopy(plan).build_wide is plan.build_wide is copy.copy(plan).build_wide


@pytest.mark.parametrize("text", ["{}", "abc", "[]", None, '{"narrow_config": {"model_type": "llama"}}'])
def test_what_is_no_plan_is_refused(text):
    with pytest.raises(GrowthError, match="^not a plan: .*; expected the text that Plan.to_json gave$"):
        Plan.from_json(text)


def test_plan_to_a_wide_config_equals_plan_by_factors():
    config = CONFIGS["qwen3"]()
    by_factor = mupscale.plan(config, width=2, axes={"d_ff": 3})
    assert mupscale.plan(config, to=by_factor.config).params == by_factor.params


def test_fractional_ratios_are_planned_but_not_duplicated():
    narrow, wide = (LlamaConfig(hidden_size=h, num_attention_heads=4, intermediate_size=64) for h in (32, 48))
    wide.head_dim = 8
    plan = mupscale.plan(narrow, to=wide)
    assert plan.growth == {"d_model": Fraction(3, 2)}
    assert plan.params["lm_head.weight"].weight_scale == pytest.approx(2 / 3)
    with pytest.raises(GrowthError, match="whole"):
        mupscale.grow(build("llama"), plan, operator="duplicate")


def test_plan_prints_as_a_table():
    text = str(mupscale.plan(CONFIGS["gpt2"](), width=2))
    assert "transformer.h.*.attn.c_attn.weight  (2×)" in text
    assert "[d_model] (3 heads head_dim)" in text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mupscale.plan(XLNetConfig(), width=2), "'d_model' of xlnet cannot grow: arange in transformer counts along it; choose axes without it"),
        (lambda: mupscale.plan(CONFIGS["llama"]()), "nothing says how much to grow; give a width"),
        (lambda: mupscale.plan(CONFIGS["llama"](), width=0), "width: cannot grow by 0"),
        (lambda: mupscale.plan(CONFIGS["llama"](), axes={"d_ff": Fraction(1, 2)}), "d_ff: cannot grow by 1/2"),
        (lambda: mupscale.plan(CONFIGS["llama"](), axes={"dff": 2}), "unknown axis 'dff': llama has d_model, kv_heads.*d_ff, layers; name one"),
        (lambda: mupscale.plan(CONFIGS["llama"](), axes={"hidden_size": 2}), "and its field hidden_size is d_model; name one of them"),
        (lambda: mupscale.plan(CONFIGS["llama"](), width=float("nan")), "width: nan is no growth factor; expected a number such as 2"),
        (lambda: mupscale.plan(CONFIGS["llama"](), axes={"d_ff": None}), "d_ff: None is no growth factor"),
        (lambda: mupscale.plan("narrow", width=2), "model: expected a module, .* found 'narrow'; load it first"),
        (
            lambda: mupscale.plan(CONFIGS["llama"](), to=LlamaConfig(**{**CONFIGS["llama"]().to_dict(), "vocab_size": 4096})),
            "axis 'vocab': .* in the narrow model, 4096 in the wide; the vocabulary is given by the tokenizer: give both the same",
        ),
        (lambda: mupscale.plan(CONFIGS["llama"](), axes={"head_dim": 2}), "head_dim.*model.rotary_emb differ along it; grow kv_heads or q_per_kv instead"),
        (lambda: mupscale.plan(CONFIGS["llama"](), axes={"vocab": 2}), "'vocab' of llama cannot grow"),
        (lambda: mupscale.plan(CONFIGS["gpt2"](), axes={"heads": 2}), "no config of gpt2 grows heads by 2 and nothing else, since .*head_dim = n_embd ÷ n_head"),
        (lambda: mupscale.plan(CONFIGS["llama"](), axes={"q_per_kv": 3}), "llama: transformers takes no such sizes .*multiple"),
        (lambda: mupscale.plan(CONFIGS["llama"](), to=CONFIGS["gpt2"]()), "'llama' in the narrow model, 'gpt2' in the wide"),
        (
            lambda: mupscale.plan(CONFIGS["llama"](), to=LlamaConfig(**{**CONFIGS["llama"]().to_dict(), "rms_norm_eps": 0.1})),
            "rms_norm_eps.*1e-06.*0.1.*only widths",
        ),
        (lambda: mupscale.plan(make_mlp(1)), "plan\\(narrow, to=wide\\)"),
        (lambda: mupscale.plan(make_mlp), "by width alone"),
        (lambda: mupscale.plan(make_mlp(1), to=nn.Linear(2, 2)), "not in the (narrow|wide) module"),
        (lambda: Plan.load("/nonexistent"), "mupscale.json: not found"),
    ],
)  # fmt: skip
def test_impossible_plans_are_refused_with_a_reason(make, message):
    with pytest.raises(GrowthError, match=message):
        make()


def test_one_axis_grows_where_a_ratio_of_fields_has_to_shrink():
    """d_ff is hidden_size × mlp_ratio: it stays as the one doubles where the other is halved."""
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    plan = mupscale.plan(config, axes={"d_model": 2})
    assert (plan.config.hidden_size, plan.config.mlp_ratio) == (64, config.mlp_ratio / 2)
    assert plan.proved


class Flatten(nn.Module):
    """Shapes cannot show that the head's 4·width inputs are (channels, 2×2 pixels)."""

    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(1, 3 * width, 2, stride=2)
        self.scale = nn.Parameter(torch.ones(3 * width, 1, 1))
        self.head = nn.Linear(12 * width, 5)

    def forward(self, x):
        return self.head((self.conv(x).tanh() * self.scale).flatten(1))


def test_hints_say_what_shapes_cannot():
    narrow, x = Flatten(1).double(), torch.randn(2, 1, 4, 4).double()
    with pytest.raises(GrowthError, match=r"scale: grows from \(3, 1, 1\).*hints="):
        mupscale.plan(narrow, to=Flatten(2))
    hints = {"scale": "channels 1 1", "head.weight": "5 [channels 4]"}
    plan = mupscale.plan(narrow, to=Flatten(2), hints=hints)
    assert mupscale.verify(narrow, mupscale.grow(narrow, plan, operator="duplicate"), plan, x)
    wrong = mupscale.plan(narrow, to=Flatten(2), hints={"scale": "channels 1 1"})
    assert not mupscale.verify(
        narrow, mupscale.grow(narrow, wrong, noise=None, operator="duplicate"), wrong, x
    )
    for hint in ("5 [channels 5]", "5", "4 [channels 4]", "5 [channels pixels]"):
        with pytest.raises(GrowthError, match="hint for 'head.weight'"):
            mupscale.plan(narrow, to=Flatten(2), hints=hints | {"head.weight": hint})
    with pytest.raises(GrowthError, match="hint for 'haed': expected the name of a parameter"):
        mupscale.plan(narrow, to=Flatten(2), hints=hints | {"haed": "5"})


def test_layers_of_several_sizes_grow_each_from_its_own():
    from transformers import Gemma3nTextConfig

    config = Gemma3nTextConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        intermediate_size=[24, 24, 40, 40], vocab_size=60, vocab_size_per_layer_input=60, num_kv_shared_layers=2,
        hidden_size_per_layer_input=8, layer_types=["sliding_attention", "full_attention"] * 2,
        activation_sparsity_pattern=[0.0] * 4,
    )  # fmt: skip
    plan = mupscale.plan(config, width=2)
    assert plan.config.intermediate_size == [48, 48, 80, 80]
    gates = [plan.wide_shape(f"model.layers.{i}.mlp.gate_proj.weight") for i in range(4)]
    assert gates == [(48, 64), (48, 64), (80, 64), (80, 64)]


def edited(path, value):
    """A Llama's plan as text, with one entry set otherwise."""
    data = mupscale.plan(CONFIGS["llama"](), width=2).to_dict()
    *places, last = path
    entry = data
    for place in places:
        entry = entry[place]
    entry[last] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("growth", "d_model"), "1/0"),
        (("growth", "d_model"), "0"),
        (("growth", "d_model"), "3"),
        (("layout", "sizes", "d_model"), None),
        (("layout", "params", "model.embed_tokens.weight"), "vocab [d_model]"),
        (("scales", "model.embed_tokens.weight", "copies"), 4.0),
        (("scales",), {}),
        (("scales",), [1]),
    ],
)
def test_a_plan_that_was_edited_is_refused_in_one_line(path, value):
    with pytest.raises(GrowthError) as refusal:
        Plan.from_json(edited(path, value))
    assert "\n" not in str(refusal.value)
