"""What stands between the norms and the stream, in plain torch and at any width; and the norms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from random_modules.recipe import PLACES, Recipe


def make_block(kind: str, r: Recipe, width: int) -> nn.Module:
    """What stands between the norm and the stream."""
    d_model = r.d_model * width
    if kind == "mlp":
        return MLP(r, width)
    if kind == "attention":
        return Attention(r, width)
    if kind == "conv":
        groups = {"one": 1, "two": 2, "pairs": d_model // 2, "depthwise": d_model}[r.groups]
        return Transposed(nn.Conv1d(d_model, d_model, 3, padding=1, groups=groups, bias=r.bias))
    if kind == "places":
        return Transposed(nn.Linear(PLACES, PLACES, bias=r.bias))
    if kind == "excite":
        return Excite(d_model, r.bias)
    if kind == "experts":
        return Experts(d_model, r.d_ff * width)
    if kind in ("lstm", "gru"):
        recurrent = nn.LSTM if kind == "lstm" else nn.GRU
        return First(recurrent(d_model, d_model, batch_first=True, bias=r.bias))
    return nn.TransformerEncoderLayer(
        d_model,
        2 * width,
        r.d_ff * width,
        dropout=0.2 if r.dropout != "none" else 0.0,
        bias=r.bias,
        batch_first=True,
    )


class Excite(nn.Module):
    """Scales every channel by what the mean over places says."""

    def __init__(self, d_model: int, bias: bool) -> None:
        super().__init__()
        self.squeeze = nn.Linear(d_model, d_model // 2, bias=bias)
        self.excite = nn.Linear(d_model // 2, d_model, bias=bias)

    def forward(self, h: Tensor) -> Tensor:
        pooled = h.mean(dim=1, keepdim=True)
        return h * torch.sigmoid(self.excite(F.relu(self.squeeze(pooled))))


class Experts(nn.Module):
    """The two of three experts that a router takes for each place, their weights stacked."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.router = nn.Linear(d_model, 3, bias=False)
        self.up = nn.Parameter(torch.randn(3, d_model, d_ff) / d_model**0.5)
        self.down = nn.Parameter(torch.randn(3, d_ff, d_model) / d_ff**0.5)

    def forward(self, h: Tensor) -> Tensor:
        weights, taken = self.router(h).softmax(dim=-1).topk(2, dim=-1)
        share = torch.zeros(*h.shape[:2], 3, dtype=h.dtype).scatter(-1, taken, weights)
        hidden = F.silu(torch.einsum("btd,edf->btef", h, self.up))
        return torch.einsum("btef,efd,bte->btd", hidden, self.down, share)


class MLP(nn.Module):
    """Up, a nonlinearity, down, in the ways that people write it."""

    def __init__(self, r: Recipe, width: int) -> None:
        super().__init__()
        self.recipe = r
        d_model, d_ff = r.d_model * width, r.d_ff * width
        self.act = getattr(F, r.activation)
        if r.mlp in ("list", "dict"):
            up, down = (
                nn.Parameter(torch.randn(*s) / s[0] ** 0.5) for s in ((d_model, d_ff), (d_ff, d_model))
            )
            self.register_parameter("w_up", up)
            self.register_parameter("w_down", down)
            # Kept once more where no module looks, and used from there.
            self.kept: Any = [up, down] if r.mlp == "list" else {"up": up, "down": down}
            return
        fused = r.mlp.startswith("fused")
        self.up = nn.Linear(d_model, (1 + fused) * d_ff, bias=r.bias)
        if r.mlp == "gated":
            self.gate = nn.Linear(d_model, d_ff, bias=r.bias)
        self.down = nn.Linear(d_ff, d_model, bias=r.bias)

    def forward(self, h: Tensor) -> Tensor:
        if self.recipe.mlp in ("list", "dict"):
            up, down = self.kept.values() if isinstance(self.kept, dict) else self.kept
            return self.act(h @ up) @ down
        h_up = self.up(h)
        if self.recipe.mlp == "gated":
            return self.down(self.act(self.gate(h)) * h_up)
        if self.recipe.mlp == "fused chunk":
            gate, h_up = h_up.chunk(2, dim=-1)
            return self.down(self.act(gate) * h_up)
        if self.recipe.mlp == "fused strided":
            return self.down(self.act(h_up[..., ::2]) * h_up[..., 1::2])
        return self.down(self.act(h_up))


class Attention(nn.Module):
    """Attention: fused or separate projections, grouped queries by every spelling."""

    def __init__(self, r: Recipe, width: int) -> None:
        super().__init__()
        self.recipe, d_model = r, r.d_model * width
        self.heads, self.kv_heads = r.heads
        self.head_dim = r.head_dim * (width if r.grows == "head_dim" else 1)
        if r.grows != "head_dim":
            self.heads *= width
        if r.grows == "heads":
            self.kv_heads *= width
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        self.sizes = [q, kv, kv]
        # Equal thirds can be chunked and interleaved; grouped queries cannot.
        grouped = r.heads[0] != r.heads[1] or r.grows == "queries"
        self.qkv = "split" if grouped and r.qkv != "separate" else r.qkv
        if self.qkv == "separate":
            self.q, self.k, self.v = (nn.Linear(d_model, n, bias=r.bias) for n in self.sizes)
        else:
            self.c_attn = nn.Linear(d_model, sum(self.sizes), bias=r.bias)
        self.out = nn.Linear(q, d_model, bias=r.bias)
        if r.query_norm:
            self.q_norm = nn.RMSNorm(self.head_dim)
        self.dropout = 0.2 if r.dropout == "functional" else 0.0
        self.scale = 1.0 if r.scale == "unscaled" else self.head_dim**-0.5
        if r.scale == "buffer":
            del self.scale
            scale = torch.tensor(self.head_dim**-0.5, dtype=torch.float64)  # no multiple of it is rounded
            self.register_buffer("scale", scale, persistent=False)
        if r.mask == "buffer":
            future = torch.ones(PLACES, PLACES, dtype=torch.bool).triu(1)
            self.register_buffer(
                "mask", torch.zeros(PLACES, PLACES).masked_fill(future, -1e9), persistent=False
            )
        if r.rotary:
            half = self.head_dim // 2
            angles = torch.arange(PLACES)[:, None] / 10 ** (torch.arange(half) / half)
            self.register_buffer("cos", angles.cos().repeat(1, 2), persistent=False)
            self.register_buffer("sin", angles.sin().repeat(1, 2), persistent=False)

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = self.project(h)
        if self.recipe.query_norm:
            q = self.q_norm(q)
        if self.recipe.rotary:
            q, k = self.rotated(q), self.rotated(k)
        attend = self.by_sdpa if self.recipe.scores == "sdpa" else self.by_hand
        out = attend(q, k, v)
        return self.out(out.transpose(1, 2).reshape(*h.shape[:2], self.sizes[0]))

    def project(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (batch, heads, places, head_dim)."""
        if self.qkv == "separate":
            parts = self.q(h), self.k(h), self.v(h)
        elif self.qkv == "interleaved":  # head by head
            q, k, v = self.c_attn(h).unflatten(-1, (self.heads, 3, self.head_dim)).unbind(-2)
            return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        elif self.qkv == "chunk":
            parts = self.c_attn(h).chunk(3, dim=-1)
        else:
            parts = self.c_attn(h).split(self.sizes, dim=-1)
        q, k, v = (part.view(*h.shape[:2], -1, self.head_dim).transpose(1, 2) for part in parts)
        return q, k, v

    def rotated(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=-1)
        return x * self.cos + torch.cat([-right, left], dim=-1) * self.sin

    def repeated(self, x: Tensor) -> Tensor:
        """Keys or values for every query."""
        times = self.heads // self.kv_heads
        if self.recipe.repeat == "expand":
            wide = x[:, :, None].expand(-1, -1, times, -1, -1)
            return wide.reshape(x.shape[0], self.heads, *x.shape[2:])
        if self.recipe.repeat == "tile":
            return x.repeat(1, times, 1, 1)
        return x.repeat_interleave(times, dim=1)

    def by_sdpa(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        grouped = self.recipe.repeat == "enable_gqa"
        if not grouped:
            k, v = self.repeated(k), self.repeated(v)
        mask = self.mask_for(q) if self.recipe.mask in ("buffer", "made") else None
        return F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=self.recipe.mask == "causal",
            scale=None if self.recipe.scale == "default" else float(self.scale),
            enable_gqa=grouped,
        )

    def by_hand(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.recipe.scores == "grouped":  # queries by the keys that they share
            q = q.unflatten(1, (self.kv_heads, -1))
            scores = torch.einsum("bkgqd,bksd->bkgqs", q, k) * self.scale
            weights = self.weights(scores)
            return torch.einsum("bkgqs,bksd->bkgqd", weights, v).flatten(1, 2)
        k, v = self.repeated(k), self.repeated(v)
        if self.recipe.scores == "einsum":
            scores = torch.einsum("bhqd,bhkd->bhqk", q * self.scale, k)
            return torch.einsum("bhqk,bhkd->bhqd", self.weights(scores), v)
        if self.recipe.scale == "default":
            return self.weights(q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5) @ v
        return self.weights(q @ k.transpose(-2, -1) * self.scale) @ v

    def weights(self, scores: Tensor) -> Tensor:
        if self.recipe.mask != "none":
            scores = scores + self.mask_for(scores)
        return F.dropout(scores.softmax(dim=-1), p=self.dropout, training=self.training)

    def mask_for(self, like: Tensor) -> Tensor:
        if self.recipe.mask == "buffer":
            return self.mask
        return like.new_full((PLACES, PLACES), -1e9).triu(1)


def make_norm(kind: str, d_model: int) -> nn.Module:
    """A norm over d_model, of torch or written by hand."""
    plain: dict[str, Callable[[], nn.Module]] = {
        "none": nn.Identity,
        "layer": lambda: nn.LayerNorm(d_model),
        "rms": lambda: nn.RMSNorm(d_model),
        "group": lambda: Transposed(nn.GroupNorm(2, d_model)),
        "batch": lambda: Transposed(nn.BatchNorm1d(d_model)),
    }
    return plain[kind]() if kind in plain else OwnNorm(kind, d_model)


class Transposed(nn.Module):
    """A module that wants channels first."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, h: Tensor) -> Tensor:
        return self.inner(h.transpose(1, 2)).transpose(1, 2)


class First(nn.Module):
    """The first of what a module returns."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, h: Tensor) -> Tensor:
        return self.inner(h)[0]


class OwnNorm(nn.Module):
    """Norms as they are written by hand."""

    def __init__(self, kind: str, d_model: int) -> None:
        super().__init__()
        self.kind = kind
        self.gain = nn.Parameter(torch.zeros(d_model) if kind == "one plus" else torch.ones(d_model))

    def forward(self, h: Tensor) -> Tensor:
        if self.kind == "length":
            return F.normalize(h, dim=-1) * self.gain
        if self.kind == "own layer":
            h = h - h.mean(dim=-1, keepdim=True)
            return h / (h.var(dim=-1, keepdim=True, unbiased=False) + 1e-5).sqrt() * self.gain
        normed = h * torch.rsqrt(h.pow(2).mean(dim=-1, keepdim=True) + 1e-6)
        return normed * (1 + self.gain) if self.kind == "one plus" else normed * self.gain
