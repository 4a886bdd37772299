"""Growth in depth: what every layer becomes, what the optimizer becomes, and what is refused."""

from __future__ import annotations

import copy
import json
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

import mupscale
from lockstep import default_dtype, value_by_name
from models import batch, build, loss_of
from mupscale import GrowthError
from mupscale.cli import main
from mupscale.growth import grow_checkpoint
from mupscale.layout.depth import source_of
from mupscale.layout.flow.stream import terms_of, with_factors
from mupscale.layout.tiny_config import tiny
from mupscale.models.calls import Call
from mupscale.models.precision import Float64


def tiny_model(model_type: str, **fields) -> nn.Module:
    config = tiny(CONFIG_MAPPING[model_type](**fields))
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").double()


def writers(plan: mupscale.Plan) -> set[str]:
    """What is smaller by 1/g, of the first layer, and with the constant that the model adds to it."""
    width = mupscale.plan(plan.narrow_config, axes={"layers": 2})
    found = {n: p.offset for n, p in width.params.items() if p.fold == 0.5}
    first = {n.partition(".0.")[2]: offset for n, offset in found.items() if ".0." in n}
    return {f"{n} + {offset:g}" if offset else n for n, offset in first.items()}


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [
        ("llama", {"self_attn.o_proj.weight", "mlp.down_proj.weight"}),
        ("gpt2", {f"{part}.c_proj.{leaf}" for part in ("attn", "mlp") for leaf in ("weight", "bias")}),
        (  # a norm of what is added, whose gain is stored as its difference from one
            "gemma2",
            {"post_attention_layernorm.weight + 1", "post_feedforward_layernorm.weight + 1"},
        ),
        ("falcon", {"self_attention.dense.weight", "mlp.dense_4h_to_h.weight"}),  # one sum of both
        pytest.param(  # experts in one tensor, with biases
            "gpt_oss",
            {
                "self_attn.o_proj.weight",
                "self_attn.o_proj.bias",
                "mlp.experts.down_proj",
                "mlp.experts.down_proj_bias",
            },
            marks=pytest.mark.slow,
        ),
        (
            "qwen2_moe",
            {
                "self_attn.o_proj.weight",
                "mlp.experts.down_proj",
                "mlp.shared_expert.down_proj.weight",
            },
        ),
        ("mamba", {"mixer.out_proj.weight"}),
    ],
)
def test_what_writes_to_the_residual_stream_is_found(model_type, expected):
    plan = mupscale.plan(CONFIG_MAPPING[model_type](), axes={"layers": 2})
    assert plan.proved, plan.inexact
    assert writers(plan) == expected


@pytest.mark.parametrize(("order", "sources"), [(None, [0, 0, 1, 1]), ("cycle", [0, 1, 0, 1])])
def test_layers_are_repeated_and_what_they_add_is_shared_out(order, sources):
    narrow = build("llama")
    plan = mupscale.plan(narrow, axes={"layers": 2}, order=order)
    deep = mupscale.grow(narrow, plan)
    assert deep.config.num_hidden_layers == len(deep.model.layers) == 4
    for layer, source in zip(deep.model.layers, sources, strict=True):
        for name, param in layer.named_parameters():
            share = 0.5 if name in ("self_attn.o_proj.weight", "mlp.down_proj.weight") else 1.0
            assert torch.equal(param, share * narrow.model.layers[source].get_parameter(name)), name
    assert torch.equal(deep.lm_head.weight, narrow.lm_head.weight)


@given(
    blocks=st.integers(1, 5), turn=st.integers(1, 4), factor=st.integers(1, 4)
)  # every layer comes once from each turn, kinds keep their places
def test_kinds_of_layers_stay_in_their_places(blocks, turn, factor):
    depth, deeper = blocks * turn, blocks * turn * factor
    sources = [source_of(i, depth, deeper, turn) for i in range(deeper)]
    assert sorted(sources) == sorted([*range(depth)] * factor)
    assert all(i % turn == s % turn for i, s in enumerate(sources))
    assert [s // turn for s in sources] == sorted(s // turn for s in sources)


def test_width_and_depth_multiply():
    """One step in both is the one after the other, in either order, in weights and in hyperparameters."""
    narrow = build("gpt2")

    def grown(*steps):
        model, groups = narrow, {}
        first = copy.deepcopy(narrow.config)
        for step in steps:
            model = mupscale.grow(model, mupscale.plan(model, **step), operator="duplicate", noise=None)
        plan = mupscale.plan(first, to=model.config)
        for group in mupscale.param_groups(model, plan, torch.optim.AdamW, lr=1.0, weight_decay=0.1):
            groups |= dict.fromkeys(group["param_names"], (group["lr"], group["eps"], group["weight_decay"]))
        return dict(model.named_parameters()), groups

    both, rates = grown({"width": 2, "axes": {"layers": 2}})
    for steps in ([{"width": 2}, {"axes": {"layers": 2}}], [{"axes": {"layers": 2}}, {"width": 2}]):
        other, other_rates = grown(*steps)
        assert other.keys() == both.keys()
        for name, param in both.items():
            torch.testing.assert_close(other[name], param, rtol=1e-14, atol=0)
        assert other_rates == rates


def with_multipliers(deep: nn.Module, depth: int, factor: int, is_writer) -> nn.Module:
    """The same function, with 1/g in the code of every residual branch and not in the weights."""
    model = copy.deepcopy(deep)
    call = Call.of({"input_ids": torch.arange(8)[None]})
    with_factors(model, depth, terms_of(model, depth, call), lambda layer: 1 / factor)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if is_writer(name):
                param *= factor
    return model


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("factor", [2, 3])
def test_noise_between_layers_leaves_what_they_write_together(factor, width, tmp_path, monkeypatch):
    """In every block of rows, in memory and on disk: the copies of what writes differ, and add up to as much."""
    monkeypatch.setattr("mupscale.operators.noise.BLOCK_ENTRIES", 100)
    model = build("llama")
    plan = mupscale.plan(model, width=width, axes={"layers": factor})
    plain, noisy = (
        mupscale.grow(model, plan, noise=noise, seed=3).state_dict() for noise in (None, "between:1")
    )
    together: dict[str, list[str]] = {}
    for name in plain:
        together.setdefault(plan.canonical(name), []).append(name)
    for own, names in together.items():
        writes = own.endswith(("o_proj.weight", "down_proj.weight"))
        apart = [float((noisy[name] - plain[name]).square().mean().sqrt()) for name in names]
        assert all((size > 0) == writes for size in apart), own
        if writes:
            sums = [sum(state[name].double() for name in names) for state in (plain, noisy)]
            assert torch.allclose(*sums, atol=1e-6)
            # As large as relative noise, less its mean over the layers.
            size = float(model.state_dict()[own].square().mean().sqrt()) / factor / width**0.5
            assert apart[0] == pytest.approx(size * (1 - 1 / factor) ** 0.5, rel=0.1)
    model.float().save_pretrained(tmp_path / "narrow")
    grow_checkpoint(tmp_path / "narrow", tmp_path / "deep", plan, noise="between:1", seed=3)
    stored = AutoModelForCausalLM.from_pretrained(tmp_path / "deep").state_dict()
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        single = mupscale.grow(model.float(), plan, noise="between:1", seed=3).state_dict()
        assert all(torch.equal(stored[name], single[name]) for name in single)


def test_noise_between_layers_is_for_growth_in_depth():
    with pytest.raises(
        GrowthError, match="noise between:1: is of layers, which do not grow; choose balanced:1"
    ):
        mupscale.grow(
            build("llama"), mupscale.plan(build("llama"), width=2), operator="duplicate", noise="between:1"
        )


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("factor", [2, 3])
def test_the_optimizer_goes_on_as_that_of_explicit_multipliers(factor, width):
    """Every copy of a layer has 1/g of its gradient, so moments of g, g² less; with multipliers all alike."""
    narrow = build("llama").train()
    values = {"lr": 3e-3, "weight_decay": 0.1, "eps": 1e-4}
    optimizer = torch.optim.AdamW(narrow.parameters(), **values)
    plan = mupscale.plan(narrow, width=width if width > 1 else None, axes={"layers": factor})

    def step(model, optimizer, seed):
        optimizer.zero_grad()
        loss = loss_of(model, batch("llama", seed))
        loss.backward()
        optimizer.step()
        return loss.item()

    with Float64(), default_dtype(torch.float64):
        for i in range(10):
            step(narrow, optimizer, i)
        deep = mupscale.grow(narrow, plan, noise=None)
        carried = mupscale.carry_optimizer(optimizer, narrow, deep, plan)

        def is_writer(name):
            return "o_proj" in name or "down_proj" in name

        reference = with_multipliers(deep, 2 * factor, factor, is_writer)
        groups = []
        for name, param in reference.named_parameters():
            group = {key: value_by_name(deep, carried, key)[name] for key in ("lr", "eps", "weight_decay")}
            by = factor if is_writer(name) else 1  # θ' = g θ: rates × g, decay and eps ÷ g
            groups.append(
                {
                    "params": [param],
                    "lr": group["lr"] * by,
                    "eps": group["eps"] / by,
                    "weight_decay": group["weight_decay"] / by,
                }
            )
        other = torch.optim.AdamW(groups)
        for (name, param), grown in zip(reference.named_parameters(), deep.parameters(), strict=True):
            by = factor if is_writer(name) else 1
            state = carried.state[grown]
            other.state[param] = {
                "step": state["step"].clone(),
                "exp_avg": state["exp_avg"] / by,
                "exp_avg_sq": state["exp_avg_sq"] / by**2,
            }
            # What is the law: 1/g of the shallow model's, in every copy, whatever the branch writes.
            if ".layers." in name and width == 1:
                layer, rest = name.removeprefix("model.layers.").split(".", 1)
                mine = narrow.model.layers[int(layer) // factor].get_parameter(rest)
                torch.testing.assert_close(
                    other.state[param]["exp_avg"], optimizer.state[mine]["exp_avg"] / factor
                )
        for i in range(10, 30):
            a, b = step(deep, carried, i), step(reference, other, i)
            assert abs(a - b) <= 1e-10, f"step {i}: folded {a}, explicit {b}"


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("bert", "norm of the sum"),
        ("openai-gpt", "norm of the sum"),
        ("minicpm3", "its source, in constants that go by the number of the layer"),
    ],
)
def test_without_a_residual_stream_there_is_no_rule_and_no_growth(model_type, reason):
    narrow = tiny_model(model_type)
    plan = mupscale.plan(narrow, axes={"layers": 2})
    assert not plan.proved
    with pytest.raises(GrowthError, match=reason):
        mupscale.grow(narrow, plan)
    deep = mupscale.grow(narrow, plan, operator="stack")
    with pytest.raises(GrowthError, match="no rule in depth is known for its hyperparameters"):
        mupscale.param_groups(deep, plan, torch.optim.AdamW, lr=1e-3)
    with pytest.raises(GrowthError, match="no rule in depth is known for its hyperparameters"):
        mupscale.init_(deep, plan)


@pytest.mark.parametrize("scaled", [False, True])
def test_constants_that_go_by_the_number_of_a_layer_are_seen(scaled):
    """GPT-2 can divide attention scores by the number of the layer, so that no other layer is like it."""
    config = tiny(CONFIG_MAPPING["gpt2"](scale_attn_by_inverse_layer_idx=scaled))
    plan = mupscale.plan(config, axes={"layers": 2})
    assert plan.proved is not scaled
    assert ("in constants that go by the number of the layer" in str(plan.inexact)) is scaled


def test_kinds_of_layers_that_alternate_are_repeated_by_whole_turns():
    config = CONFIG_MAPPING["gemma2"](num_hidden_layers=4, hidden_size=64, num_attention_heads=4)
    plan = mupscale.plan(config, axes={"layers": 2})
    assert plan.period == 2
    assert plan.config.layer_types == config.layer_types * 2
    name = "model.layers.{}.self_attn.q_proj.weight"
    assert [plan.canonical(name.format(i)) for i in range(8)] == [
        name.format(i) for i in (0, 1, 0, 1, 2, 3, 2, 3)
    ]


def test_the_first_layers_of_a_kind_stay_first():
    """DeepSeek-V3 begins with dense layers: so does the deeper one, with as many more."""
    config = tiny(CONFIG_MAPPING["deepseek_v3"]())
    plan = mupscale.plan(config, axes={"layers": 2})
    assert plan.proved
    assert plan.config.first_k_dense_replace == 2 * config.first_k_dense_replace


def test_a_count_that_a_list_says_already_may_stay():
    """Qwen2's max_window_layers is what its layer_types are made from, where none are given."""
    narrow = build("qwen2").config
    deeper = copy.deepcopy(narrow)
    deeper.num_hidden_layers, deeper.layer_types = 4, narrow.layer_types * 2
    assert deeper.max_window_layers == narrow.max_window_layers
    plan = mupscale.plan(narrow, to=deeper)
    assert plan.proved
    assert mupscale.plan(narrow, axes={"layers": 2}).config.to_dict() == plan.config.to_dict()


def test_a_deeper_config_tells_its_order():
    config = CONFIG_MAPPING["gemma2"](
        num_hidden_layers=2,
        hidden_size=64,
        num_attention_heads=4,
        layer_types=["full_attention", "sliding_attention"],
    )
    cycled = copy.deepcopy(config)
    cycled.num_hidden_layers, cycled.layer_types = 4, config.layer_types * 2
    assert mupscale.plan(config, to=cycled).period == 2
    with pytest.raises(
        GrowthError, match="are not those of the narrow one in order repeat: its field 'layer_types'"
    ):
        mupscale.plan(config, to=cycled, order="repeat")
    cycled.layer_types = ["full_attention"] * 4
    with pytest.raises(GrowthError, match="in order repeat or cycle"):
        mupscale.plan(config, to=cycled)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        ({"width": 2, "order": "cycle"}, "order 'cycle' is for layers, and these do not grow; leave it out"),
        ({"axes": {"layers": 2}, "order": "backwards"}, "order 'backwards': expected repeat or cycle"),
        ({"axes": {"layers": Fraction(5, 4)}}, "layers: 2 × 5/4 is not a whole number"),
    ],
)
def test_what_cannot_be_asked_of_layers_is_said(ask, message):
    with pytest.raises(GrowthError, match=message):
        mupscale.plan(build("llama"), **ask)


def test_a_model_from_scratch_may_have_half_as_many_layers_more():
    """The rules take any factor: 2 to 3 layers are rates by 3/2."""
    narrow = build("llama")
    config = copy.deepcopy(narrow.config)
    config.num_hidden_layers = 3
    plan = mupscale.plan(narrow, to=config)
    deep = mupscale.init_(type(narrow)(config).double(), plan, seed=0)
    groups = mupscale.param_groups(deep, plan, torch.optim.AdamW, lr=1.0)
    rates = {name: group["lr"] for group in groups for name in group["param_names"]}
    for layer in range(3):
        assert rates[f"model.layers.{layer}.mlp.down_proj.weight"] == pytest.approx(2 / 3)
        assert rates[f"model.layers.{layer}.mlp.up_proj.weight"] == 1.0


@settings(max_examples=10)
@given(
    width=st.sampled_from([None, 2, 3]),
    layers=st.integers(2, 4),
    order=st.sampled_from(["repeat", "cycle"]),
    noise=st.sampled_from([None, "balanced:1"]),
)
def test_on_disk_as_in_memory(tmp_path_factory, width, layers, order, noise):
    folder = tmp_path_factory.mktemp("deep")
    narrow = build("qwen3_tied")
    optimizer = torch.optim.AdamW(narrow.parameters(), lr=1e-3, weight_decay=0.1)
    loss_of(narrow, batch("qwen3_tied", 0)).backward()
    optimizer.step()
    narrow.save_pretrained(folder / "narrow")
    torch.save(optimizer.state_dict(), folder / "narrow" / "optimizer.pt")
    plan = mupscale.plan(narrow, width=width, axes={"layers": layers}, order=order)
    grow_checkpoint(folder / "narrow", folder / "deep", plan, noise=noise, seed=5)
    deep = mupscale.grow(narrow, plan, noise=noise, seed=5)
    stored = AutoModelForCausalLM.from_pretrained(folder / "deep", dtype=torch.float64)
    for (name, a), (other, b) in zip(deep.named_parameters(), stored.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(a, b), name
    carried = mupscale.carry_optimizer(optimizer, narrow, deep, plan)
    saved = torch.load(folder / "deep" / "optimizer.pt")
    by_index = {
        index: name
        for group in saved["param_groups"]
        for index, name in zip(group["params"], group["param_names"], strict=True)
    }
    rates = {name: g["lr"] for g in saved["param_groups"] for name in g["param_names"]}
    assert rates == value_by_name(deep, carried, "lr")
    assert len(by_index) == len(saved["state"]) == len(list(deep.parameters()))
    for index, name in by_index.items():
        for key in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(saved["state"][index][key], carried.state[deep.get_parameter(name)][key]), name


def test_what_goes_with_widths_alone_is_refused():
    narrow = build("llama")
    plan = mupscale.plan(narrow, axes={"layers": 2})
    deep = mupscale.grow(narrow, plan)
    optimizer = torch.optim.AdamW(narrow.parameters())
    with pytest.raises(GrowthError, match="'asymmetric' is for copies within a layer"):
        mupscale.carry_optimizer(optimizer, narrow, deep, plan, state="asymmetric")
    with pytest.raises(GrowthError, match="does not train in lockstep"):
        mupscale.verify(narrow, deep, plan, steps=2)


@pytest.mark.parametrize("width", [1, 2])
def test_verify_says_how_far_every_layer_is(width):
    """The first layer's own error is of the order of what it adds, squared; of twice the width there is none."""

    def reported(size):
        narrow = build("llama")
        with torch.no_grad():
            for name, param in narrow.named_parameters():
                param *= size if name.endswith(("o_proj.weight", "down_proj.weight")) else 1
        plan = mupscale.plan(narrow, width=width if width > 1 else None, axes={"layers": 2})
        return narrow, plan, mupscale.verify(narrow, mupscale.grow(narrow, plan), plan)

    narrow, plan, report = reported(0.1)
    assert [(at.layer, at.deeper_layer) for at in report.layers] == [(1, 2), (2, 4)]
    assert 0 < report.layers[0].deviation < report.layers[1].deviation < 0.1
    *_, half = reported(0.05)
    assert half.layers[0].deviation == pytest.approx(report.layers[0].deviation / 4, rel=0.15)
    assert not report.equal
    assert "after layer" in str(report)
    other = mupscale.plan(narrow, axes={"layers": 2}, order="cycle")
    cycled = mupscale.verify(narrow, mupscale.grow(narrow, other), other)
    assert [(at.layer, at.deeper_layer) for at in cycled.layers] == [(2, 4)]
    assert cycled.layers[0].deviation > report.layers[1].deviation
    if width == 1:  # a stack has no layer that one became before its end, whatever the plan's order
        same = mupscale.verify(narrow, mupscale.grow(narrow, plan, operator="stack_identity"), plan)
        assert same.equal
        assert [(at.layer, at.deeper_layer) for at in same.layers] == [(2, 4)]


def test_the_command_line_grows_in_depth(tmp_path, capsys):
    narrow = build("llama").float()
    narrow.save_pretrained(tmp_path / "narrow")
    arguments = [str(tmp_path / "narrow"), str(tmp_path / "deep"), "--axes", "layers=2"]
    assert main(["grow", *arguments]) == 0
    assert "layers 2 → 4" in capsys.readouterr().out
    assert main(["verify", *arguments[:2], "--picture", str(tmp_path / "picture")]) == 0
    said = capsys.readouterr().out
    assert "as grown" in said
    assert "duplicate nearly" in said
    assert (tmp_path / "picture" / "layers.png").stat().st_size > 1000
    assert len((tmp_path / "picture" / "layers.csv").read_text().splitlines()) == 3
    assert main(["hparams", arguments[1], "--lr", "1e-3", "--json"]) == 0
    groups = json.loads(capsys.readouterr().out)["groups"]
    assert {group["lr"] for group in groups} == {1e-3, 0.5e-3}
    assert main(["plan", arguments[0], "--axes", "layers=2", "--order", "sideways"]) == 2
    assert "order 'sideways': expected repeat or cycle" in capsys.readouterr().err
