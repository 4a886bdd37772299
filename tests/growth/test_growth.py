"""Growing at rest: exact for every family, every axis, with balanced noise and without."""

import math

import pytest
import torch
from torch import nn

import mupscale
from models import NAMES, batch, build, loss_of, plan_source
from mupscale import GrowthError
from mupscale.models.precision import Float64
from mupscale.operators.noise import Noise, normal
from mupscale.study.runs.networks import mlp, resnet18

FAMILIES = [n for n in NAMES if n not in ("mlp", "resnet")]
LLAMAS = [n for n in FAMILIES if not n.startswith("gpt")]


def outputs(name, model):
    inputs, _ = batch(name, 7)
    with Float64(), torch.no_grad():
        result = model.eval()(inputs)
    return getattr(result, "logits", result)


def assert_equal_function(name, narrow, wide):
    torch.testing.assert_close(outputs(name, wide), outputs(name, narrow), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("width", "noise"), [(2, "balanced:1"), (3, None), (3, "uneven:2")])
@pytest.mark.parametrize("name", NAMES)
def test_growing_keeps_the_function(name, width, noise):
    narrow = build(name)
    wide = mupscale.grow(
        narrow, mupscale.plan(plan_source(name, narrow), width=width), noise=noise, operator="duplicate"
    )
    assert sum(p.numel() for p in wide.parameters()) > sum(p.numel() for p in narrow.parameters())
    assert_equal_function(name, narrow, wide)


# What test_properties does not draw: d_model and the heads each without the other, and GPT-NeoX.
SINGLE_AXES = [
    *((n, {axis: 2}) for n in ("llama_biases", "qwen2", "qwen3") for axis in ("kv_heads", "q_per_kv")),
    ("mistral", {"q_per_kv": 3}),
    *((n, {"d_model": 2}) for n in LLAMAS),
    ("gpt_neox", {"d_ff": 2}),
    ("gpt_neox", {"d_model": 3, "heads": 3}),
]


@pytest.mark.parametrize(("name", "axes"), SINGLE_AXES)
def test_growing_single_axes_keeps_the_function(name, axes):
    narrow = build(name)
    plan = mupscale.plan(narrow, axes=axes)
    assert dict(plan.growth) == axes
    for noise in (None, "balanced:1"):
        assert_equal_function(name, narrow, mupscale.grow(narrow, plan, noise=noise, operator="duplicate"))


def test_unscaled_attention_folds_the_whole_factor():
    from transformers import AutoModelForCausalLM

    from models import CONFIGS

    config = CONFIGS["gpt2"]()
    config.scale_attn_weights = False
    narrow = AutoModelForCausalLM.from_config(config).double()
    wide = mupscale.grow(
        narrow, mupscale.plan(narrow, axes={"d_model": 2, "head_dim": 2}), operator="duplicate"
    )
    assert_equal_function("gpt2", narrow, wide)


@pytest.mark.parametrize("name", ["mlp", "resnet", "gpt2", "gpt_neox", "llama_tied", "qwen3"])
def test_growing_twice_by_two_is_growing_once_by_four(name):
    narrow = build(name)
    once = mupscale.grow(
        narrow, mupscale.plan(plan_source(name, narrow), width=4), noise=None, operator="duplicate"
    )
    if name in FAMILIES:
        half = mupscale.grow(narrow, mupscale.plan(narrow, width=2), noise=None, operator="duplicate")
        twice = mupscale.grow(half, mupscale.plan(half, width=2), noise=None, operator="duplicate")
    else:
        make = plan_source(name, narrow)
        half = mupscale.grow(narrow, mupscale.plan(narrow, to=make(2)), noise=None, operator="duplicate")
        twice = mupscale.grow(half, mupscale.plan(half, to=make(4)), noise=None, operator="duplicate")
    for (n, a), (_, b) in zip(once.named_parameters(), twice.named_parameters(), strict=True):
        assert torch.equal(a, b), n


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_tied", "mlp"])
@pytest.mark.parametrize(("noise", "differ"), [("balanced:1", True), ("uneven:1", True), (None, False)])
def test_noise_breaks_the_symmetry_of_copies(name, noise, differ):
    """After five steps the copies of a unit differ with balanced noise and are still equal without."""
    narrow = build(name)
    plan = mupscale.plan(plan_source(name, narrow), width=2)
    wide = mupscale.grow(narrow, plan, noise=noise, operator="duplicate")
    optimizer = torch.optim.AdamW(mupscale.param_groups(wide, plan, torch.optim.AdamW, lr=1e-2))
    with Float64():
        for seed in range(5):
            optimizer.zero_grad()
            loss_of(wide, batch(name, seed)).backward()
            optimizer.step()
    vector = {
        "llama": "model.norm.weight",
        "qwen3_tied": "model.norm.weight",
        "gpt2": "transformer.ln_f.bias",
    }
    units = wide.get_parameter(vector.get(name, "0.bias")).detach().view(-1, 2)
    spread = (units[:, 0] - units[:, 1]).abs().max() / units.abs().max()
    assert spread > 1e-3 if differ else spread < 1e-9


def test_one_hidden_layer_gets_its_noise_in_the_readout():
    """Where nothing else contracts the grown axis, the readout's noise alone can make copies differ."""

    def make(width):
        return nn.Sequential(nn.Linear(3, 8 * width), nn.Tanh(), nn.Linear(8 * width, 2))

    narrow, x = make(1).double(), torch.randn(4, 3).double()
    wide = mupscale.grow(narrow, mupscale.plan(make, width=2), operator="duplicate")
    torch.testing.assert_close(wide(x), narrow(x), rtol=0, atol=1e-12)
    assert not torch.equal(wide[2].weight[:, 0::2], wide[2].weight[:, 1::2])


@pytest.mark.parametrize("kind", ["gaussian", "relative", "balanced"])
def test_noise_has_the_size_that_its_definition_says(kind):
    narrow = build("llama").float()
    plan = mupscale.plan(narrow, width=4)
    pure, noisy = (mupscale.grow(narrow, plan, noise=n, operator="duplicate") for n in (None, f"{kind}:0.5"))
    for name, p in plan.params.items():
        delta = (noisy.get_parameter(name) - pure.get_parameter(name)).detach()
        if not p.has_noise:
            assert not delta.any(), name
            continue
        theta = narrow.get_parameter(name).detach()
        size = 0.02 if kind == "gaussian" else theta.square().mean().sqrt().item()
        expected = (
            0.5
            * size
            / float(p.fan_in) ** 0.5
            * ((1 - 1 / float(p.fan_in)) ** 0.5 if kind == "balanced" else 1)
        )
        assert delta.std().item() == pytest.approx(expected, rel=0.05), name
    assert {n for n, p in plan.params.items() if not p.has_noise} >= {
        "lm_head.weight",
        "model.embed_tokens.weight",
    }


def test_balanced_one_keeps_the_size_of_a_mup_consistent_matrix():
    """RMS · √fan_in is kept: the wide matrix is as large as one trained at that width would be."""
    narrow = build("llama").float()
    wide = mupscale.grow(narrow, mupscale.plan(narrow, width=4), operator="duplicate")
    name = "model.layers.0.mlp.up_proj.weight"
    rms = [m.get_parameter(name).square().mean().sqrt().item() for m in (narrow, wide)]
    assert rms[1] * 4**0.5 == pytest.approx(rms[0], rel=0.03)


def spectral_norms(weight):
    """‖w[:, :, i, j]‖₂ of every position (i, j) of a kernel; of a matrix, its own."""
    return torch.linalg.matrix_norm(weight.movedim((0, 1), (-2, -1)), ord=2)


@pytest.mark.parametrize(
    "make", [lambda k: resnet18(4 * k, channels=1, classes=3), lambda k: mlp(8 * k, inputs=5, classes=3)]
)
def test_spectral_noise_has_the_spectral_norm_that_its_definition_says(make):
    """At every position of a kernel: ‖Δ‖₂ = t · ‖s·dup(θ)‖₂; interpolation mixes with √(1 − t) and √t."""
    narrow, plan = make(1).double(), mupscale.plan(make, width=2)
    pure, noisy, mixed = (
        dict(mupscale.grow(narrow, plan, noise=n, operator="duplicate").named_parameters())
        for n in (None, "spectral:0.2", "interpolate:0.3")
    )
    for name in noisy:
        scaling = plan.params[name]
        if not scaling.has_noise:
            assert torch.equal(noisy[name], pure[name])
            continue
        size, added = spectral_norms(pure[name]), spectral_norms(noisy[name] - pure[name])
        torch.testing.assert_close(added, 0.2 * size, rtol=1e-5, atol=0)
        mixed_in = spectral_norms(mixed[name] - math.sqrt(0.7) * pure[name])
        torch.testing.assert_close(mixed_in, math.sqrt(0.3) * size, rtol=1e-5, atol=0)


def test_hadamard_noise_goes_with_the_size_of_every_weight():
    narrow, plan = (
        mlp(64, inputs=5, classes=3),
        mupscale.plan(lambda k: mlp(64 * k, inputs=5, classes=3), width=2),
    )
    pure, noisy = (
        mupscale.grow(narrow, plan, noise=n, operator="duplicate").body[3].weight
        for n in (None, "hadamard:0.2")
    )
    epsilon = (noisy - pure) / pure.abs() / 0.2
    assert abs(epsilon.mean()) < 0.05
    assert epsilon.std().item() == pytest.approx(1, abs=0.05)


def test_noise_depends_on_seed_and_name_alone():
    narrow = build("llama").float()
    plan = mupscale.plan(narrow, width=2)
    a, b, c = (mupscale.grow(narrow, plan, seed=s, operator="duplicate") for s in (1, 1, 2))
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(a.get_parameter(name), b.get_parameter(name))
    assert not torch.equal(a.get_parameter(name), c.get_parameter(name))
    noise = normal(torch.Size((3, 5)), seed=3, name="x")
    assert torch.equal(noise, normal(torch.Size((3, 5)), seed=3, name="x"))
    assert not torch.equal(noise, normal(torch.Size((3, 5)), seed=3, name="y"))


OF_WIDTH = [kind for kind in Noise.KINDS if kind not in ("paired", "fresh", "between")]


@pytest.mark.parametrize("noise", [f"{kind}:0.5" for kind in OF_WIDTH])
def test_bits_do_not_depend_on_the_number_of_threads(noise):
    """Large sums are made by several threads, each its share: so in another order with another number."""
    torch.manual_seed(0)

    def make(width):
        return mlp(300 * width, inputs=64, classes=8, layers=3)

    narrow, plan = make(1), mupscale.plan(make, width=2)
    threads, grown = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            grown.append(mupscale.grow(narrow, plan, noise=noise, seed=1, operator="duplicate").state_dict())
    finally:
        torch.set_num_threads(threads)
    for other in grown[1:]:
        assert all(torch.equal(tensor, other[name]) for name, tensor in grown[0].items())


def test_blocks_of_noise_are_whole_groups_of_copies(monkeypatch):
    """Drawn in many blocks the noise is still balanced, for copies that lie head_dim rows apart too."""
    monkeypatch.setattr("mupscale.operators.noise.BLOCK_ENTRIES", 100)
    for name in ("gpt2", "llama"):
        narrow = build(name)
        wide = mupscale.grow(narrow, mupscale.plan(narrow, width=2), operator="duplicate")
        assert_equal_function(name, narrow, wide)


def test_half_precision_is_grown_in_float32_and_cast_back():
    narrow = build("llama").to(torch.bfloat16)
    plan = mupscale.plan(narrow, width=3)
    wide = mupscale.grow(narrow, plan, operator="duplicate")
    assert {p.dtype for p in wide.parameters()} == {torch.bfloat16}
    name = "model.layers.0.mlp.up_proj.weight"
    reference = mupscale.grow(narrow.float(), plan, operator="duplicate").get_parameter(name)
    torch.testing.assert_close(wide.get_parameter(name), reference.to(torch.bfloat16), rtol=0, atol=0)
    report = mupscale.verify(build("llama").to(torch.bfloat16), wide, plan)
    assert report.equal
    assert 0 < report.max_abs_diff < 0.05


def test_running_statistics_are_duplicated():
    narrow = build("resnet")
    narrow.bn.running_mean.normal_()
    wide = mupscale.grow(narrow, mupscale.plan(plan_source("resnet", narrow), width=2), operator="duplicate")
    assert torch.equal(wide.bn.running_mean, narrow.bn.running_mean.repeat_interleave(2))
    assert wide.bn.num_batches_tracked == narrow.bn.num_batches_tracked


def test_growing_leaves_the_narrow_model_alone():
    narrow = build("llama_tied")
    before = {n: p.detach().clone() for n, p in narrow.named_parameters()}
    wide = mupscale.grow(narrow.eval(), mupscale.plan(narrow, axes={"d_ff": 2}), operator="duplicate")
    with torch.no_grad():
        for p in wide.parameters():
            p.zero_()
    for n, p in narrow.named_parameters():
        assert torch.equal(p, before[n]), n
    assert not wide.training
    assert wide.lm_head.weight is wide.model.embed_tokens.weight


@pytest.mark.parametrize("text", ["balanced", "balanced:x", "balanced:-1", "loud:1", "gaussian:inf", ""])
def test_unknown_noise_is_refused(text):
    with pytest.raises(GrowthError, match="expected none or KIND:STRENGTH"):
        Noise.parse(text)


def test_a_model_that_is_not_the_plans_is_refused():
    plan = mupscale.plan(build("llama"), width=2)
    with pytest.raises(GrowthError, match="not in the (plan|model)"):
        mupscale.grow(build("qwen3"), plan, operator="duplicate")
    with pytest.raises(GrowthError, match=r"expected shape \(61, 32\)"):
        mupscale.grow(mupscale.grow(build("llama"), plan, operator="duplicate"), plan, operator="duplicate")


def test_mixed_dtypes_and_the_generation_config_are_kept():
    narrow = build("llama_tied").to(torch.bfloat16)
    narrow.model.norm.float()
    narrow.generation_config.max_new_tokens = 7
    wide = mupscale.grow(narrow, mupscale.plan(narrow, width=2), operator="duplicate")
    assert {n: p.dtype for n, p in wide.named_parameters()} == {
        n: p.dtype for n, p in narrow.named_parameters()
    }
    assert wide.generation_config.max_new_tokens == 7
    assert wide.lm_head.weight is wide.model.embed_tokens.weight
