"""The proof of a growth refuses every layout that is wrong, is remembered, and never holds a large model.

The layouts of some families are made wrong on purpose in five ways, each as someone who reads a model's code
could get it wrong. What changes no tensor is no mistake; all else that changes the function is refused.
"""

import copy
import itertools
import os
import re
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from functools import cache

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING, Gemma2Config, Gemma2ForCausalLM, LlamaConfig, MarianConfig

import mupscale
from mupscale import GrowthError
from mupscale.growth import grow_checkpoint
from mupscale.layout import known
from mupscale.layout.base import Fold
from mupscale.layout.inference.fields import explicit, size_fields, with_fields
from mupscale.layout.inference.instance import instance
from mupscale.layout.known import family_of
from mupscale.layout.tiny_config import tiny
from mupscale.models.calls import Call
from mupscale.models.inputs import example_inputs
from mupscale.models.precision import Float64
from mupscale.notation.axes import Axes, duplicate
from mupscale.notation.dims import Row
from mupscale.planner import _alike
from mupscale.proof.deviations import grown_call
from mupscale.proof.proof import still, tried

FAMILIES = {
    "llama": {"num_key_value_heads": 8},
    "gpt2": {},
    "gpt_neox": {},
    "phi3": {"num_key_value_heads": 8},
    "bloom": {},
    "gemma2": {},
    "mixtral": {},
    "mamba2": {},
    "bert": {"architectures": ["BertForMaskedLM"]},
    "t5": {"architectures": ["T5ForConditionalGeneration"]},
    "bart": {"architectures": ["BartForCausalLM"]},  # attends to states of an encoder that is no part of it
}
# No dim of these holds several things, so that there are no segments to mix up.
UNFUSED = {"llama", "gemma2", "bert", "t5", "bart"}
# What is added to every key adds the same to all scores of a query, which softmax takes away again.
WITHOUT_EFFECT = {
    "bert": {"bert.encoder.layer.#.attention.self.key.bias"},
    "bart": {f"model.decoder.layers.#.{attention}_attn.k_proj.bias" for attention in ("self", "encoder")},
}


@cache
def right(name):
    """The plan of a tiny model of a family, the model, a wide one, and a call of them."""
    config = CONFIG_MAPPING[name](**FAMILIES[name])
    family, small = family_of(config), still(explicit(tiny(config)))
    growth = family.width(Fraction(2))
    if "d_ff" in growth:  # so that it makes a difference which of two dims is summed over
        growth["d_ff"] = Fraction(3)
    plan = _alike(family, small, growth)
    narrow = instance(small)
    return plan, narrow, instance(plan.config), Call.of(example_inputs(narrow, seed=1))


def changed(things, i, *new):
    return (*things[:i], *new, *things[i + 1 :])


def part_of(name):
    return re.sub(r"(?<=\.)\d+(?=\.)", "#", name)


def with_axes(plan, change):
    """The plans with the axes of one parameter, in all layers, as ``change`` says; each with its name."""
    params = plan.layout.params
    for part, axes in dict.fromkeys((part_of(name), axes) for name, axes in params.items()):
        names = [name for name in params if (part_of(name), params[name]) == (part, axes)]
        for other in change(axes):
            layout = replace(plan.layout, params=params | dict.fromkeys(names, other))
            yield part, replace(plan, layout=layout)


def with_dims(plan, change):
    """The plans with one dim of one parameter made of other axes."""

    def one_dim(axes):
        for i, dim in enumerate(axes.dims):
            for other in change(dim.axes):
                yield Axes(changed(axes.dims, i, replace(dim, axes=other)))

    return with_axes(plan, one_dim)


def with_folds(plan, folds):
    return replace(plan, layout=replace(plan.layout, folds=folds))


def everywhere(factors, change):
    """``change`` a product of axes, or one in its segments."""
    yield from change(factors)
    for i, factor in enumerate(factors):
        if isinstance(factor, Row):
            for j, segment in enumerate(factor.segments):
                for other in everywhere(segment, change):
                    yield changed(factors, i, Row(changed(factor.segments, j, other)))


def exchanges(factors, fixed):
    """Two neighbours change places: two named axes, or a named one and a fixed number."""
    for i, pair in enumerate(itertools.pairwise(factors)):
        if not any(isinstance(f, Row) for f in pair) and any(isinstance(f, int) for f in pair) == fixed:
            yield (*factors[:i], *pair[::-1], *factors[i + 2 :])


def swapped_axes(plan):
    """1. (heads head_dim) → (head_dim heads)"""
    return with_dims(plan, lambda axes: everywhere(axes, lambda factors: exchanges(factors, fixed=False)))


def wrong_folds(plan):
    """2. A fold, or what is added before it, is forgotten; the readout has one too many."""
    layout, folds = plan.layout, plan.layout.folds
    for part in dict.fromkeys(map(part_of, folds)):
        own = {name: of for name, of in folds.items() if part_of(name) == part}
        yield part, with_folds(plan, {name: of for name, of in folds.items() if name not in own})
        plain = {name: tuple(replace(fold, offset=0.0) for fold in of) for name, of in own.items()}
        yield part, with_folds(plan, folds | plain)
    for name in layout.readouts:
        yield name, with_folds(plan, {**folds, name: (*folds.get(name, ()), Fold("d_model", Fraction(-1)))})


def mixed_segments(plan):
    """3. (heads 3 head_dim) → (3 heads head_dim), (q + k + v) → (v + k + q)"""

    def mix(factors):
        yield from exchanges(factors, fixed=True)
        for i, factor in enumerate(factors):
            if isinstance(factor, Row):
                yield changed(factors, i, Row(factor.segments[::-1]))

    return with_dims(plan, lambda axes: everywhere(axes, mix))


def flipped_contractions(plan):
    """4. d_ff [d_model] → d_ff d_model, [d_ff] [d_model], [d_ff] d_model"""

    def flip(axes):
        grown = [i for i, dim in enumerate(axes.dims) if dim.growth(plan.growth) != 1]
        for flipped in [[i] for i in grown] + [list(pair) for pair in itertools.combinations(grown, 2)]:
            marks = [dim.contracted != (i in flipped) for i, dim in enumerate(axes.dims)]
            yield Axes(tuple(replace(d, contracted=mark) for d, mark in zip(axes.dims, marks, strict=True)))

    return with_axes(plan, flip)


def in_pairs(plan):
    """The plan with one more axis: half of d_model, of which each index stands for two neighbours."""
    sizes, growth = plan.layout.sizes, plan.growth
    layout = replace(plan.layout, sizes={**sizes, "pairs": sizes["d_model"] // 2})
    return replace(plan, layout=layout, growth={**growth, "pairs": growth["d_model"]})


def another_order(plan):
    """5. d_model → (pairs 2): copies 0 1 0 1 2 3 2 3 instead of 0 0 1 1 2 2 3 3."""
    return with_dims(in_pairs(plan), lambda axes: [("pairs", 2)] if axes == ("d_model",) else [])


WRONG = [swapped_axes, wrong_folds, mixed_segments, flipped_contractions, another_order]


def grown(plan, name, narrow):
    p = plan[name]
    return p.weight_scale * duplicate(narrow + p.offset, p.axes, plan.layout.sizes, plan.growth) - p.offset


def grows_alike(one, other):
    """Whether two plans grow every tensor to the same one, bit for bit."""
    for name, p in one.params.items():
        narrow = torch.randn(p.shape, dtype=torch.float64)
        if p != other[name] and not torch.equal(grown(one, name, narrow), grown(other, name, narrow)):
            return False
    return True


def apart(narrow, wide, plan, call):
    """How far the outputs of two models are from each other."""
    with torch.no_grad(), Float64():
        return (call(narrow).logits - grown_call(call, plan)(wide).logits).abs().max().item()


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n in ("mamba2", "t5", "bart"))) for n in FAMILIES],
)
def test_every_wrong_layout_that_changes_the_function_is_refused(name):
    plan, narrow, wide, call = right(name)
    own = copy.deepcopy(narrow)
    assert tried(own, wide, plan, [call]).failure is None
    assert apart(own, wide, plan, call) < 1e-10
    refused, without_effect = dict.fromkeys(WRONG, 0), set()
    for mutate in WRONG:
        for part, wrong in mutate(plan):
            if grows_alike(plan, wrong):
                continue
            own = copy.deepcopy(narrow)
            proof = tried(own, wide, wrong, [call])
            if apart(own, wide, plan, call) > 1e-6:
                assert "outputs differ by" in (proof.failure or ""), f"{mutate.__doc__} {part}: {proof}"
                # Of a wrong fold only what lies between two modules may be off, and the output of none.
                assert mutate is wrong_folds or "the first module whose output is no copy" in proof.failure
                refused[mutate] += 1
            else:
                assert proof.failure is None, f"{mutate.__doc__} {part}: {proof}"
                without_effect.add(part)
    assert without_effect == WITHOUT_EFFECT.get(name, set())
    missing = [mutate for mutate in WRONG if not refused[mutate]]
    assert missing == ([mixed_segments] if name in UNFUSED else [])
    assert sum(refused.values()) >= 20


def test_another_order_of_copies_is_as_good_where_all_parameters_have_it():
    plan, narrow, wide, call = right("llama")
    paired = in_pairs(plan)
    pairs = {
        name: Axes(tuple(replace(d, axes=("pairs", 2)) if d.axes == ("d_model",) else d for d in axes.dims))
        for name, axes in plan.layout.params.items()
    }
    other = replace(paired, layout=replace(paired.layout, params=pairs))
    assert not grows_alike(plan, other)
    assert tried(copy.deepcopy(narrow), wide, other, [call]).failure is None


def test_queries_may_be_larger_where_keys_are_as_much_smaller():
    """The same scores, and the learning rates follow from the scales: no wrong layout, if an unusual one."""
    plan, narrow, wide, call = right("llama")
    powers = {"q_proj": Fraction(1), "k_proj": Fraction(-1)}
    module = {name: name.split(".")[-2] for name in plan.params}
    folds = {name: (Fold("d_model", powers[m]),) for name, m in module.items() if m in powers}
    other = with_folds(plan, folds)
    assert not grows_alike(plan, other)
    assert tried(copy.deepcopy(narrow), wide, other, [call]).failure is None


class Steeper(nn.Module):
    """Computes an MLP, but with gradients that are as many times too large as it is wide."""

    def __init__(self, width):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4 * width), nn.Linear(4 * width, 5)

    def forward(self, x):
        hidden = self.first(x)
        steep = hidden * hidden.shape[-1]
        return self.last(steep - (steep - hidden).detach())


def test_what_computes_the_same_but_trains_otherwise_is_refused():
    with pytest.raises(GrowthError, match=r"outputs agree, but after \d steps of \w+ the losses differ"):
        mupscale.plan(Steeper, width=2, inputs=torch.randn(7, 3))


def llama(**sizes):
    return LlamaConfig(**{"hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 2} | sizes)


def test_a_family_is_measured_and_proved_once(monkeypatch):
    first = mupscale.plan(llama(), width=2)
    known._families.clear()  # what this process knows, so that only the files are left
    monkeypatch.setattr(torch.nn.Module, "__call__", lambda *args, **kwargs: pytest.fail("a model runs"))
    monkeypatch.setattr("mupscale.proof.proof.instance", lambda config: pytest.fail("a model is made"))
    assert mupscale.plan(llama(), width=2) == first
    larger = mupscale.plan(llama(hidden_size=512, num_hidden_layers=48), width=2)
    assert larger.config.hidden_size == 1024
    with pytest.raises(pytest.fail.Exception):
        mupscale.plan(llama(), axes={"d_ff": 7})


def test_what_cannot_be_read_is_measured_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("MUPSCALE_CACHE", str(tmp_path))
    known._families.clear()
    first = mupscale.plan(llama(), width=2)
    files = sorted(tmp_path.iterdir())
    assert [file.name.partition("-")[0] for file in files] == ["family", "folds", "proof"]
    before = [file.read_bytes() for file in files]
    for file, garbage in zip(files, (before[0][:100], b"\xff\x00", b""), strict=True):
        file.write_bytes(garbage)
    known._families.clear()
    assert mupscale.plan(llama(), width=2) == first
    assert sorted(tmp_path.iterdir()) == files
    assert [file.read_bytes() for file in files] == before


LARGE = """
import resource
import mupscale
from transformers import LlamaConfig

config = LlamaConfig(
    hidden_size=8192,
    intermediate_size=28672,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
plan = mupscale.plan(config, width=2)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert plan.config.hidden_size == 16384
assert all(p.is_meta for make in (plan.build_narrow, plan.build_wide) for p in make().parameters())
print(after - before)
"""


def test_a_model_of_70b_is_planned_without_its_weights(tmp_path):
    """Measured and proved on tiny models, in a process that starts with nothing known."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LARGE],
        env={**os.environ, "MUPSCALE_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout.split()[-1]) < 1_000_000  # KiB


def test_constants_of_the_width_are_the_wide_models_own():
    """Gemma multiplies its embeddings by √d_model, which it keeps in a buffer."""
    torch.manual_seed(0)
    narrow = Gemma2ForCausalLM(tiny(Gemma2Config()))
    plan = mupscale.plan(narrow, width=2)
    report = mupscale.verify(narrow, mupscale.grow(narrow, plan, operator="duplicate"), plan, steps=3)
    assert report.equal, report
    assert report.max_abs_diff < 1e-6


@pytest.mark.parametrize(
    ("model_type", "architecture"),
    [
        ("roformer", "RoFormerForMaskedLM"),  # its embedding size and hidden size change together only
        # Returns normalized embeddings beside its logits.
        pytest.param("siglip", "SiglipModel", marks=pytest.mark.slow),
        ("vit_mae", "ViTMAEForPreTraining"),  # has dims of (patch patch channels)
        ("vit", "ViTForMaskedImageModeling"),  # returns a loss beside its result, and no logits
        ("dinov3_vit", "DINOv3ViTModel"),  # has an empty parameter, and draws positions in training
        ("wav2vec2", "Wav2Vec2Model"),  # normalizes a weight, and writes into what a module returned
        ("bart", "BartForCausalLM"),  # attends to the states of an encoder, which grow with it
        ("whisper", "WhisperForCausalLM"),  # calls these otherwise
        ("llava", "LlavaForConditionalGeneration"),  # reads an image in the place of tokens
        # Does so, and is told which tokens these are.
        pytest.param("gemma3", "Gemma3ForConditionalGeneration", marks=pytest.mark.slow),
        ("fuyu", "FuyuForCausalLM"),  # reads patches without a tower
        # Takes one index of whole numbers that are all alike.
        pytest.param("git", "GitForCausalLM", marks=pytest.mark.slow),
        # Has other numbers of heads in other stages.
        pytest.param("swin", "SwinForImageClassification", marks=pytest.mark.slow),
        # Has parts whose names do not say that they are configs.
        pytest.param("t5gemma", "T5GemmaForConditionalGeneration", marks=pytest.mark.slow),
    ],
)
def test_models_that_are_built_otherwise_are_proved(model_type, architecture):
    config = tiny(CONFIG_MAPPING[model_type](architectures=[architecture]))
    narrow = instance(config)
    plan = mupscale.plan(narrow, width=3)
    assert {*plan.growth.values()} == {3}
    report = mupscale.verify(narrow, mupscale.grow(narrow, plan, operator="duplicate"), plan, steps=3)
    assert report.equal, report


@pytest.mark.slow
def test_constants_are_found_beside_a_router_that_sends_tokens_elsewhere():
    """LongCat multiplies by √(d_model / rank), and its experts' steps are others in the wide model."""
    plan = mupscale.plan(tiny(CONFIG_MAPPING["longcat_flash"]()), width=2)
    folded = {re.sub(r".*self_attn.\d.", "", name): fold for name, fold in plan.layout.folds.items()}
    half = (Fold("d_model", Fraction(-1, 2)),)
    assert folded == {"kv_a_layernorm.weight": half, "q_a_layernorm.weight": half}


def test_layers_of_another_head_dim_than_the_tiny_models_are_proved():
    """Gemma 4 sees everything in some layers, with a larger head dim that no field of the whole model says."""
    rope = {"rope_type": "default", "rope_theta": 1e4}
    config = CONFIG_MAPPING["gemma4_text"](
        hidden_size=96,
        intermediate_size=40,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=12,
        per_layer_config={"05": {"head_dim": 20}},
        hidden_size_per_layer_input=10,
        vocab_size=80,
        vocab_size_per_layer_input=80,
        rope_parameters={"sliding_attention": rope, "full_attention": rope},
    )
    narrow = instance(config)
    plan = mupscale.plan(narrow, width=2)
    assert (
        str(plan.params["model.layers.5.self_attn.q_proj.weight"].axes) == "(kv_heads q_per_kv 20) [d_model]"
    )
    report = mupscale.verify(narrow, mupscale.grow(narrow, plan, operator="duplicate"), plan, steps=2)
    assert report.equal, report


@pytest.mark.parametrize(("d_model", "heads"), [(4, 3), (2, 3), (4, 5)])
def test_heads_that_do_not_divide_the_tiny_models_channels_grow(d_model, heads):
    """Llama's config wants heads to divide d_model; what does so here need not do so in a tiny model."""

    def config(d_model, heads):
        return LlamaConfig(
            hidden_size=120 * d_model,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2 * heads,
            num_key_value_heads=1,
            head_dim=8,
            vocab_size=40,
        )

    narrow = instance(config(1, 1))
    plan = mupscale.plan(narrow, to=config(d_model, heads))
    assert plan.proved
    assert plan.growth["d_model"] == d_model
    report = mupscale.verify(narrow, mupscale.grow(narrow, plan, operator="duplicate"), plan, steps=3)
    assert report.equal, report


def test_numbers_that_a_config_works_out_follow_the_others():
    """Zamba 2 has twice the hidden size in its attention, and says so, but takes no other number for it."""
    small = explicit(tiny(CONFIG_MAPPING["zamba2"]()))
    assert (small.attention_hidden_size, small.attention_head_dim) == (2 * 128, 2 * 128 // 8)
    assert ("attention_hidden_size",) not in size_fields(small)
    wide = with_fields(small, {("hidden_size",): 256, ("mamba_ngroups",): 4})
    assert (wide.attention_hidden_size, wide.attention_head_dim, wide.mamba_headdim) == (512, 64, 32)


def test_sizes_that_are_rounded_grow_where_they_come_out_whole():
    """xLSTM rounds 2.667 times its hidden size up to a multiple of 64."""
    config = CONFIG_MAPPING["xlstm"]()
    plan = mupscale.plan(config, width=3)
    assert plan.proved
    assert plan.params["backbone.blocks.0.ffn.proj_up.weight"].wide_shape == (3 * 10944, 3 * 4096)
    with pytest.raises(GrowthError, match="in the wide model, but to"):
        mupscale.plan(CONFIG_MAPPING["xlstm"](hidden_size=160, embedding_dim=160), width=3)


@pytest.mark.slow
def test_widths_that_only_change_three_together_are_measured():
    """Qwen2-VL's tower is as wide as its text in the end, and turns heads by sections of a fixed head dim."""
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [16, 24, 24]}
    config = CONFIG_MAPPING["qwen2_vl"](
        text_config={"rope_parameters": rope}, architectures=["Qwen2VLForConditionalGeneration"]
    )
    plan = mupscale.plan(tiny(config), width=2)
    assert plan.proved
    text, tower = plan.config.text_config, plan.config.vision_config
    assert (text.hidden_size, text.num_attention_heads, tower.hidden_size) == (256, 16, 256)


def test_heads_are_copied_stage_by_stage():
    """A Swin has 3, 6, 12 and 24 heads of 32: as many rows as another number of heads would have."""
    plan = mupscale.plan(CONFIG_MAPPING["swin"](architectures=["SwinForImageClassification"]), width=2)
    sizes = plan.layout.sizes
    for stage, heads in enumerate((3, 6, 12, 24)):
        name = f"swin.encoder.layers.{stage}.blocks.0.attention.q_proj.weight"
        rows = [sizes[axis] for axis in plan.params[name].axes.dims[0].names]
        assert (rows, plan.params[name].wide_shape) == ([heads, 32], (64 * heads, 64 * heads))


def test_without_a_head_every_hidden_weight_gets_noise():
    """What is written to the residual stream is returned, but no readout: other weights read it."""
    plan = mupscale.plan(tiny(CONFIG_MAPPING["bert"](architectures=["BertModel"])), width=2)
    assert not any(p.readout for p in plan.params.values())
    assert plan.params["encoder.layer.0.output.dense.weight"].has_noise
    assert "encoder.layer.0.attention.output.dense.weight" in mupscale.hidden_matrices(plan)
    headed = mupscale.plan(
        tiny(CONFIG_MAPPING["bert"](architectures=["BertForTokenClassification"])), width=2
    )
    assert {name for name, p in headed.params.items() if p.readout} == {"classifier.weight"}


def test_a_folded_gain_that_is_stored_as_a_difference_does_not_decay():
    narrow = Gemma2ForCausalLM(tiny(Gemma2Config()))
    plan = mupscale.plan(narrow, width=2)
    wide = mupscale.grow(narrow, plan, operator="duplicate")
    with pytest.raises(mupscale.GrowthError, match=r"model.norm.weight: the model adds 1 to it .*decay="):
        mupscale.param_groups(wide, plan, torch.optim.AdamW, lr=1e-3, weight_decay=0.1)
    optimizer = torch.optim.AdamW(narrow.parameters(), lr=1e-3, weight_decay=0.1)
    with pytest.raises(mupscale.GrowthError, match="model.norm.weight: the model adds 1"):
        mupscale.carry_optimizer(optimizer, narrow, wide, plan)


def test_a_folded_gain_that_is_stored_as_a_difference_takes_no_optimizer_that_looks_at_it():
    """ASGD averages and decays what is stored, Adafactor's steps are relative to it."""
    narrow = Gemma2ForCausalLM(tiny(Gemma2Config()))
    plan = mupscale.plan(narrow, width=2)
    wide = mupscale.grow(narrow, plan, operator="duplicate")
    for optimizer in (torch.optim.ASGD, torch.optim.Adafactor):
        with pytest.raises(GrowthError, match=r"model.norm.weight: the model adds 1 .*another optimizer"):
            mupscale.param_groups(wide, plan, optimizer, lr=1e-3, weight_decay=0.0)


def test_a_checkpoint_whose_folded_gain_decays_is_refused(tmp_path):
    narrow = Gemma2ForCausalLM(tiny(Gemma2Config()))
    narrow.save_pretrained(tmp_path / "narrow")
    optimizer = torch.optim.AdamW(narrow.parameters(), lr=1e-3, weight_decay=0.1)
    narrow(input_ids=torch.arange(8)[None]).logits.square().mean().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "narrow" / "optimizer.pt")
    with pytest.raises(GrowthError, match=r"optimizer.pt: model.norm.weight: the model adds 1 .*--no-optim"):
        grow_checkpoint(tmp_path / "narrow", tmp_path / "wide", width=2, operator="duplicate")
    assert not (tmp_path / "wide").exists()


def test_a_table_that_is_computed_when_loaded_is_no_parameter_to_copy():
    """Marian's sinusoidal positions are parameters, but saved by nobody: a wide model computes its own."""
    config = tiny(MarianConfig())
    config.architectures = ["MarianMTModel"]
    with pytest.raises(
        GrowthError,
        match="'d_model' of marian cannot grow: .*embed_positions.weight is not learned but computed",
    ):
        mupscale.plan(config, width=2)


def test_a_tower_that_the_proof_does_not_reach_is_not_grown():
    """Of a model that takes its images and sounds otherwise than others, the text alone is run."""
    with pytest.raises(
        GrowthError, match="would grow, but a tiny phi4_multimodal on example inputs does not use"
    ):
        mupscale.plan(tiny(CONFIG_MAPPING["phi4_multimodal"]()), width=2)
