"""Each operator's claim on keeping the function, measured in float64 on GPT-2 and Llama."""

import copy
import math
from fractions import Fraction

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, Phi3Config, Phi3ForCausalLM

import mupscale
from models import build, plan_source
from mupscale import GrowthError
from mupscale.layout.base import Fold
from mupscale.layout.tiny_config import tiny
from mupscale.models.contents import state_tensors
from mupscale.notation.axes import Axes, sum_copies
from mupscale.operators.any_tensor import Grower
from mupscale.operators.catalogue import OPERATORS
from mupscale.operators.net2net import chosen_units, random_copies
from mupscale.operators.noise import Noise, add_noise_
from mupscale.theory.scaling import Scaling

LMS = ["gpt2", "gpt2_untied", "llama", "llama_tied", "gpt_neox"]


def difference(name, operator, *, width=None, axes=None, **kwargs):
    """What `verify` measures after growing, over the standard deviation of the logits."""
    narrow = build(name)
    plan = mupscale.plan(narrow, width=width, axes=axes)
    wide = mupscale.grow(narrow, plan, operator=operator, **kwargs)
    report = mupscale.verify(narrow, wide, plan, operator=operator)
    assert report.by_weight == OPERATORS[operator].copies_evenly
    assert report.equal == (report.max_abs_diff <= 1e-10 * max(1, report.logits_std))
    return report.max_abs_diff / report.logits_std


@pytest.mark.parametrize("width", [2, 3])
@pytest.mark.parametrize("name", LMS)
def test_hypercloning_keeps_the_function(name, width):
    assert difference(name, "hyperclone", width=width) < 1e-10
    assert difference(name, "hyperclone", width=width, noise="paired:0") < 1e-10


def test_hypercloning_noise_has_its_ratio_of_signal_to_noise():
    narrow = build("llama")
    plan = mupscale.plan(narrow, width=2)
    pure, noisy = (
        mupscale.grow(narrow, plan, operator="hyperclone", noise=noise).model.layers[0].mlp.up_proj.weight
        for noise in (None, "paired:10")
    )
    pure, added = pure.detach(), (noisy - pure).detach()
    assert 10 * math.log10(pure.square().mean().item() / added.square().mean().item()) == pytest.approx(
        10, abs=0.3
    )
    pairs = added.unflatten(1, (-1, 2))
    torch.testing.assert_close(pairs[..., 0], -pairs[..., 1])
    rows = added.unflatten(0, (-1, 2))
    assert not torch.equal(rows[:, 0], rows[:, 1])  # copies of outputs differ


def test_an_odd_last_copy_gets_no_noise():
    narrow = build("llama")
    plan = mupscale.plan(narrow, width=3)
    pure, noisy = (
        mupscale.grow(narrow, plan, operator="hyperclone", noise=noise).model.layers[0].mlp.up_proj.weight
        for noise in (None, "paired:10")
    )
    assert torch.equal(noisy[:, 2::3], pure[:, 2::3])
    assert not torch.equal(noisy[:, 1::3], pure[:, 1::3])


@pytest.mark.parametrize("name", LMS)
@pytest.mark.parametrize("seed", [0, 1])
def test_net2net_keeps_the_function_where_no_norm_averages(name, seed):
    assert difference(name, "net2net", axes={"d_ff": 2}, seed=seed) < 1e-10
    if name.startswith("llama"):
        assert difference(name, "net2net", axes={"kv_heads": 4}, seed=seed) < 1e-10
        assert difference(name, "net2net", axes={"d_ff": 3, "q_per_kv": 2}, seed=seed) < 1e-10


@pytest.mark.parametrize("name", LMS)
def test_net2net_does_not_keep_it_where_a_norm_averages_over_uneven_copies(name):
    assert difference(name, "net2net", width=2) > 1e-3


@pytest.mark.parametrize("axes", [{"kv_heads": 4}, {"d_ff": 3}, {"kv_heads": 4, "d_ff": 2}])
def test_net2net_keeps_the_function_of_fused_projections(axes):
    """Phi-3 holds query, key and value in one weight, gate and up in another: rows of segments."""
    torch.manual_seed(0)
    narrow = Phi3ForCausalLM(tiny(Phi3Config())).double()
    plan = mupscale.plan(narrow, axes=axes)
    assert any(dim.has_segments for p in plan.params.values() for dim in p.axes.dims)
    wide = mupscale.grow(narrow, plan, operator="net2net")
    report = mupscale.verify(narrow, wide, plan, operator="net2net")
    assert report.max_abs_diff < 1e-10 * max(1, report.logits_std)
    for axis, growth in plan.growth.items():
        size = plan.layout.sizes[axis]
        units = chosen_units(axis, size, int(growth * size), seed=0)
        assert len(set(torch.bincount(units).tolist())) > 1


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_net2net_scales_a_gain_as_it_is_used(offset):
    """Gemma uses 1 + θ; of a tied readout's norm, each unit is divided by the number of its copies."""
    gain, units = torch.randn(5), chosen_units("d_model", 5, 10, 0)
    fold = Fold("d_model", Fraction(-1), offset)
    wide = random_copies(
        gain, Axes.parse("d_model"), {"d_model": 5}, {"d_model": Fraction(2)}, seed=0, folds=(fold,)
    )
    torch.testing.assert_close(wide + offset, ((gain + offset) / torch.bincount(units))[units])


def test_net2net_grows_by_fractions():
    assert difference("llama", "net2net", axes={"d_ff": Fraction(4, 3)}) < 1e-10


def test_net2net_keeps_the_function_of_an_mlp():
    """No norm at all: exact in every axis, uneven as the copies are."""
    from models import batch, make_mlp

    narrow = build("mlp")
    wide = mupscale.grow(narrow, mupscale.plan(make_mlp, width=3), operator="net2net")
    x, _ = batch("mlp", 0)
    torch.testing.assert_close(wide(x), narrow(x), rtol=0, atol=1e-12)
    assert len(set(torch.bincount(chosen_units("w12x3", 12, 36, 0)).tolist())) > 1


def test_net2net_keeps_every_unit_once_and_copies_some_more_often():
    units = chosen_units("d_ff", 50, 100, seed=0)
    assert units[:50].tolist() == list(range(50))
    assert len(set(torch.bincount(units).tolist())) > 2
    assert not torch.equal(units, chosen_units("d_ff", 50, 100, seed=1))


@pytest.mark.parametrize("name", LMS)
@pytest.mark.parametrize("operator", ["zero_pad", "aki"])
def test_zero_pad_and_aki_do_not_keep_the_function(name, operator):
    assert difference(name, operator, width=2) > 1e-2


def test_aki_takes_new_outputs_from_the_layer_above():
    narrow = build("llama")
    wide = mupscale.grow(narrow, mupscale.plan(narrow, axes={"d_ff": 2}), operator="aki")
    units = chosen_units("d_ff", 48, 96, 0)
    up = [layer.mlp.up_proj.weight for layer in narrow.model.layers]
    assert torch.equal(wide.model.layers[0].mlp.up_proj.weight[:48], up[0])
    assert torch.equal(wide.model.layers[0].mlp.up_proj.weight[48:], up[1][units[48:]])
    assert torch.equal(
        wide.model.layers[1].mlp.up_proj.weight[48:], up[1][units[48:]]
    )  # the last has none above


@pytest.mark.parametrize("operator", OPERATORS)
def test_every_operator_says_where_it_comes_from(operator):
    assert "arXiv" in OPERATORS[operator].source
    assert "function" in OPERATORS[operator].summary


@pytest.mark.parametrize(
    ("operator", "noise", "message"),
    [
        ("zero_pad", "balanced:1", "balanced:1' does not go with the operator zero_pad"),
        ("duplicate", "fresh:1", "fresh:1' does not go with the operator duplicate"),
        ("net2net", "balanced:1", "expected none, or one of relative, gaussian"),
        ("stretch", "none", "operator 'stretch' is unknown"),
    ],
)
def test_what_does_not_go_together_is_refused(operator, noise, message):
    narrow = build("llama")
    with pytest.raises(GrowthError, match=message):
        mupscale.grow(narrow, mupscale.plan(narrow, width=2), operator=operator, noise=noise)


def test_shrink_is_for_what_adds_something_fresh():
    narrow = build("llama")
    with pytest.raises(
        GrowthError, match=r"shrink 0\.2 is for zero_pad and expand, not for duplicate; leave"
    ):
        mupscale.grow(narrow, mupscale.plan(narrow, width=2), shrink=0.2, operator="duplicate")


@pytest.mark.parametrize("times", [2, 3])
@pytest.mark.parametrize("name", [*LMS, "qwen3"])
def test_identity_blocks_keep_the_function_and_plain_stacks_do_not(name, times):
    axes = {"layers": times}
    assert difference(name, "stack_identity", axes=axes) < 1e-10
    assert difference(name, "stack", axes=axes) > 1e-2


def test_stacking_puts_the_whole_stack_on_top_of_itself():
    narrow = build("gpt2")
    plan = mupscale.plan(narrow, axes={"layers": 3})
    wide = mupscale.grow(narrow, plan, operator="stack")
    assert wide.config.n_layer == len(wide.transformer.h) == 6
    for i, block in enumerate(wide.transformer.h):
        for key, value in block.named_parameters():
            assert torch.equal(value, narrow.transformer.h[i % 2].get_parameter(key)), (i, key)
    assert "layers 2 → 6" in str(plan)


def test_every_new_block_learns_from_the_first_step():
    """Zero projections of the identity still get gradients; rates are those of the deeper model."""
    narrow = build("llama")
    plan = mupscale.plan(narrow, axes={"layers": 2})
    wide = mupscale.grow(narrow, plan, operator="stack_identity")
    groups = mupscale.param_groups(wide, plan, torch.optim.AdamW, lr=1e-3, weight_decay=0.1)
    assert {(g["lr"], g["weight_decay"]) for g in groups} == {(1e-3, 0.1), (0.5e-3, 0.2)}
    wide(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    for i in (2, 3):
        assert wide.model.layers[i].self_attn.o_proj.weight.grad.abs().max() > 0


def test_init_of_a_deeper_model_draws_every_layer_by_itself():
    narrow = build("llama")
    plan = mupscale.plan(narrow, axes={"layers": 2})
    wide = mupscale.init_(mupscale.grow(narrow, plan, operator="stack"), plan, seed=0)
    weights = [layer.mlp.up_proj.weight for layer in wide.model.layers]
    assert not any(torch.equal(weights[0], other) for other in weights[1:])


@pytest.mark.parametrize(
    ("operator", "axes", "message"),
    [
        ("zero_pad", {"layers": 2}, "wider and no deeper: grow layers in a step of their own"),
        ("expand", {"layers": 2}, "wider and no deeper: grow layers in a step of their own"),
        ("stack", {"layers": 2, "d_ff": 2}, "deeper and no wider"),
        ("stack", {"d_ff": 2}, "deeper and no wider"),
    ],
)
def test_depth_and_width_grow_one_after_the_other(operator, axes, message):
    narrow = build("llama")
    with pytest.raises(GrowthError, match=message):
        mupscale.grow(narrow, mupscale.plan(narrow, axes=axes), operator=operator)


def test_half_a_layer_more_is_for_a_model_from_scratch():
    narrow = build("llama")
    config = narrow.config.from_dict({**narrow.config.to_dict(), "num_hidden_layers": 3})
    plan = mupscale.plan(narrow, to=config)
    for operator in ("duplicate", "stack"):
        with pytest.raises(GrowthError, match="layers by 3/2: layers grow by whole factors; choose 2"):
            mupscale.grow(narrow, plan, operator=operator)
    for operator in ("zero_pad", "net2net"):
        with pytest.raises(GrowthError, match="wider and no deeper"):
            mupscale.grow(narrow, plan, operator=operator)
    fresh = type(narrow)(config).double()
    assert mupscale.init_(fresh, plan).config.num_hidden_layers == 3  # from scratch any depth goes


def test_muon_takes_the_matrices_of_new_layers_too():
    plan = mupscale.plan(build("llama"), axes={"layers": 2})
    assert len(mupscale.hidden_matrices(plan)) == 4 * 7


def test_fractions_of_a_head_are_not_copied_under_rotary_positions():
    narrow = build("llama")
    config = narrow.config.from_dict({**narrow.config.to_dict(), "head_dim": 12})
    with pytest.raises(GrowthError, match="constants in model.rotary_emb differ along it"):
        mupscale.grow(narrow, mupscale.plan(narrow, to=config), operator="net2net")


@pytest.mark.parametrize("model_type", ["bert", "openai-gpt", "minicpm3"])
def test_stack_identity_is_refused_where_its_layers_are_none(model_type):
    """A norm after the sum of a layer and its input, or residuals of a size that goes by depth."""
    config = tiny(CONFIG_MAPPING[model_type]())
    narrow = AutoModelForCausalLM.from_config(config)
    plan = mupscale.plan(narrow, axes={"layers": 2})
    mupscale.grow(narrow, plan, operator="stack")
    with pytest.raises(
        GrowthError, match=r"growing layers by 2 with stack_identity is not exact.*another operator"
    ):
        mupscale.grow(narrow, plan, operator="stack_identity")


def test_layers_of_kinds_that_do_not_stack_are_refused():
    """ModernBERT's first layer has no norm, which the first layer of a second stack would have."""
    with pytest.raises(GrowthError, match=r"attn_norm.weight: only in one of the two models"):
        mupscale.plan(tiny(CONFIG_MAPPING["modernbert-decoder"]()), axes={"layers": 2})


@pytest.mark.parametrize(
    "noise", [None, "balanced:1", "relative:0.5", "gaussian:1", "hadamard:0.2", "uneven:0.3", "spectral:0.1"]
)
@pytest.mark.parametrize("name", ["qwen3_tied", "gpt2", "resnet"])
def test_blocks_of_rows_make_the_same_tensor(name, noise, monkeypatch):
    """Bit for bit, with few entries in a block, so that there are many."""
    monkeypatch.setattr("mupscale.operators.noise.BLOCK_ENTRIES", 100)
    narrow = build(name)
    plan = mupscale.plan(plan_source(name, narrow), width=2)
    state = state_tensors(narrow)
    grower = Grower(plan, lambda n: state[n].detach(), operator="duplicate", noise=noise, seed=4)
    many = 0
    for tensor in plan.wide_names:
        blocks = list(grower.blocks(tensor, torch.bfloat16))
        many += len(blocks) > 1
        assert torch.equal(
            torch.cat(blocks) if blocks[0].ndim else blocks[0], grower._whole(tensor, torch.bfloat16)
        ), tensor
    assert noise == "spectral:0.1" or many > 5


@pytest.mark.parametrize(
    "axes", ["d_ff [d_model]", "[d_model] d_ff", "d_ff [d_model + d_model]", "[d_model d_ff]"]
)
@pytest.mark.parametrize("copies", [2, 3])
def test_balanced_noise_is_as_large_as_it_says_and_sums_to_nothing(axes, copies):
    """σ · RMS / √k_in, less the share that goes with the mean; different in the copies of an output."""
    sizes, growth = {"d_model": 60, "d_ff": 50}, {"d_model": copies, "d_ff": 2}
    parsed = Axes.parse(axes)
    shape, wide_shape = parsed.shape(sizes), parsed.wide_shape(sizes, growth)
    scaling = Scaling(parsed, shape, wide_shape, parsed.copies(growth), parsed.fan_in(growth))
    narrow = torch.full(scaling.shape, 3.0)
    opened = parsed.expand_copies(sizes, growth)
    noise = add_noise_(
        torch.zeros(scaling.wide_shape), narrow, scaling, opened, Noise("balanced", 0.5),
        seed=1, name="w", fresh_std=lambda: 0.0,
    )  # fmt: skip
    together = math.prod(opened.shape[i] for i in opened.summed)
    expected = 0.5 * 3 / math.sqrt(scaling.fan_in) * math.sqrt(1 - 1 / together)
    assert noise.std().item() == pytest.approx(expected, rel=0.05)
    assert sum_copies(noise, opened).abs().max() < 1e-5
    if not scaling.axes.dims[0].contracted:
        assert not torch.equal(noise[0], noise[1])


@pytest.mark.parametrize("axes", [{"d_model": Fraction(3, 2)}, {"d_ff": 3}, {"d_model": 2, "kv_heads": 2}])
@pytest.mark.parametrize(("dtype", "noise"), [(torch.float64, "fresh:1"), (torch.bfloat16, None)])
@pytest.mark.parametrize(
    ("operator", "name"), [("zero_pad", "llama"), ("expand", "llama"), ("expand", "gpt2")]
)
def test_blocks_of_rows_make_the_same_tensor_beside_fresh_ones(
    operator, name, axes, noise, dtype, monkeypatch
):
    if name == "gpt2":  # which calls them heads
        axes = {"heads" if axis == "kv_heads" else axis: factor for axis, factor in axes.items()}
    monkeypatch.setattr("mupscale.operators.noise.BLOCK_ENTRIES", 300)
    narrow = build(name).to(dtype)
    config = narrow.config
    if "d_model" in axes and axes["d_model"] != 2:
        config = copy.deepcopy(config)
        config.hidden_size = config.hidden_size * 3 // 2
        plan = mupscale.plan(narrow, to=config)
    else:
        plan = mupscale.plan(narrow, axes=axes)
    state = state_tensors(narrow)
    grower = Grower(
        plan,
        lambda n: state[n].detach(),
        operator=operator,
        noise=noise,
        seed=4,
        shrink={"*": 0.4, "*.mlp.*": 0},
    )
    assert sum(len(list(grower.blocks(tensor))) > 1 for tensor in plan.wide_names) > 5
    for tensor in plan.wide_names:
        assert torch.equal(grower(tensor), grower._whole(tensor, None)), tensor


@pytest.mark.parametrize("operator", ["default", "duplicate"])
def test_a_plan_from_first_that_ends_elsewhere_is_refused(operator):
    make = lambda width: nn.Sequential(nn.Linear(4, 8 * width), nn.Linear(8 * width, 3))  # noqa: E731
    growth = mupscale.plan(lambda width: make(2 * width), width=2)
    first = {to: mupscale.plan(make, width=to) for to in (2, 4)}
    mupscale.grow(make(2), growth, operator=operator, from_first=first[4])
    with pytest.raises(GrowthError, match=r"^from_first: 0.weight has shape \(32, 4\) .*, \(16, 4\) by from"):
        mupscale.grow(make(2), growth, operator=operator, from_first=first[2])
    other = mupscale.plan(lambda width: nn.ModuleDict({"a": nn.Linear(4, 8 * width)}), width=2)
    with pytest.raises(GrowthError, match="^from_first: 0.weight has shape .*, none by from_first"):
        mupscale.grow(make(2), growth, operator=operator, from_first=other)
