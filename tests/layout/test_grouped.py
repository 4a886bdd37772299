"""Groups of channels: convolutions, and norms over a concatenation."""

import pytest
import torch
from torch import nn

import mupscale
from lockstep import assert_grows

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Convolved(nn.Module):
    """A convolution in groups between dense ones."""

    def __init__(self, width, groups, out=1, kind=nn.Conv2d, bias=True):
        super().__init__()
        c = 8 * width
        self.enter, self.middle = nn.Conv2d(3, c, 3), kind(c, out * c, 3, groups=groups, bias=bias)
        self.norm, self.less, self.leave = nn.BatchNorm2d(out * c), nn.Conv2d(out * c, c, 1), nn.Linear(c, 3)

    def forward(self, images):
        x = self.norm(self.middle(self.enter(images).relu())).relu()
        return self.leave(self.less(x).relu().mean((2, 3)))


@pytest.mark.parametrize("width", [2, 3])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("groups", "out"), [("2", 1), ("2w", 1), ("4w", 2), ("8w", 1), ("8w", 3)])
def test_grouped_convolutions_grow(groups, out, bias, kind, width):
    """More groups of the same size, larger groups, and a filter or several for each channel."""

    def make(w):
        return Convolved(w, int(groups[0]) * (w if "w" in groups else 1), out, kind, bias)

    assert_grows(make, IMAGES, width)


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_groups_and_what_they_hold_grow_together(kind):
    plan = mupscale.plan(Convolved(1, 2, kind=kind), to=Convolved(6, 4, kind=kind), inputs=IMAGES)
    assert plan.proved
    assert plan["middle.bias"].axes.dims[0].names == ("w2x2", "w4x3")
    assert plan["middle.weight"].weight_scale == pytest.approx(1 / 3)


class Normed(nn.Module):
    """A group norm over two things side by side, as on the way up in the UNets of diffusion."""

    def __init__(self, width, one, other, groups, before=0):
        super().__init__()
        one, other = one * width, other * width
        self.one, self.other = nn.Conv2d(3, one, 3), nn.Conv2d(3, other, 3)
        self.before = nn.GroupNorm(before, one) if before else nn.Identity()
        self.norm, self.join = nn.GroupNorm(groups, one + other), nn.Conv2d(one + other, 8 * width, 3)
        self.leave = nn.Conv2d(8 * width, 2, 1)

    def forward(self, images):
        both = torch.cat([self.before(self.one(images)), self.other(images)], dim=1)
        return self.leave(self.join(self.norm(both).relu()).relu())


@pytest.mark.parametrize("width", [2, 3])
@pytest.mark.parametrize(
    ("one", "other", "groups", "before"),
    [(8, 8, 4, 0), (8, 4, 2, 0), (10, 6, 4, 0), (16, 8, 4, 4), (16, 8, 8, 8), (5, 4, 3, 0), (8, 4, 4, 8)],
)
def test_a_seam_inside_a_group_is_no_hindrance(one, other, groups, before, width):
    assert_grows(lambda w: Normed(w, one, other, groups, before), IMAGES, width)


def test_groups_that_number_more_do_not_cross_a_seam():
    """Groups of 6 over 8 + 4: copies of the one that crosses the seam hold other channels than it."""
    plan = mupscale.plan(lambda w: Normed(w, 8, 4, 2 * w), width=2, inputs=IMAGES)
    assert not plan.proved
    assert "cross the seams of it in norm" in str(plan.inexact)
