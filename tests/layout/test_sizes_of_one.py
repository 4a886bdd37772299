"""Dims of one index that grow: a run of the narrow module shows nothing of them, that of the wide one does."""

import pytest
import torch
from torch import nn

import mupscale
from lockstep import assert_grows
from mupscale import GrowthError

X = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
IMAGES = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Channel(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.enter, self.norm = nn.Conv2d(1, width, 3), nn.BatchNorm2d(width)
        self.more, self.less = nn.Conv2d(width, 4 * width, 3), nn.Conv2d(4 * width, width, 1)
        self.leave = nn.Linear(width, 3)

    def forward(self, images):
        x = self.less(self.more(self.norm(self.enter(images)).relu()).relu())
        return self.leave(x.relu().mean((2, 3)))


class Unit(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 8 * width), nn.Tanh()),
            *(nn.Linear(8 * width, width), nn.Tanh(), nn.Linear(width, 2)),
        )

    def forward(self, x):
        return self.layers(x)


class Joined(nn.Module):
    """Units by themselves beside others, so that segments of size 1 grow."""

    def __init__(self, width):
        super().__init__()
        self.one, self.other, self.four = nn.Linear(6, width), nn.Linear(6, width), nn.Linear(6, 4 * width)
        self.leave = nn.Linear(6 * width, 2)

    def forward(self, x):
        return self.leave(torch.cat([self.one(x), self.other(x), self.four(x)], dim=-1).tanh())


class Split(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.enter, self.leave = nn.Linear(6, 2 * width), nn.Linear(width, 2)

    def forward(self, x):
        gate, value = self.enter(x).chunk(2, dim=-1)
        return self.leave(gate.sigmoid() * value)


class Group(nn.Module):
    """One group of channels becomes several, beside groups of one channel that becomes several."""

    def __init__(self, width):
        super().__init__()
        self.enter, self.leave = nn.Conv2d(1, 8 * width, 3), nn.Conv2d(8 * width, 2, 1)
        self.groups, self.depthwise = (nn.Conv2d(8 * width, 8 * width, 3, groups=g) for g in (width, 8))
        self.between = nn.Conv2d(8 * width, 8 * width, 1)

    def forward(self, images):
        return self.leave(self.depthwise(self.between(self.groups(self.enter(images)).relu()).relu()).relu())


class Returned(nn.Module):
    """What it returns grows."""

    def __init__(self, width):
        super().__init__()
        self.enter, self.leave = nn.Linear(6, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        return self.leave(self.enter(x).relu())


@pytest.mark.parametrize("width", [2, 3])
@pytest.mark.parametrize("make", [Channel, Unit, Joined, Split, Group, Returned])
def test_a_dim_of_one_grows(make, width):
    assert_grows(make, IMAGES if make in (Channel, Group) else X, width)


class Heads(nn.Module):
    """Heads, of which the narrow module has one."""

    def __init__(self, heads, dim):
        super().__init__()
        self.heads = heads
        self.qkv, self.o = nn.Linear(6, 3 * heads * dim), nn.Linear(heads * dim, 6)

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        scores = q @ k.mT * q.shape[-1] ** -0.5
        return self.o((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize(("heads", "dim"), [(4, 4), (4, 8), (1, 8), (3, 12)])
def test_what_grew_is_told_from_the_sizes(heads, dim):
    """One head of 4: of 4 × 4 it is the heads that are new, of 3 × 12 both grow."""
    plan = mupscale.plan(Heads(1, 4), to=Heads(heads, dim), inputs=X)
    assert plan.proved
    names = ([f"w1x{heads}"] if heads > 1 else []) + ([f"w4x{dim // 4}"] if dim > 4 else [])
    assert plan["qkv.bias"].axes.dims[0].names == tuple(names)


def test_structures_that_do_not_go_together_are_said():
    """A norm over each channel by itself is no copy of one over groups of 3."""

    def make(w):
        return nn.Sequential(
            nn.Conv2d(1, 12 * w, 3),
            nn.GroupNorm(4 if w == 1 else 24, 12 * w),
            nn.ReLU(),
            nn.Conv2d(12 * w, 3, 1),
        )

    with pytest.raises(
        GrowthError,
        match="0.weight: a dim of 12 is 4 × 3 in the narrow module, and one of 24 is 24 in the wide",
    ):
        mupscale.plan(make, width=2, inputs=IMAGES)
