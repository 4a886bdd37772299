"""Parameters and buffers of other kinds than weights in floating point, and those that hooks rename."""

import pytest
import torch
from torch import nn

import mupscale
from lockstep import assert_grows
from mupscale import GrowthError

X = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Filtered(nn.Module):
    """A global filter over positions: complex weights, one for each frequency and channel."""

    def __init__(self, width, dtype=torch.complex64):
        super().__init__()
        self.enter, self.leave = nn.Linear(6, 8 * width), nn.Linear(8 * width, 2)
        self.filter = nn.Parameter(torch.randn(3, 8 * width, dtype=dtype))
        self.mix = nn.Parameter(torch.randn(8 * width, 8 * width, dtype=dtype))

    def forward(self, x):
        frequencies = torch.fft.rfft(self.enter(x), dim=1) * self.filter
        return self.leave(torch.fft.irfft(frequencies @ self.mix.to(frequencies.dtype), n=x.shape[1], dim=1))


@pytest.mark.parametrize("width", [2, 3])
def test_complex_weights_grow(width):
    plan = assert_grows(lambda w: Filtered(w, torch.complex128), X, width)
    assert plan["mix"].weight_scale == pytest.approx(1 / width)
    narrow = Filtered(1)  # in single precision, as complex weights are by default
    wide = mupscale.grow(narrow, mupscale.plan(Filtered, width=width, inputs=X), operator="duplicate")
    assert wide.filter.dtype == torch.complex64
    torch.testing.assert_close(wide(X.float()), narrow(X.float()))


class Picked(nn.Module):
    """Whole numbers as a parameter: places that are picked, or channels."""

    def __init__(self, width, dim):
        super().__init__()
        self.enter, self.leave, self.dim = nn.Linear(6, 8 * width), nn.Linear(8 * width, 2), dim
        places = torch.tensor([4, 0, 2]) if dim == 1 else torch.randperm(8 * width)
        self.places = nn.Parameter(places, requires_grad=False)

    def forward(self, x):
        return self.leave(self.enter(x).index_select(self.dim, self.places))


def test_whole_numbers_stay_or_are_refused():
    assert_grows(lambda w: Picked(w, dim=1), X, 2)
    with pytest.raises(GrowthError, match=r"places: grows from \(8,\) to \(16,\)"):
        mupscale.plan(lambda w: Picked(w, dim=2), width=2, inputs=X)


class Renamed(nn.Module):
    """Gives what it stores other names, as those who fuse projections do for their checkpoints."""

    def __init__(self, width):
        super().__init__()
        self.enter, self.leave = nn.Linear(6, 8 * width), nn.Linear(8 * width, 2)
        self.register_buffer("kept", torch.rand(8 * width))
        self.register_buffer("made", torch.ones(8 * width), persistent=False)
        self._register_state_dict_hook(self.rename)
        self.register_load_state_dict_pre_hook(self.back)

    @staticmethod
    def rename(module, state, prefix, metadata):
        for name in list(state):
            state[f"{prefix}stored.{name.removeprefix(prefix)}"] = state.pop(name)

    @staticmethod
    def back(module, state, prefix, *rest):
        for name in list(state):
            state[name.replace("stored.", "")] = state.pop(name)

    def forward(self, x):
        return self.leave(self.enter(x).relu() * self.kept * self.made)


def test_names_are_the_modules_own():
    plan = assert_grows(Renamed, X, 2)
    assert set(plan.layout.buffers) == {"kept"}
    by_shape = mupscale.plan(Renamed, width=2, hints={"kept": "channels"})
    assert set(by_shape.layout.buffers) == {"kept"}
