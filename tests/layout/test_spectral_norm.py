"""Weights divided by their largest singular value, which a power iteration follows in buffers of length one."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from lockstep import assert_grows

X = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def linears(width, norm):
    return nn.Sequential(
        *(norm(nn.Linear(6, 8 * width)), nn.ReLU(), norm(nn.Linear(8 * width, 12 * width)), nn.ReLU()),
        nn.Linear(12 * width, 2),
    )


def convolutions(width, norm):
    return nn.Sequential(
        *(
            norm(nn.Conv2d(3, 8 * width, 3)),
            nn.LeakyReLU(),
            norm(nn.Conv2d(8 * width, 8 * width, 3)),
            nn.LeakyReLU(),
        ),
        *(nn.Flatten(), nn.Linear(8 * width * 16, 2)),
    )


def pruned(layer):
    return prune.l1_unstructured(layer, "weight", amount=0.3)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("width", [2, 3])
@pytest.mark.parametrize(
    "norm",
    [parametrizations.spectral_norm, spectral_norm, weight_norm],
    ids=["spectral", "spectral, by hook", "weight, by hook"],
)
@pytest.mark.parametrize("make", [linears, convolutions])
def test_it_grows(make, norm, width):
    """Where inputs and outputs grow unequally, the layer after it takes the factor."""
    plan = assert_grows(lambda w: make(w, norm), X if make is linears else IMAGES, width)
    for name in plan.layout.buffers:
        assert plan[name].weight_scale == pytest.approx(float(plan[name].copies) ** -0.5)


@pytest.mark.parametrize("width", [2, 3])
def test_pruned_weights_grow(width):
    """The mask is a buffer, and grows with what it masks."""
    assert_grows(lambda w: linears(w, pruned), X, width)
