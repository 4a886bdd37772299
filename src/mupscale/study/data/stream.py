"""What a run trains on, whatever it is: items in an order that a seed fixes, and what a step on them costs.

Knows tensors and the settings of a run; nothing of where data comes from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast, default_data_collator

from mupscale.study.data.flops import training_flops
from mupscale.study.spec.recipe import TrainConfig

Batch = dict[str, Tensor]


class Data(ABC):
    """What `train` trains on: items that a model's ``forward(**batch)`` takes, with ``labels`` among them.

    Attributes:
        about: what it is, for people; part of what must match for a run to be resumed.
        tokenizer: saved beside every checkpoint; None where there is none.
    """

    about: str
    tokenizer: PreTrainedTokenizerFast | None

    @abstractmethod
    def check(self, model: nn.Module, config: TrainConfig) -> None:
        """Raise `GrowthError` where the model cannot be trained on it."""

    @abstractmethod
    def columns(self, config: TrainConfig, *, held_out: bool = False) -> Batch:
        """All items to train on, or those held out: a row of every tensor is one.

        Raises:
            GrowthError: there are none.
        """

    def training(self, config: TrainConfig) -> Items:
        """The ``steps · batch_size`` items of the run: `skip_blocks` items into the stream of its seed."""
        columns, count = self.columns(config), config.steps * config.batch_size
        order = training_order(_rows(columns), start=config.skip_blocks, count=count, seed=config.seed)
        return Items(columns, order)

    def held_out(self, config: TrainConfig) -> Items:
        """What to evaluate on: `eval_blocks` of the held-out items at the most, spread evenly."""
        columns = self.columns(config, held_out=True)
        everything = _rows(columns)
        count = min(config.eval_blocks or everything, everything)
        return Items(columns, np.linspace(0, everything - 1, count).astype(np.int64))

    def size(self, config: TrainConfig) -> int:
        """Items of one pass over the training data."""
        return _rows(self.columns(config))

    def step_flops(self, model: nn.Module, config: TrainConfig) -> int:
        """Floating point operations of one training step, forward and backward."""
        return training_flops(model, self.empty(config, config.batch_size))

    def empty(self, config: TrainConfig, items: int) -> Batch:
        """A batch of so many items on the `meta` device: shapes without values."""
        one = Items(self.columns(config), np.zeros(1, dtype=np.int64))[0]
        return {
            name: torch.empty(items, *value.shape, dtype=value.dtype, device="meta")
            for name, value in one.items()
        }


class Items(Dataset[Batch]):
    """Items in a fixed order, whole numbers as int64; many at once are fetched as one batch.

    >>> items = Items({"inputs": torch.tensor([[0.5], [1.5]])}, np.array([1, 0, 1]))
    >>> items[0], items[:2]["inputs"].shape
    ({'inputs': tensor([1.5000])}, torch.Size([2, 1]))
    """

    def __init__(self, columns: Mapping[str, Tensor], order: npt.NDArray[np.int64]) -> None:
        self.columns, self.order = columns, torch.from_numpy(order)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, place: int | slice | list[int]) -> Batch:
        rows = self.order[place]
        found = {name: column[rows] for name, column in self.columns.items()}
        return {name: value if value.is_floating_point() else value.long() for name, value in found.items()}

    __getitems__ = __getitem__  # of a DataLoader, which then gets whole batches: `collate` lets them pass


def collate(items: Sequence[Batch] | Batch) -> Batch:
    """A batch of items, which are of one size, or one that was fetched as a whole."""
    return items if isinstance(items, dict) else dict(default_data_collator(list(items)))


def training_order(items: int, *, start: int, count: int, seed: int) -> npt.NDArray[np.int64]:
    """The items at places start … start + count − 1 of the endless shuffled stream that a seed stands for.

    Every pass over the data is a fresh permutation, drawn from (seed, number of the pass) alone: a run that
    is longer, or another model, sees the same items in the same order.

    Example:
        >>> long, short = (training_order(10, start=4, count=n, seed=0) for n in (25, 8))
        >>> bool((long[:8] == short).all())
        True
    """
    first, last = start // items, (start + max(count, 1) - 1) // items
    stream = np.concatenate(
        [np.random.default_rng([seed, p]).permutation(items) for p in range(first, last + 1)]
    )
    return stream[start - first * items :][:count].astype(np.int64)


def _rows(columns: Batch) -> int:
    return len(next(iter(columns.values())))
