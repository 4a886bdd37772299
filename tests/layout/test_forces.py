"""Models that return gradients: forces are those of an energy, in potentials of atoms."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import mupscale
from lockstep import assert_grows
from mupscale import GrowthError

SPECIES = torch.arange(6) % 4
POSITIONS = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))


class Potential(nn.Module):
    """An energy of species and positions, and the forces: minus its gradient."""

    def __init__(self, width: int) -> None:
        super().__init__()
        d = 8 * width
        self.species, self.filter = nn.Embedding(4, d), nn.Linear(1, d)
        self.mix, self.norm, self.energy = nn.Linear(d, d), nn.LayerNorm(d), nn.Linear(d, 1)

    def forward(self, species: torch.Tensor, positions: torch.Tensor) -> dict[str, torch.Tensor]:
        positions = positions.detach().requires_grad_()
        with torch.enable_grad():
            distances = (positions[:, None] - positions).square().sum(-1, keepdim=True)
            x = self.species(species)
            messages = F.silu(self.filter(torch.exp(-distances))) * x
            x = x + self.mix(messages.sum(1))
            energy = self.energy(F.silu(self.norm(x))).sum()
            (gradient,) = torch.autograd.grad(energy, positions, create_graph=self.training)
        return {"energy": energy, "forces": -gradient}


class Steered(nn.Module):
    """Reads a gradient with respect to hidden units, of which copies have smaller ones each."""

    def __init__(self, width: int, threshold: float | None) -> None:
        super().__init__()
        self.threshold = threshold
        self.first, self.inner, self.last = (
            nn.Linear(3, 8 * width),
            nn.Linear(8 * width, 1),
            nn.Linear(8 * width, 2),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            hidden = torch.tanh(self.first(x)).requires_grad_()
            (gradient,) = torch.autograd.grad(self.inner(torch.sin(hidden)).sum(), hidden, create_graph=True)
        if self.threshold is None:
            return self.last(gradient)
        return torch.where(gradient.norm() > self.threshold, self.last(hidden), 2 * self.last(hidden))


@pytest.mark.parametrize("width", [2, 3])
def test_a_potential_grows_and_trains_on_its_energy_and_forces(width):
    plan = assert_grows(Potential, (SPECIES, POSITIONS), width)
    assert (
        plan["filter.weight"].weight_scale == 1
    )  # reads no axis that grows, whatever the way back sums over
    assert plan["mix.weight"].weight_scale == 1 / width


@pytest.mark.parametrize("threshold", [None, 50.0])
def test_gradients_with_respect_to_hidden_units_are_refused(threshold):
    plan = mupscale.plan(lambda width: Steered(width, threshold), width=2, inputs=POSITIONS)
    with pytest.raises(GrowthError, match="gradients with respect to it are used in"):
        mupscale.grow(Steered(1, threshold), plan, operator="duplicate")
