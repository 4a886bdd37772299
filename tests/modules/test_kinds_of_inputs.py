"""Arguments come in named tuples and dataclasses, too."""

from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from lockstep import assert_grows

FEATURES = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(1))


class Pair(NamedTuple):
    features: torch.Tensor
    weights: torch.Tensor


@dataclass(frozen=True)
class Batch:
    features: torch.Tensor
    weights: torch.Tensor
    length: int = field(init=False, default=5)


class Weighted(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 8 * width), nn.Linear(8 * width, 2)

    def forward(self, given: Pair | Batch) -> torch.Tensor:
        return self.last(torch.relu(self.first(given.features))) * given.weights


class Recurrent(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.cells, self.last = nn.GRU(3, 8 * width, batch_first=True), nn.Linear(8 * width, 2)

    def forward(self, sequences: PackedSequence) -> torch.Tensor:
        return self.last(self.cells(sequences)[0].data)


@pytest.mark.parametrize("kind", [Pair, Batch])
@pytest.mark.parametrize("within", ["alone", "a tuple", "a dict"])
def test_named_tuples_and_dataclasses_are_one_argument(kind, within):
    given = kind(FEATURES, torch.rand(4, 5, 1) + 1)
    assert_grows(Weighted, {"alone": given, "a tuple": (given,), "a dict": {"given": given}}[within], 2)
    assert given.features is FEATURES


def test_packed_sequences_are_read():
    packed = pack_padded_sequence(FEATURES, torch.tensor([5, 4, 2, 1]), batch_first=True)
    assert_grows(Recurrent, packed, 2)
