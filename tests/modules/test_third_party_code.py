"""Modules as people write them: what their code relies on is still so after growing, or it is refused."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedConfig, PreTrainedModel

import mupscale
from mupscale import GrowthError
from mupscale.models.precision import Float64

TOKENS = torch.randint(30, (3, 7), generator=torch.Generator().manual_seed(1))
POINTS = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))


def assert_grows(make, inputs, *, width=2, steps=5, plan=None, narrow=None, prepare=lambda model: model):
    """plan → grow → carry_optimizer → train: the wide model does what the narrow one does, in float64."""
    narrow = prepare(narrow if narrow is not None else make(1)).double()
    plan = plan or mupscale.plan(make, width=width, inputs=inputs)
    assert plan.proved
    optimizer = torch.optim.AdamW(narrow.parameters(), lr=1e-2, weight_decay=0.1)
    wide = mupscale.grow(narrow, plan, noise=None, operator="duplicate")
    wide_optimizer = mupscale.carry_optimizer(optimizer, narrow, wide, plan)
    assert mupscale.verify(narrow, wide, plan, inputs, optimizer=wide_optimizer).equal
    assert mupscale.verify(narrow, mupscale.grow(narrow, plan, operator="duplicate"), plan, inputs).equal
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    for step in range(steps):
        losses = []
        for model, optim in ((narrow, optimizer), (wide, wide_optimizer)):
            optim.zero_grad()
            output = model(inputs)
            loss = (output - torch.linspace(-1, 1, output.shape[-1], dtype=output.dtype)).square().mean()
            loss.backward()
            optim.step()
            losses.append(loss.item())
        assert abs(losses[0] - losses[1]) < 1e-10, f"step {step}: {losses}"
    return narrow, wide, plan


class Attention(nn.Module):
    """Causal self-attention written out, after embeddings that may be read out again."""

    def __init__(self, width: int, *, tied: bool = False, scale: float | None = None, p: float = 0.0) -> None:
        super().__init__()
        d = 16 * width
        self.width, self.scale, self.p = width, scale, p
        self.embedding, self.norm = nn.Embedding(30, d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.head = nn.Linear(d, 30, bias=False)
        if tied:
            self.head.weight = self.embedding.weight
        self.register_buffer("mask", torch.ones(16, 16).tril() == 0, persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        batch, length = tokens.shape
        x = self.embedding(tokens)
        q, k, v = (
            t.view(batch, length, 2, -1).transpose(1, 2) for t in self.qkv(self.norm(x)).chunk(3, dim=-1)
        )
        scores = q @ k.transpose(-1, -2) * (self.scale or q.shape[-1] ** -0.5)
        weights = scores.masked_fill(self.mask[:length, :length], -1e9).softmax(dim=-1)
        mixed = F.dropout(weights, self.p, self.training) @ v
        x = x + F.dropout(self.out(mixed.transpose(1, 2).flatten(2)), self.p, self.training)
        return self.head(self.norm(x))


class Heads(Attention):
    """Grows in heads; the one above grows in head_dim."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        batch, length = tokens.shape
        x = self.embedding(tokens)
        q, k, v = (
            t.view(batch, length, 2 * self.width, 8).transpose(1, 2)
            for t in self.qkv(self.norm(x)).chunk(3, dim=-1)
        )
        scores = (q @ k.transpose(-1, -2) * 8**-0.5).masked_fill(self.mask[:length, :length], -1e9)
        mixed = F.dropout(scores.softmax(dim=-1), self.p, self.training) @ v
        x = x + F.dropout(self.out(mixed.transpose(1, 2).flatten(2)), self.p, self.training)
        return self.head(self.norm(x))


def test_a_tie_by_attribute_stays_and_trains():
    _, wide, _ = assert_grows(lambda width: Heads(width, tied=True), TOKENS)
    assert wide.head.weight is wide.embedding.weight


def test_a_tie_made_after_construction_is_made_in_the_wide_model_too():
    narrow = Heads(1)
    narrow.head.weight = narrow.embedding.weight
    plan = mupscale.plan(narrow, to=Heads(2), inputs=TOKENS)
    _, wide, _ = assert_grows(Heads, TOKENS, plan=plan, narrow=narrow)
    assert wide.head.weight is wide.embedding.weight


class Listed(nn.Module):
    """Keeps its parameters a second time, in a list and a dict, and reads them there."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8 * width), nn.Linear(8 * width, 3)
        self.weights, self.biases = [self.first.weight], {"first": self.first.bias}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(F.gelu(F.linear(x, self.weights[0], self.biases["first"])))


def test_lists_and_dicts_of_parameters_hold_the_grown_ones():
    _, wide, _ = assert_grows(Listed, POINTS)
    assert wide.weights[0] is wide.first.weight
    assert wide.biases["first"] is wide.first.bias


class Tables(nn.Module):
    """Holds what no checkpoint does: a mask, a table drawn at random, a count, a plain tensor, a constant of its width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8 * width), nn.Linear(8 * width, 3)
        self.register_buffer("drawn", torch.randn(5), persistent=False)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long), persistent=False)
        self.register_buffer("root", torch.tensor(8.0 * width), persistent=False)
        self.shift = torch.randn(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x + self.drawn) / self.root
        return self.last(torch.tanh(hidden)) + self.shift.to(x.dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_what_no_checkpoint_holds_is_taken_over(dtype):
    narrow = Tables(1)
    narrow.calls += 3
    narrow = narrow.to(dtype)
    plan = mupscale.plan(Tables, width=2, inputs=POINTS)
    wide = mupscale.grow(narrow, plan, operator="duplicate")
    assert wide(POINTS.to(dtype)).dtype == dtype
    assert {b.dtype for _, b in wide.named_buffers()} == {dtype, torch.long}
    assert torch.equal(wide.drawn, narrow.drawn)
    assert torch.equal(wide.shift, narrow.shift)
    assert wide.calls == 3
    assert wide.root == 16
    if dtype == torch.float64:
        assert_grows(Tables, POINTS)


class Grown(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8 * width), nn.Linear(8 * width, 3)
        self.register_buffer("scale", torch.ones(8 * width), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x) * self.scale)


def test_state_in_a_buffer_that_is_not_persistent_and_grows_is_refused():
    narrow, plan = Grown(1), mupscale.plan(Grown, width=2, inputs=POINTS)
    narrow.scale += torch.rand(8)
    with pytest.raises(GrowthError, match=r"scale: .*register it as a persistent buffer"):
        mupscale.grow(narrow, plan, operator="duplicate")


class Kept(nn.Module):
    """Keeps a table from the first call on, which no width changes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8 * width), nn.Linear(8 * width, 3)
        self.places = torch.zeros(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(self.places) != len(x):
            self.places = torch.linspace(-1, 1, len(x), dtype=x.dtype)
        return self.last(self.first(x) * self.places[:, None])


def test_what_a_call_has_made_is_made_again():
    narrow = Kept(1).double()
    narrow(POINTS.double())
    assert_grows(Kept, POINTS, narrow=narrow)


ALIKE = {"zeros": torch.zeros(3, 7, dtype=torch.long), "ones": torch.ones(3, 7, dtype=torch.long)}


@pytest.mark.parametrize("name", ALIKE)
def test_inputs_that_are_all_alike_prove_no_wrong_scale_of_attention(name):
    """A fixed 0.35 where 1/√head_dim was meant goes unseen where all scores are equal: it must be made up for."""
    fixed = lambda width: Attention(width, scale=0.35)  # noqa: E731
    narrow, _, plan = assert_grows(fixed, ALIKE[name])
    assert mupscale.verify(narrow, mupscale.grow(narrow, plan, operator="duplicate"), plan, TOKENS).equal


def test_a_single_position_is_said_to_prove_nothing():
    plan = mupscale.plan(Heads, width=2, inputs=TOKENS[:, :1])
    assert not plan.proved
    assert "several positions" in str(plan)


class Weighed(nn.Module):
    """Attention whose scores have a scale that nothing can take: only where they count is it seen."""

    def __init__(self, width: int, weigh: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.size, self.weigh = 8 * width, weigh
        self.q, self.k, self.v = (nn.Linear(5, self.size) for _ in range(3))
        self.last = nn.Linear(self.size, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k = (F.layer_norm(f(x), (self.size,)) for f in (self.q, self.k))
        return self.last(self.weigh(q @ k.mT / 8**0.5) @ self.v(x))


def every_eighth(scores: torch.Tensor) -> torch.Tensor:
    at = torch.arange(scores.shape[-1])
    return scores.masked_fill((at[:, None] - at) % 8 != 0, -torch.inf)


def attended(scores: torch.Tensor) -> torch.Tensor:
    """By torch's kernel, with a mask: softmax(scores) @ 1."""
    one = torch.eye(scores.shape[-1], dtype=scores.dtype).expand_as(scores)
    seen = every_eighth(scores) > -torch.inf
    return F.scaled_dot_product_attention(scores, one, one, attn_mask=seen, scale=1.0)


WEIGHS = {
    "written out": (1, lambda s: s.exp() / s.exp().sum(-1, keepdim=True)),
    "less the largest": (
        1,
        lambda s: (s - s.amax(-1, True)).exp() / (s - s.amax(-1, True)).exp().sum(-1, keepdim=True),
    ),
    "by its logarithm": (1, lambda s: s.log_softmax(-1).exp()),
    "by logsumexp": (1, lambda s: (s - s.logsumexp(-1, keepdim=True)).exp()),
    "dilated": (8, lambda s: every_eighth(s).softmax(-1)),
    "fused": (8, attended),
}


@pytest.mark.parametrize("how", WEIGHS)
def test_attention_to_one_position_is_said_to_prove_nothing(how):
    (longest, weigh), points = WEIGHS[how], torch.randn(3, 16, 5)
    make = lambda width: Weighed(width, weigh)  # noqa: E731
    plan = mupscale.plan(make, width=2, inputs=points[:, :longest])
    assert not plan.proved
    assert "several positions" in str(plan)
    with pytest.raises(GrowthError, match="not exact"):
        mupscale.plan(make, width=2, inputs=points)


def test_torchs_own_layer_on_one_position_is_said_to_prove_nothing():
    def make(width):
        layer = nn.TransformerEncoderLayer(8 * width, 2 * width, 8 * width, batch_first=True)
        return nn.Sequential(nn.Linear(5, 8 * width), layer, nn.Linear(8 * width, 3))

    points = torch.randn(3, 4, 5)
    assert not mupscale.plan(make, width=2, inputs=points[:, :1]).proved
    assert mupscale.plan(make, width=2, inputs=points).proved


class OnlyOnes(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8 * width), nn.Linear(8 * width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not (x == 1).all():
            raise ValueError("ones, please")
        return self.last(self.first(x).tanh())


def test_inputs_that_can_only_be_alike_are_said_to_prove_nothing():
    plan = mupscale.plan(OnlyOnes, width=2, inputs=torch.ones(4, 5))
    assert not plan.proved
    assert "not proved: the inputs are all alike" in str(plan)


def frozen(model: nn.Module, *but: str) -> nn.Module:
    for name, param in model.named_parameters():
        param.requires_grad_(name.startswith(but))
    return model


class WrongOnlyInTraining(nn.Module):
    """Scales a gradient by the width: nothing shows it but training the parameter behind it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8 * width), nn.Linear(8 * width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x)
        hidden = hidden * len(self.last.weight[0]) - (hidden * (len(self.last.weight[0]) - 1)).detach()
        return self.last(hidden.tanh())


def test_a_frozen_part_is_proved_as_it_trains_later():
    narrow, wide = (frozen(WrongOnlyInTraining(width), "last") for width in (1, 2))
    with pytest.raises(GrowthError, match="steps of SGD the losses differ"):
        mupscale.plan(narrow, to=wide, inputs=POINTS)


def test_all_frozen_is_planned_and_stays_frozen():
    narrow, wide = frozen(Heads(1)), frozen(Heads(2))
    plan = mupscale.plan(narrow, to=wide, inputs=TOKENS)
    assert plan.proved
    assert not any(p.requires_grad for p in mupscale.grow(narrow, plan, operator="duplicate").parameters())


def test_parts_in_evaluation_mode_stay_there():
    narrow = Heads(1).train()
    narrow.norm.eval()
    wide = mupscale.grow(narrow, mupscale.plan(Heads, width=2, inputs=TOKENS), operator="duplicate")
    assert wide.training
    assert not wide.norm.training


@pytest.mark.parametrize("tied", [False, True])
def test_dropout_by_function_is_not_taken_for_an_error(tied):
    make = lambda width: Heads(width, tied=tied, p=0.1)  # noqa: E731
    assert_grows(make, TOKENS, prepare=lambda model: model.eval())


class Noisy(nn.Module):
    """Adds noise to hidden units in training: of its own shape at every width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8 * width), nn.Linear(8 * width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x)
        if self.training:
            keep = torch.rand_like(hidden) > 0.1
            hidden = hidden * keep + 0.01 * torch.randn_like(hidden)
        return self.last(hidden.tanh())


def test_noise_of_hidden_units_stands_still_in_the_proof():
    assert_grows(Noisy, POINTS, prepare=lambda model: model.eval())


class Chaotic(nn.Module):
    """A batch norm over two values: ±1 whatever goes in, and a gradient that is all rounding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(5, 8 * width, bias=False), nn.BatchNorm1d(8 * width)
        self.last = nn.Linear(8 * width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.first(x)).relu())


def test_rounding_blown_up_by_a_batch_norm_is_told_from_an_error():
    assert mupscale.plan(Chaotic, width=3, inputs=POINTS[:3]).proved


class Closure(nn.Module):
    """Calls itself through a lambda, which a deep copy leaves pointing at the original."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8 * width), nn.Linear(8 * width, 3)
        self.run = lambda x: self.last(self.first(x).tanh())
        self.runs = [self.run]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.runs[0](x)


@pytest.mark.parametrize("by", ["make", "instance"])
def test_lambdas_over_self_go_with_the_copy(by):
    plan = None if by == "make" else mupscale.plan(Closure(1), to=Closure(2), inputs=POINTS)
    assert_grows(Closure, POINTS, plan=plan)


def weight_normed(width: int) -> nn.Module:
    with pytest.warns(FutureWarning):
        first = nn.utils.weight_norm(nn.Linear(5, 8 * width))
    return nn.Sequential(first, nn.Tanh(), nn.Linear(8 * width, 3))


def test_what_deepcopy_cannot_copy_grows():
    assert_grows(weight_normed, POINTS)


def marked(width: int) -> nn.Module:
    model = nn.Sequential(nn.Linear(5, 8 * width), nn.Tanh(), nn.Linear(8 * width, 3))
    model[0].weight.fan = 8 * width
    return model


def test_marks_on_parameters_are_kept():
    narrow = marked(1)
    narrow[2].bias.no_decay = True
    wide = mupscale.grow(narrow, mupscale.plan(marked, width=2, inputs=POINTS), operator="duplicate")
    assert wide[0].weight.fan == 16, "the constructor knows better"
    assert wide[2].bias.no_decay


# --- Crashes


def tiny_llama(width: int) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=30,
            hidden_size=16 * width,
            intermediate_size=24 * width,
            num_attention_heads=2 * width,
            num_key_value_heads=2 * width,
            head_dim=8,
            num_hidden_layers=2,
            tie_word_embeddings=True,
            attn_implementation="eager",
        )
    )


class Logits(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.lm, self.config = tiny_llama(width), tiny_llama(width).config

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.lm(tokens, use_cache=False).logits


def test_a_function_may_make_transformers_models():
    narrow = tiny_llama(1)
    plan = mupscale.plan(tiny_llama, width=2, inputs={"input_ids": TOKENS, "use_cache": False})
    wide = mupscale.grow(narrow, plan, operator="duplicate")
    assert mupscale.verify(narrow, wide, plan, {"input_ids": TOKENS, "use_cache": False}).equal
    assert wide.lm_head.weight is wide.model.embed_tokens.weight


def test_a_module_that_keeps_a_config_is_no_transformers_model():
    plan = mupscale.plan(Logits, width=2, inputs=TOKENS)
    assert plan.proved
    assert plan.config is None


class Doubled(LlamaForCausalLM):
    """Somebody's own model on a stock config, under the stock names: what holds for Llama says nothing of it."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * self.config.hidden_size
        return output


def test_a_class_of_ones_own_on_a_stock_config_is_proved_by_itself():
    narrow = Doubled(tiny_llama(1).config).double()
    plan = mupscale.plan(narrow, width=2)
    wide = mupscale.grow(narrow, plan, operator="duplicate")
    assert type(wide) is Doubled
    stock = mupscale.plan(tiny_llama(1).config, width=2)
    name = "model.norm.weight"
    assert plan[name].weight_scale == stock[name].weight_scale / 2
    assert mupscale.verify(narrow, wide, plan, steps=2).equal


class OwnConfig(PreTrainedConfig):
    model_type = "names of my own"

    def __init__(self, breadth: int = 16, tokens: int = 30, **rest) -> None:
        self.breadth, self.tokens = breadth, tokens
        super().__init__(**rest)


class OwnModel(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config: OwnConfig) -> None:
        super().__init__(config)
        self.embedding, self.inner = (
            nn.Embedding(config.tokens, config.breadth),
            nn.Linear(config.breadth, 24),
        )
        self.head = nn.Linear(24, config.tokens)
        self.post_init()

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.inner(self.embedding(input_ids)).tanh())


def test_a_class_and_config_of_ones_own_are_planned_by_running_them():
    narrow = OwnModel(OwnConfig()).double()
    with pytest.raises(
        GrowthError, match=r"vocab_size: not in its config; expected it.*to=wide_config, inputs="
    ):
        mupscale.plan(narrow, width=2)
    plan = mupscale.plan(narrow, to=OwnConfig(breadth=48), inputs=torch.zeros_like(TOKENS))
    plan = mupscale.Plan.from_json(plan.to_json())
    assert plan.proved
    wide = mupscale.grow(narrow, plan, operator="duplicate")
    assert (type(wide), wide.config.breadth) == (OwnModel, 48)
    assert mupscale.verify(narrow, wide, plan, TOKENS, steps=2).equal


def test_a_model_on_meta_has_nothing_to_grow():
    plan = mupscale.plan(Heads, width=2, inputs=TOKENS)
    with pytest.raises(GrowthError, match="on the meta device"):
        mupscale.grow(Heads(1).to("meta"), plan, operator="duplicate")


def test_a_compiled_model_is_unwrapped_and_wrapped_again():
    narrow = torch.compile(tiny_llama(1), backend="eager")
    plan = mupscale.plan(narrow, width=2)
    wide = mupscale.grow(narrow, plan, operator="duplicate")
    assert isinstance(wide, torch._dynamo.OptimizedModule)
    assert mupscale.verify(narrow, wide, plan).equal


def test_verify_says_what_does_not_run():
    narrow, plan = Heads(1), mupscale.plan(Heads, width=2, inputs=TOKENS)
    wide = mupscale.grow(narrow, plan, operator="duplicate")
    with pytest.raises(GrowthError, match="narrow model, Heads, does not run on these inputs"):
        mupscale.verify(narrow, wide, plan, POINTS)


class Nothing(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(5, 8 * width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.first(x) > 0).long().sum(dim=-1)


def test_a_module_that_returns_no_numbers_proves_nothing():
    with pytest.raises(GrowthError, match="returns no floating-point tensor"):
        mupscale.plan(Nothing, width=2, inputs=POINTS)


def test_a_tie_that_was_lost_is_seen():
    narrow, plan = Heads(1, tied=True), mupscale.plan(lambda w: Heads(w, tied=True), width=2, inputs=TOKENS)
    optimizer, wide = (
        torch.optim.AdamW(narrow.parameters()),
        mupscale.grow(narrow, plan, operator="duplicate"),
    )
    wide.head.weight = nn.Parameter(wide.head.weight.detach().clone())
    report = mupscale.verify(narrow, wide, plan, TOKENS)
    assert not report.equal
    assert "head" in str(report)
    with pytest.raises(GrowthError, match="tie them again"):
        mupscale.carry_optimizer(optimizer, narrow, wide, plan)


# --- What is around the call


SURROUNDINGS = {
    "meta": lambda: torch.device("meta"),
    "inference": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "fake": lambda: torch._subclasses.FakeTensorMode(),
    "functions": Float64,
}


@pytest.mark.parametrize("name", [*SURROUNDINGS, "float64", "bfloat16"])
@pytest.mark.parametrize("kind", ["module", "transformers"])
def test_plans_depend_on_nothing_around_the_call(name, kind, monkeypatch, tmp_path):
    config = tiny_llama(1).config
    find = {
        "module": lambda: mupscale.plan(lambda w: Heads(w, tied=True), width=2, inputs=TOKENS),
        "transformers": lambda: mupscale.plan(config, width=2),
    }[kind]
    expected = find().to_json()
    monkeypatch.setenv("MUPSCALE_CACHE", str(tmp_path))
    monkeypatch.setattr("mupscale.layout.known._families", {})
    before = torch.get_rng_state()
    if name in SURROUNDINGS:
        with SURROUNDINGS[name]():
            found = find()
    else:
        torch.set_default_dtype(getattr(torch, name))
        try:
            found = find()
        finally:
            torch.set_default_dtype(torch.float32)
    assert found.to_json() == expected
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["meta", "inference", "no_grad", "autocast", "functions"])
def test_growing_depends_on_nothing_around_the_call(name):
    narrow, plan = Heads(1, tied=True), mupscale.plan(lambda w: Heads(w, tied=True), width=2, inputs=TOKENS)
    expected = mupscale.grow(narrow, plan, operator="duplicate")
    with SURROUNDINGS[name]():
        wide = mupscale.grow(copy.deepcopy(narrow), plan, operator="duplicate")
        assert mupscale.verify(narrow, wide, plan, TOKENS, steps=1).equal
    for (key, a), (_, b) in zip(expected.named_parameters(), wide.named_parameters(), strict=True):
        assert torch.equal(a, b), key
