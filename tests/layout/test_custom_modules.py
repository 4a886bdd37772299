"""Modules that mupscale has never seen, planned, proved and grown from their constructor and an input."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

import mupscale
from lockstep import assert_grows
from mupscale import GrowthError


class Mixer(nn.Module):
    """An MLP-Mixer: linear maps over channels and, transposed, over patches."""

    def __init__(self, width: int) -> None:
        super().__init__()
        channels = 8 * width
        self.patches = nn.Conv2d(3, channels, kernel_size=4, stride=4)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))
        self.tokens = nn.Sequential(nn.Linear(16, 12 * width), nn.GELU(), nn.Linear(12 * width, 16))
        self.channels = nn.Sequential(
            nn.Linear(channels, 20 * width), nn.GELU(), nn.Linear(20 * width, channels)
        )
        self.head = nn.Linear(channels, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norms[1](x))
        return self.head(self.norms[2](x).mean(dim=1))


class UNet(nn.Module):
    """Down, up and a concatenation across, with group norms and a transposed convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        c = 8 * width
        self.enter = nn.Conv2d(1, c, 3, padding=1)
        self.down = nn.Conv2d(c, 2 * c, 3, stride=2, padding=1)
        self.middle = nn.Sequential(nn.GroupNorm(4, 2 * c), nn.SiLU(), nn.Conv2d(2 * c, 2 * c, 3, padding=1))
        self.up = nn.ConvTranspose2d(2 * c, c, 2, stride=2)
        self.join = nn.Sequential(nn.BatchNorm2d(2 * c), nn.ReLU(), nn.Conv2d(2 * c, c, 3, padding=1))
        self.leave = nn.Conv2d(c, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        entered = self.enter(x)
        down = self.down(entered)
        up = self.up(down + self.middle(down))
        return self.leave(self.join(torch.cat([up, entered], dim=1)))


class LSTM(nn.Module):
    """A language model of two recurrent layers whose readout is the embedding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 8 * width)
        self.recurrent = nn.LSTM(8 * width, 8 * width, num_layers=2, batch_first=True)
        self.bias = nn.Parameter(torch.zeros(30))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.recurrent(self.embedding(tokens))
        return F.linear(hidden, self.embedding.weight / hidden.shape[-1], self.bias)


IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
CASES = {
    "mixer": (Mixer, IMAGES),
    "unet": (UNet, IMAGES[:, :1]),
    "lstm": (LSTM, torch.randint(30, (3, 7), generator=torch.Generator().manual_seed(1))),
}


@pytest.mark.parametrize("width", [2, 3])
@pytest.mark.parametrize("name", CASES)
def test_unknown_modules_grow_without_hints(name, width):
    make, inputs = CASES[name]
    torch.manual_seed(0)
    narrow = make(1).double()
    plan = mupscale.plan(make, width=width, inputs=inputs)
    for noise in (None, "balanced:1"):
        wide = mupscale.grow(narrow, plan, noise=noise, operator="duplicate")
        report = mupscale.verify(narrow, wide, plan, inputs, steps=3)
        assert report.equal, report
        assert report.max_abs_diff < 1e-10


class Flatten(nn.Module):
    """Channels and places in one dim, which shapes alone cannot tell from channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4 * width, 3)
        self.scale = nn.Parameter(torch.ones(4 * width, 1, 1))
        self.head = nn.Linear(4 * width * 4, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(F.adaptive_avg_pool2d(self.conv(images) * self.scale, 2).flatten(1))


def test_a_run_shows_what_shapes_do_not():
    plan = mupscale.plan(Flatten, width=2, inputs=IMAGES)
    assert str(plan["head.weight"].axes) == "5 [w4x2 4]"
    assert str(plan["scale"].axes) == "w4x2 1 1"


class Counted(nn.Module):
    """Multiplies each channel by its number: copies of a channel are not the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4 * width), nn.Linear(4 * width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x)
        return self.last(hidden * torch.arange(hidden.shape[-1]))


def test_what_is_computed_from_an_index_is_not_copied():
    plan = mupscale.plan(Counted, width=2, inputs=torch.randn(2, 3))
    assert plan.inexact == {"w4x2": "arange in the model counts along it"}
    with pytest.raises(GrowthError, match="w4x2.*: arange in the model counts along it"):
        mupscale.grow(Counted(1), plan, operator="duplicate")


class Peak(nn.Module):
    """Divides by a sum over channels that no weight makes up for."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4 * width), nn.Linear(4 * width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x)
        return self.last(hidden.exp() / (1 + hidden.exp().sum(-1, keepdim=True)))


def test_what_no_layout_explains_is_refused_with_the_first_module_that_differs():
    with pytest.raises(
        GrowthError, match="Peak: growing it is not exact.*the first module whose output is no copy is last"
    ):
        mupscale.plan(Peak, width=2, inputs=torch.randn(2, 3))


def test_inputs_that_do_not_fit_are_said_to():
    with pytest.raises(GrowthError, match="inputs: the module does not run on them"):
        mupscale.plan(Mixer, width=2, inputs=torch.randn(2, 3))


def test_inputs_and_widths_that_mean_nothing_are_said_to():
    with pytest.raises(GrowthError, match="inputs: on the meta device"):
        mupscale.plan(Mixer, width=2, inputs=IMAGES.to("meta"))
    for width in (2.0, 1.5, "2"):
        with pytest.raises(GrowthError, match="width: .* give a whole number"):
            mupscale.plan(Mixer, width=width, inputs=IMAGES)


class Graph(nn.Module):
    """Sums over neighbours, which are given, or a buffer, or a plain tensor."""

    def __init__(self, width: int, neighbours: torch.Tensor | None = None, kind: str = "given") -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4 * width), nn.Linear(4 * width, 5)
        if kind == "buffer":
            self.register_buffer("neighbours", neighbours)
        elif kind == "plain":
            self.neighbours = neighbours

    def forward(self, x: torch.Tensor, neighbours: torch.Tensor | None = None) -> torch.Tensor:
        return self.last((self.neighbours if neighbours is None else neighbours) @ self.first(x))


@pytest.mark.parametrize("layout", ["to_sparse", "to_sparse_csr", "to_dense"])
@pytest.mark.parametrize("kind", ["given", "buffer", "plain"])
def test_sparse_tensors_are_refused_by_name(layout, kind):
    x, neighbours = torch.randn(6, 3), getattr(torch.eye(6), layout)()
    inputs = (x, neighbours) if kind == "given" else x

    def find():
        return mupscale.plan(lambda width: Graph(width, neighbours, kind), width=2, inputs=inputs)

    if layout == "to_dense":
        assert find().proved
        return
    message = "^inputs: .* sparse" if kind == "given" else "^neighbours: is a sparse tensor"
    with pytest.raises(GrowthError, match=rf"{message}.*\.to_dense\(\)"):
        find()


def test_a_make_that_builds_in_single_precision_only_is_refused():
    def make(width):
        model = nn.Sequential(nn.Linear(3, 4 * width), nn.Linear(4 * width, 5))
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear})

    with pytest.raises(GrowthError, match=r"^the module cannot be built, in float64, .*Float.*; let it take"):
        mupscale.plan(make, width=2, inputs=torch.randn(2, 3))


class Idle(nn.Module):
    """Has a layer that its forward pass never reaches."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(3, 4 * width), nn.Linear(3, 4 * width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x)


def test_what_the_run_does_not_reach_is_not_grown():
    with pytest.raises(
        GrowthError, match="idle.weight: would grow, but the run on these inputs does not use it"
    ):
        mupscale.plan(Idle, width=2, inputs=torch.randn(2, 3))


class Standardized(nn.Linear):
    """A linear map that uses its weight with zero mean and unit variance over the inputs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight - self.weight.mean(dim=1, keepdim=True)
        scale = weight.var(dim=1, keepdim=True, correction=0).rsqrt()
        return F.linear(x, weight * scale / self.in_features, self.bias)


@pytest.mark.parametrize(
    "middle",
    [
        lambda width: nn.Linear(16 * width, 16 * width),
        lambda width: weight_norm(nn.Linear(16 * width, 16 * width)),
        lambda width: Standardized(16 * width, 16 * width),
    ],
    ids=["plain", "weight_norm", "standardized"],
)
def test_noise_goes_where_the_function_stays(middle, request):
    """Terms that sum to zero over copies change the norm of a weight, and with it what is divided by it."""

    def make(width):
        layers = nn.Linear(6, 16 * width), nn.ReLU(), middle(width), nn.ReLU(), nn.Linear(16 * width, 4)
        return nn.Sequential(*layers).double()

    x = torch.randn(5, 6, dtype=torch.float64)
    narrow = make(1)
    plan = mupscale.plan(make, width=2, inputs=x)
    pure, noisy = (
        mupscale.grow(narrow, plan, noise=noise, operator="duplicate") for noise in (None, "balanced:1")
    )
    for wide in (pure, noisy):
        torch.testing.assert_close(wide(x), narrow(x), rtol=0, atol=1e-12)
    case = request.node.callspec.id
    weight = "2.parametrizations.weight.original1" if case == "weight_norm" else "2.weight"
    same = torch.equal(*(wide.get_parameter(weight) for wide in (pure, noisy)))
    assert same == (case != "plain") == (not plan.params[weight].has_noise)
    assert mupscale.Plan.from_json(plan.to_json()).params == plan.params
    assert ("no noise" in str(plan)) == (case == "weight_norm")  # the other sums over no copies


def test_a_plan_says_whether_it_is_proved():
    def make(width):
        return nn.Sequential(nn.Linear(6, 16 * width), nn.ReLU(), nn.Linear(16 * width, 4))

    seen, guessed = mupscale.plan(make, width=2, inputs=torch.randn(2, 6)), mupscale.plan(make, width=2)
    assert seen.proved
    assert mupscale.Plan.from_json(seen.to_json()).proved
    assert "not proved" not in str(seen)
    assert not guessed.proved
    assert "not proved: read off shapes alone" in str(guessed)


class ViewedInPlace(nn.Module):
    """Lays hidden states out anew without another tensor, as nn.GRU does where the batch comes first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.places = nn.Linear(3, 4 * width), nn.Linear(6, 6)
        self.recurrent = nn.GRU(4 * width, 4 * width, batch_first=True)
        self.last = nn.Linear(4 * width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        h = h + self.recurrent(h)[0]
        turned = self.places((h * 1.0).transpose_(1, 2))
        turned = turned.unsqueeze_(1).squeeze_(1).swapaxes_(1, 2)
        return self.last(h + turned)


@pytest.mark.parametrize("width", [2, 3])
def test_views_in_place_are_views(width):
    assert_grows(ViewedInPlace, torch.randn(2, 6, 3), width)
