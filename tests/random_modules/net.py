"""A stem, blocks and a head, as a recipe says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from random_modules.blocks import make_block, make_norm
from random_modules.recipe import BATCH, CLASSES, FEATURES, PLACES, VOCAB, Recipe


def make(recipe: Recipe) -> Callable[[int], nn.Module]:
    """The function that builds the module at a width."""

    def build(width: int) -> nn.Module:
        model = Net(recipe, width)
        freeze_(model, recipe.frozen)
        return model.double() if recipe.double == "before" else model

    return build


def inputs_of(recipe: Recipe, seed: int = 0) -> Tensor:
    """A batch to call it with."""
    generator = torch.Generator().manual_seed(seed)
    if recipe.inputs == "tokens":
        return torch.randint(VOCAB, (BATCH, PLACES), generator=generator)
    shape = (BATCH, PLACES, FEATURES) if recipe.inputs == "floats" else (BATCH, 3, 4, 6)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def freeze_(model: nn.Module, what: str) -> None:
    """Take some parameters out of training."""
    frozen = {
        "none": lambda name, p: False,
        "stem": lambda name, p: name.startswith("stem"),
        "first block": lambda name, p: name.startswith("blocks.0"),
        "vectors": lambda name, p: p.ndim < 2,
        "all but the head": lambda name, p: not name.startswith("head"),
    }[what]
    for name, param in model.named_parameters():
        param.requires_grad_(not frozen(name, param))


class Net(nn.Module):
    """A stem, blocks, a head."""

    def __init__(self, r: Recipe, width: int) -> None:
        super().__init__()
        self.recipe = r
        d_model = r.d_model * width
        self.stem = Stem(r, d_model)
        self.blocks = nn.ModuleList(Join(kind, r, width) for kind in r.blocks)
        if r.repeated == "first block again":
            self.blocks.append(self.blocks[0])
        if r.repeated == "tied by attribute" and r.blocks[0] == r.blocks[-1]:
            tie_(self.blocks[0].inner, self.blocks[-1].inner)
        self.norm = make_norm(r.norm, d_model) if r.last_norm else nn.Identity()
        self.head = Head(r, d_model)
        self.head.tie(self.stem)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))


def tie_(first: nn.Module, last: nn.Module) -> None:
    """Make every parameter of ``last`` one of ``first``'s, by attribute."""
    for name, param in first.named_parameters():
        owner, _, leaf = name.rpartition(".")
        setattr(last.get_submodule(owner), leaf, param)
    if hasattr(first, "kept"):
        last.kept = first.kept


class Stem(nn.Module):
    """Tokens, floats or images to a sequence of d_model numbers, with positions."""

    def __init__(self, r: Recipe, d_model: int) -> None:
        super().__init__()
        self.recipe, self.d_model = r, d_model
        if r.inputs == "tokens":
            self.enter: nn.Module = nn.Embedding(VOCAB, d_model)
        elif r.inputs == "floats":
            self.enter = nn.Linear(FEATURES, d_model, bias=r.bias)
        else:
            self.enter = nn.Conv2d(3, d_model, 2, stride=2, bias=r.bias)
        if r.positions == "learned":
            self.places = nn.Parameter(torch.randn(PLACES, d_model) / 2)
        elif r.positions in ("kept table", "unkept table"):
            table = torch.randn(PLACES, d_model) / 2
            self.register_buffer("places", table, persistent=r.positions == "kept table")
        elif r.positions == "one column":
            self.register_buffer("places", torch.linspace(-1, 1, PLACES)[:, None], persistent=False)
        elif r.positions == "sinusoids":
            angles = torch.arange(PLACES)[:, None] / 100 ** (torch.arange(d_model) / d_model)
            self.register_buffer("places", angles.sin(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        if self.recipe.inputs == "images":
            h = h.flatten(2).transpose(1, 2)
        if self.recipe.embedding_scale == "sqrt":
            h = h * self.d_model**0.5
        return h + self.places if self.recipe.positions != "none" else h


class Join(nn.Module):
    """A block, its norm, and how it is joined to the stream."""

    def __init__(self, kind: str, r: Recipe, width: int) -> None:
        super().__init__()
        self.recipe, d_model = r, r.d_model * width
        self.norm = make_norm(r.norm, d_model)
        self.inner = make_block(kind, r, width)
        if r.join == "normed concatenation":
            self.joint_norm = make_norm(r.norm, 2 * d_model)
        if "concatenat" in r.join:
            self.back = nn.Linear(2 * d_model, d_model, bias=r.bias)
        if r.dropout == "module":
            self.drop = nn.Dropout(0.2)
        self.dropout = 0.2 if r.dropout == "functional" else 0.0

    def forward(self, h: Tensor) -> Tensor:
        if self.recipe.join == "post":
            return self.norm(h + self.dropped(self.inner(h)))
        out = self.dropped(self.inner(self.norm(h)))
        if self.recipe.join == "none":
            return out
        if self.recipe.join == "concatenate":
            return self.back(torch.cat([h, out], dim=-1))
        if self.recipe.join == "normed concatenation":
            return self.back(self.joint_norm(torch.cat([h, out], dim=-1)))
        if self.recipe.join == "split":
            left, right = out.chunk(2, dim=-1)
            return h + torch.cat([right, left * right], dim=-1)
        return h + out

    def dropped(self, h: Tensor) -> Tensor:
        if self.recipe.dropout == "module":
            return self.drop(h)
        return F.dropout(h, p=self.dropout, training=self.training)


class Head(nn.Module):
    """To the outputs: by a matrix of its own or the embedding's, place by place or pooled."""

    def __init__(self, r: Recipe, d_model: int) -> None:
        super().__init__()
        self.recipe, self.d_model = r, d_model
        self.kind = r.head if r.inputs == "tokens" or not self.borrows(r.head) else "linear"
        if self.kind == "query":
            self.query = nn.Parameter(torch.randn(d_model))
            self.key = nn.Linear(d_model, d_model, bias=r.bias)
        if self.kind == "tied":
            self.readout = nn.Linear(d_model, VOCAB, bias=r.bias)
        elif self.kind in ("linear", "pooled", "query"):
            self.readout = nn.Linear(d_model, CLASSES, bias=r.bias)

    @staticmethod
    def borrows(kind: str) -> bool:
        return kind in ("tied", "functional", "list", "dict")

    def tie(self, stem: Stem) -> None:
        if self.kind == "tied":
            self.readout.weight = stem.enter.weight
        elif self.kind == "list":
            self.kept: Any = [stem.enter.weight]
        elif self.kind == "dict":
            self.kept = {"weight": stem.enter.weight}
        elif self.kind == "functional":
            self.embedding = stem.enter

    def forward(self, h: Tensor) -> Tensor:
        if self.kind == "hidden":
            return h
        if self.recipe.logit_scale == "width":
            h = h / self.d_model
        if self.kind == "list":
            return F.linear(h, self.kept[0])
        if self.kind == "dict":
            return h @ self.kept["weight"].T
        if self.kind == "functional":
            return F.linear(h, self.embedding.weight)
        if self.kind == "pooled":
            return self.readout(h.mean(dim=1))
        if self.kind == "query":
            weights = (self.key(h) @ self.query / self.d_model**0.5).softmax(dim=-1)
            return self.readout((weights[:, :, None] * h).sum(dim=1))
        return self.readout(h)
