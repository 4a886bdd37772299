"""Operators that multiply three things, measure distances, sum to one, or turn channels into places."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import mupscale
from lockstep import assert_grows
from mupscale import GrowthError

X = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
MANY = torch.randn(2, 40, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def shuffled(width):
    return nn.Sequential(
        nn.Conv2d(3, 16 * width, 3, padding=1), nn.PixelShuffle(2), nn.ReLU(), nn.Conv2d(4 * width, 3, 1)
    )


def unshuffled(width):
    return nn.Sequential(
        nn.Conv2d(3, 4 * width, 3, padding=1), nn.PixelUnshuffle(2), nn.ReLU(), nn.Conv2d(16 * width, 3, 1)
    )


class Bilinear(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.one, self.other = nn.Linear(6, 4 * width), nn.Linear(6, 5 * width)
        self.both, self.leave = nn.Bilinear(4 * width, 5 * width, 8 * width), nn.Linear(8 * width, 2)

    def forward(self, x):
        return self.leave(self.both(self.one(x).relu(), self.other(x).relu()).relu())


class Distances(nn.Module):
    """To learned centres, which are as many whatever the width."""

    def __init__(self, width):
        super().__init__()
        self.enter, self.leave = nn.Linear(6, 4 * width), nn.Linear(7, 2)
        self.centres = nn.Parameter(torch.randn(7, 4 * width))

    def forward(self, x):
        return self.leave(torch.cdist(self.enter(x), self.centres))


class Mixture(nn.Module):
    """A softmax over hidden units: each copy gets a part of what one got, and the next weight more of it."""

    def __init__(self, width):
        super().__init__()
        self.enter, self.middle, self.leave = (
            nn.Linear(a, b) for a, b in ((6, 4 * width), (4 * width, 8), (8, 2))
        )

    def forward(self, x):
        return self.leave(self.middle(self.enter(x).softmax(-1)).relu())


class Slots(nn.Module):
    """Attention over learned keys and values, whose number grows."""

    def __init__(self, width):
        super().__init__()
        self.keys, self.values = (nn.Parameter(torch.randn(1, 1, 4 * width, 6)) for _ in range(2))

    def forward(self, x):
        return F.scaled_dot_product_attention(
            x[:, None], *(t.expand(len(x), -1, -1, -1) for t in (self.keys, self.values))
        )


@pytest.mark.parametrize("width", [2, 3])
@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (shuffled, IMAGES),
        (unshuffled, IMAGES),
        (Bilinear, X),
        (Distances, X),
        (Distances, MANY),  # computed another way
        (Mixture, X),
        (Slots, X),
    ],
)
def test_it_grows(make, inputs, width):
    assert_grows(make, inputs, width)


class Reduced(nn.Module):
    def __init__(self, width, reduce):
        super().__init__()
        self.enter, self.leave, self.reduce = nn.Linear(6, 4 * width), nn.Linear(1, 2), reduce

    def forward(self, x):
        return self.leave(self.reduce(self.enter(x)))


@pytest.mark.parametrize(
    ("reduce", "why"),
    [
        (lambda x: x.logsumexp(-1, keepdim=True), "logsumexp runs over it in the model"),
        (lambda x: x.prod(-1, keepdim=True), "prod runs over it in the model"),
        (lambda x: x.sort(-1).values[..., :1], "sort runs over it in the model"),
        (lambda x: x.log_softmax(-1).mean(-1, keepdim=True), "log_softmax runs over it in the model"),
    ],
)
def test_what_copies_change_is_refused_with_the_operator(reduce, why):
    with pytest.raises(GrowthError, match=why):
        mupscale.grow(Reduced(1, reduce), mupscale.plan(lambda w: Reduced(w, reduce), width=2, inputs=X))
