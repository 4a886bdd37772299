"""Operators that multiply three things, measure distances, sum to one, or turn channels into places."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import flex_attention

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


def regrouped(width):
    return nn.Sequential(
        *(nn.Conv2d(3, 8 * width, 3), nn.ChannelShuffle(2), nn.Conv2d(8 * width, 8 * width, 3, groups=2)),
        *(nn.ChannelShuffle(2 * width), nn.ReLU(), nn.Conv2d(8 * width, 3, 1)),
    )


def columns(width):
    """Patches as columns, and as a picture again."""
    return nn.Sequential(
        *(
            nn.Conv2d(3, 4 * width, 1),
            nn.Unfold(2, stride=2),
            nn.Conv1d(16 * width, 16 * width, 1),
            nn.ReLU(),
        ),
        *(nn.Fold(8, 2, stride=2), nn.Conv2d(4 * width, 2, 1)),
    )


def pooled(width):
    c = 8 * width
    return nn.Sequential(
        *(nn.Unflatten(1, (1, 3)), nn.Conv3d(1, c, (3, 1, 1)), nn.MaxPool3d((1, 2, 2)), nn.ReLU()),
        *(nn.Conv3d(c, c, 1), nn.AvgPool3d((1, 2, 2)), nn.Upsample(scale_factor=2), nn.AdaptiveAvgPool3d(1)),
        *(nn.Flatten(), nn.Linear(c, 2)),
    )


class Blurred(nn.Module):
    """A fixed filter for every channel, before the picture is made smaller."""

    def __init__(self, width):
        super().__init__()
        self.enter, self.leave = nn.Conv2d(3, 4 * width, 3), nn.Conv2d(4 * width, 2, 1)
        self.register_buffer(
            "blur", torch.tensor([1.0, 2.0, 1.0]).outer(torch.tensor([1.0, 3.0, 1.0]))[None, None]
        )

    def forward(self, images):
        x = self.enter(images).relu()
        return self.leave(F.conv2d(x, self.blur.repeat(x.shape[1], 1, 1, 1), stride=2, groups=x.shape[1]))


class Standardized(nn.Module):
    """Weights that are normalized as a batch would be, times a gain and a constant of their size."""

    def __init__(self, width):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3) for a, b in ((3, 4 * width), (4 * width, 4 * width)))
        self.gains = nn.ParameterList(torch.rand(4 * width) + 0.5 for _ in self.layers)
        self.leave = nn.Conv2d(4 * width, 2, 1)

    def forward(self, images):
        for layer, gain in zip(self.layers, self.gains, strict=True):
            flat = layer.weight.reshape(1, len(gain), -1)
            scale = gain * layer.weight[0].numel() ** -0.5
            weight = F.batch_norm(flat, None, None, weight=scale, training=True, momentum=0.0)
            images = F.conv2d(images, weight.reshape_as(layer.weight), layer.bias).relu()
        return self.leave(images)


class Adapted(nn.Module):
    """A weight and a low rank beside it, made of what two layers do to the unit vectors, both of one length."""

    def __init__(self, width):
        super().__init__()
        self.enter, self.leave = nn.Linear(6, 4 * width), nn.Linear(4 * width, 2)
        self.base, self.down, self.up = (
            nn.Linear(a, b, bias=False) for a, b in ((4 * width, 4 * width), (4 * width, 3), (3, 4 * width))
        )
        self.lengths = nn.Parameter(torch.rand(4 * width, 1) + 0.5)

    def forward(self, x):
        x = self.enter(x).relu()
        weight = self.base.weight + self.up(self.down(torch.eye(x.shape[-1], dtype=x.dtype))).T
        lengths = self.lengths / (weight.norm(dim=1, keepdim=True) * x.shape[-1] ** 0.5)
        return self.leave(F.linear(x, weight * lengths).relu())


class Aggregated(nn.Module):
    """A convolution of one place over several things, along their units: these are no places."""

    def __init__(self, width):
        super().__init__()
        self.several = nn.ModuleList(nn.Linear(6, 4 * width) for _ in range(3))
        self.mix, self.leave = nn.Conv1d(3, 1, 1), nn.Linear(4 * width, 2)

    def forward(self, x):
        return self.leave(self.mix(torch.stack([f(x[:, 0]) for f in self.several], dim=1)).relu())


class Cached(nn.Module):
    """Makes a table at its first call, and head dims grow: what the two runs show has to be alike."""

    def __init__(self, width):
        super().__init__()
        self.qkv, self.leave, self.table = nn.Linear(6, 24 * width), nn.Linear(8 * width, 2), None

    def forward(self, x):
        if self.table is None:
            self.table = torch.arange(x.shape[1], dtype=x.dtype).neg().exp()
        q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        scores = q @ k.mT * q.shape[-1] ** -0.5 + self.table.to(x.dtype)
        return self.leave((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Shifted(nn.Module):
    """Relative positions by padding and cutting anew, which no axis of a weight goes through."""

    def __init__(self, width):
        super().__init__()
        self.heads, model = 2 * width, 16 * width
        self.q, self.positions, self.leave = (
            nn.Linear(6, model),
            nn.Parameter(torch.randn(9, 8)),
            nn.Linear(5 * self.heads, 2),
        )

    def forward(self, x):
        n = x.shape[1]
        scores = self.q(x).unflatten(-1, (self.heads, 8)).transpose(1, 2) @ self.positions.mT
        scores = F.pad(F.pad(scores, (0, 1)).flatten(2), (0, n - 1))
        scores = scores.unflatten(-1, (n + 1, 2 * n - 1))[:, :, :n, n - 1 :]
        return self.leave(scores.relu().transpose(1, 2).flatten(2))


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


class NumberInPlace(nn.Module):
    """A sum over units with a number added to it, for which what is summed has to come out smaller."""

    def __init__(self, width):
        super().__init__()
        self.into, self.out = nn.Linear(6, 8 * width), nn.Linear(5, 2)

    def forward(self, x):
        return self.out(self.into(x).relu().sum(-1).add_(1))


@pytest.mark.parametrize("width", [2, 3])
@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (shuffled, IMAGES),
        (unshuffled, IMAGES),
        (regrouped, IMAGES),
        (columns, IMAGES),
        (pooled, IMAGES),
        (Blurred, IMAGES),
        (Standardized, IMAGES),
        (Adapted, X),
        (Aggregated, X),
        (Cached, X),
        (Shifted, X),
        (Bilinear, X),
        (Distances, X),
        (Distances, MANY),  # computed another way
        (Mixture, X),
        (Slots, X),
        (NumberInPlace, X),
    ],
)
def test_it_grows(make, inputs, width):
    assert_grows(make, inputs, width)


class Mapped(nn.Module):
    """Calls layers on one row, for all rows at once."""

    def __init__(self, width):
        super().__init__()
        self.enter, self.leave = nn.Linear(6, 4 * width), nn.Linear(4 * width, 2)

    def forward(self, x):
        return torch.vmap(lambda row: self.leave(self.enter(row).tanh()))(x)


def test_modules_inside_vmap_grow():
    assert_grows(Mapped, X, 2)


class Flexible(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.qkv, self.leave, self.heads = nn.Linear(6, 24 * width), nn.Linear(8 * width, 2), 2 * width

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        return self.leave(flex_attention(q, k, v).transpose(1, 2).flatten(2))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_an_operator_that_takes_functions_is_refused_with_what_to_do():
    with pytest.raises(
        GrowthError, match="Flexible: .*flex_attention cannot be traced.*scaled_dot_product_attention"
    ):
        mupscale.plan(Flexible, width=2, inputs=X)


class Deep(nn.Module):
    """A weight of as many dims as it is told."""

    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))

    def forward(self, x):
        return x @ self.weight.flatten(1)


def test_another_number_of_dims_is_another_architecture():
    with pytest.raises(GrowthError, match="weight: has 2 dims, and 3 in the wide module"):
        mupscale.plan(Deep(6, 2), to=Deep(6, 2, 2), inputs=X)


class Reduced(nn.Module):
    def __init__(self, width, reduce):
        super().__init__()
        self.enter, self.leave, self.reduce = nn.Linear(6, 4 * width), nn.Linear(1, 2), reduce

    def forward(self, x):
        return self.leave(self.reduce(self.enter(x)))


@pytest.mark.parametrize(
    ("reduce", "why"),
    [
        (lambda x: torch.matrix_exp(x[0].mT @ x[0])[:, :1], "matrix_exp takes a matrix of it in the model"),
        (lambda x: x.logsumexp(-1, keepdim=True), "logsumexp runs over it in the model"),
        (lambda x: F.avg_pool1d(x, 4)[..., :1], r"avg_pool\dd runs over it in the model"),
        (lambda x: x.prod(-1, keepdim=True), "prod runs over it in the model"),
        (lambda x: x.sort(-1).values[..., :1], "sort runs over it in the model"),
        (lambda x: x.log_softmax(-1).mean(-1, keepdim=True), "log_softmax runs over it in the model"),
    ],
)
def test_what_copies_change_is_refused_with_the_operator(reduce, why):
    with pytest.raises(GrowthError, match=why):
        mupscale.grow(
            Reduced(1, reduce),
            mupscale.plan(lambda w: Reduced(w, reduce), width=2, inputs=X),
            operator="duplicate",
        )
