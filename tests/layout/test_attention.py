"""Attention as people write it: fused kernels, grouped queries, one key head, head dims that grow."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import mupscale
from lockstep import assert_grows
from mupscale import GrowthError

X = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
MASK = torch.randn(5, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


class Block(nn.Module):
    """One block of attention; ``grows`` says which of heads, kv (heads) and dim (of a head) follow the width."""

    def __init__(self, width, heads=4, kv=4, dim=4, grows="heads kv", attend=None, norm=False, **kernel):
        super().__init__()
        self.heads, self.kv, self.dim = (
            n * (width if name in grows.split() else 1)
            for name, n in {"heads": heads, "kv": kv, "dim": dim}.items()
        )
        model = 8 * width
        self.enter, self.norm = nn.Linear(6, model), nn.LayerNorm(model)
        self.q, self.k, self.v = (nn.Linear(model, n * self.dim) for n in (self.heads, self.kv, self.kv))
        self.o, self.leave = nn.Linear(self.heads * self.dim, model), nn.Linear(model, 3)
        self.qk_norm = nn.RMSNorm(self.dim) if norm else nn.Identity()
        self.attend, self.kernel = attend or F.scaled_dot_product_attention, kernel

    def forward(self, x):
        x = self.enter(x)
        y = self.norm(x)
        q, k, v = (f(y).unflatten(-1, (-1, self.dim)).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = self.attend(self.qk_norm(q), self.qk_norm(k), v, **self.kernel)
        return self.leave(x + self.o(y.transpose(1, 2).flatten(2)))


def by_its_size(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, scale=1 / q.shape[-1], is_causal=True)


def cosine(q, k, v):
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    return F.scaled_dot_product_attention(q, k, v * v.shape[-1] ** -0.5, scale=10.0)


def turned_in_part(q, k, v):
    """Three places of each head turned by position, an odd number, as its halves are put together anew."""
    turn = torch.arange(q.shape[-2], dtype=q.dtype)[:, None] * torch.tensor([1.0, 0.1, 0.3], dtype=q.dtype)

    def rotary(x):
        part, rest = x[..., :3], x[..., 3:]
        halves = torch.cat([-part[..., 1:], part[..., :1]], dim=-1)
        return torch.cat([part * turn.cos() + halves * turn.sin(), rest], dim=-1)

    return F.scaled_dot_product_attention(rotary(q), rotary(k), v)


def repeated(q, k, v):
    times = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v


def expanded(q, k, v):
    shape = (*k.shape[:2], q.shape[1] // k.shape[1], *k.shape[2:])
    k, v = (t[:, :, None].expand(shape).flatten(1, 2) for t in (k, v))
    return F.scaled_dot_product_attention(q, k, v)


BLOCKS = {
    "heads": {},
    "causal": {"is_causal": True},
    "mask": {"attn_mask": MASK},
    "grouped": {"kv": 2, "enable_gqa": True},
    "grouped, causal": {"kv": 2, "enable_gqa": True, "is_causal": True},
    "grouped, mask": {"kv": 2, "enable_gqa": True, "attn_mask": MASK},
    "grouped, more queries a key": {"kv": 2, "enable_gqa": True, "grows": "heads"},
    "one key head": {"kv": 1, "enable_gqa": True, "grows": "heads"},
    "one key head becomes several": {"kv": 1, "enable_gqa": True},
    "one key head becomes several, repeated": {"kv": 1, "attend": repeated},
    "one key head becomes several, expanded": {"kv": 1, "attend": expanded},
    "one head becomes several": {"heads": 1, "kv": 1},
    "head dim": {"grows": "dim"},
    "head dim and heads": {"grows": "heads kv dim"},
    "head dim, mask": {"grows": "dim", "attn_mask": MASK},
    "head dim, grouped": {"grows": "dim", "kv": 2, "enable_gqa": True, "is_causal": True},
    "head dim, one scale for all widths": {"grows": "dim", "scale": 0.3},
    "head dim, a scale by its size": {"grows": "dim", "attend": by_its_size},
    "head dim, normalized": {"grows": "dim", "norm": True},
    "head dim, cosine": {"grows": "dim", "attend": cosine},
    "heads, turned in part": {"attend": turned_in_part},
    "head dim of one": {"grows": "dim", "dim": 1},
}


@pytest.mark.parametrize("width", [2, 3])
@pytest.mark.parametrize("case", BLOCKS)
def test_attention_grows(case, width):
    assert_grows(lambda w: Block(w, **BLOCKS[case]), X, width)


class Biased(Block):
    """A bias for every head and pair of places, given to the kernel as its mask."""

    def __init__(self, width, slopes=False):
        super().__init__(width, kv=2)
        far = torch.arange(5.0)[:, None] - torch.arange(5.0)
        if slopes:
            self.register_buffer(
                "bias", torch.arange(1.0, self.heads + 1)[:, None, None] * far, persistent=False
            )
        else:
            self.bias = nn.Parameter(torch.randn(self.heads, 5, 5))
        self.kernel = {"enable_gqa": True}

    def forward(self, x):
        self.attend = lambda q, k, v, **kernel: F.scaled_dot_product_attention(
            q, k, v, attn_mask=self.bias.to(q.dtype), **kernel
        )
        return super().forward(x)


@pytest.mark.parametrize("width", [2, 3])
def test_a_bias_of_each_head_grows_with_the_heads(width):
    plan = assert_grows(Biased, X, width)
    assert str(plan["bias"].axes) == f"(w2x{width} 2) 5 5"


def test_slopes_of_each_head_are_no_copies():
    with pytest.raises(GrowthError, match="constants in the model differ along it"):
        mupscale.grow(
            Biased(1, slopes=True),
            mupscale.plan(lambda w: Biased(w, slopes=True), width=2, inputs=X),
            operator="duplicate",
        )


class Fused(nn.Module):
    """Query, key and value of one projection, as nanoGPT, timm and GPT-NeoX lay them out."""

    def __init__(self, width, split, heads=4, grows="dim", one=False, dim=None):
        super().__init__()
        model = 16 * width
        self.split, self.heads = split, heads * (width if grows == "heads" else 1)
        self.kv = (width if grows == "heads" else 1) if one else self.heads
        self.dim = dim or model // self.heads
        self.enter, self.norm = nn.Linear(6, model), nn.LayerNorm(model)
        self.qkv, self.o = (
            nn.Linear(model, (self.heads + 2 * self.kv) * self.dim),
            nn.Linear(self.heads * self.dim, model),
        )
        self.leave = nn.Linear(model, 3)

    def forward(self, x):
        x = self.enter(x)
        q, k, v = getattr(self, self.split)(self.qkv(self.norm(x)))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.leave(x + self.o(y.transpose(1, 2).flatten(2)))

    def segments(self, qkv):
        parts = qkv.split([n * self.dim for n in (self.heads, self.kv, self.kv)], dim=-1)
        return (part.unflatten(-1, (-1, self.dim)).transpose(1, 2) for part in parts)

    def numbered(self, qkv):
        return qkv.unflatten(-1, (3, self.heads, self.dim)).permute(2, 0, 3, 1, 4).unbind(0)

    def by_head(self, qkv):
        return qkv.unflatten(-1, (self.heads, -1)).transpose(1, 2).chunk(3, dim=-1)

    def cached(self, qkv):
        """Keys and values behind those of a cache, which is empty."""
        q, *parts = self.segments(qkv)
        return q, *(torch.cat([torch.tensor([], dtype=part.dtype), part], dim=-2) for part in parts)


@pytest.mark.parametrize("width", [2, 3])
@pytest.mark.parametrize("grows", ["heads", "dim"])
@pytest.mark.parametrize("split", ["segments", "numbered", "by_head", "cached"])
def test_fused_projections_grow(split, grows, width):
    """Where the head dim grows, one factor on all of q, k and v, and its inverse on what reads v."""
    plan = assert_grows(lambda w: Fused(w, split, grows=grows), X, width)
    folds = {name: p.fold for name, p in plan.params.items() if p.fold != 1}
    quarter = width**0.25
    expected = {"qkv.weight": 1 / quarter, "qkv.bias": 1 / quarter, "o.weight": quarter}
    assert folds == pytest.approx(expected if grows == "dim" else {})


@pytest.mark.parametrize("width", [2, 3])
def test_one_key_head_of_a_fused_projection_becomes_several(width):
    assert_grows(lambda w: Fused(w, "segments", grows="heads", one=True), X, width)


def test_a_projection_of_which_only_the_queries_grow_is_refused_by_name():
    """Their gradients are of another size than those of the keys, so that no one eps is right for both."""
    narrow, wide = (Fused(1, "segments", heads=heads, one=True, dim=4) for heads in (1, 2))
    with pytest.raises(
        GrowthError, match="qkv.weight: .*parts of a dim grow by 1, 2.*parameters of their own"
    ):
        mupscale.plan(narrow, to=wide, inputs=X)


class Torchs(nn.Module):
    """torch.nn's own, whose kernel differs by whether it returns the attention weights."""

    def __init__(self, width, heads, need_weights=False):
        super().__init__()
        self.enter, self.leave = nn.Linear(6, 8 * width), nn.Linear(8 * width, 3)
        self.attention = nn.MultiheadAttention(8 * width, heads, batch_first=True)
        self.need_weights = need_weights

    def forward(self, x):
        x = self.enter(x)
        return self.leave(x + self.attention(x, x, x, need_weights=self.need_weights)[0])


@pytest.mark.parametrize("width", [2, 3])
@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("heads", ["grow", "stay"])
def test_torchs_own_attention_grows(heads, need_weights, width):
    def make(w):
        return Torchs(w, 2 * w if heads == "grow" else 2, need_weights)

    assert_grows(make, X, width)


def test_a_scale_that_nothing_can_take_is_refused():
    """Queries and keys that are normalized without a gain, and then multiplied by a constant of their size."""

    def attend(q, k, v):
        q, k = (F.rms_norm(t, t.shape[-1:]) for t in (q, k))
        return F.scaled_dot_product_attention(q, k, v)

    with pytest.raises(GrowthError, match="not exact"):
        mupscale.plan(lambda w: Block(w, grows="dim", attend=attend), width=2, inputs=X)


class Pooled(nn.Module):
    """Attention of learned queries, as Perceiver, DETR and attention pooling have them."""

    def __init__(self, width):
        super().__init__()
        model, self.heads = 8 * width, 2 * width
        self.enter, self.leave = nn.Linear(6, model), nn.Linear(model, 2)
        self.queries = nn.Parameter(torch.randn(3, model))
        self.q, self.k, self.v = (nn.Linear(model, model) for _ in range(3))

    def forward(self, x):
        x = self.enter(x)
        queries = self.q(self.queries).expand(len(x), -1, -1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (queries, self.k(x), self.v(x)))
        return self.leave(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("width", [2, 3])
def test_of_a_learned_query_and_its_weight_one_gets_noise(width):
    """Terms that sum to zero over copies, in both, have a product that does not."""
    plan = assert_grows(Pooled, X, width)
    assert plan["q.weight"].has_noise
    assert plan.layout.nonlinear == {"queries"}
