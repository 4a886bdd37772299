"""What a checkpoint grows into, before it is anywhere: for whoever writes it and whoever compares with it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mupscale.checkpoint.reader import Checkpoint, ModelTensors
from mupscale.errors import GrowthError
from mupscale.models.skeletons import PreTrainedConfig, skeleton
from mupscale.operators.any_tensor import Grower
from mupscale.theory.manifest import Plan


class GrownCheckpoint:
    """What a checkpoint grows into: any tensor of it by name, made when it is asked for, and the config.

    `mupscale.growth.grow_checkpoint` writes it, and `mupscale.checkpoint.regrowth` compares with it.

    Args:
        recipe: as to `Grower`: operator, noise, shrink, seed and from_first.

    Attributes:
        plan: the plan, as the operator has it.

    Raises:
        GrowthError: the files do not hold what the plan says, or the operator does not go with it.
    """

    def __init__(
        self, checkpoint: Checkpoint, plan: Plan, *, allow_nonfinite: bool = False, **recipe: Any
    ) -> None:
        assert plan.narrow_config is not None
        self._nonfinite = allow_nonfinite
        self._narrow = ModelTensors(checkpoint, plan.layout, skeleton(plan.narrow_config))
        self.grower = Grower(plan, self._read, **recipe)
        self.plan = self.grower.plan

    def __call__(self, name: str, dtype: torch.dtype) -> Tensor:
        """A tensor of the wide model.

        Raises:
            GrowthError: it holds what is not finite, before or after.
        """
        wide = self.grower(name, dtype)
        self._check(name, wide)
        return wide

    def blocks(self, name: str, dtype: torch.dtype) -> Iterator[Tensor]:
        """The same in blocks of its rows, which never are in memory all at once."""
        return self.grower.blocks(name, dtype, check=partial(self._check, name))

    def _check(self, name: str, wide: Tensor) -> None:
        if not self._nonfinite and not is_finite(wide):
            raise GrowthError(
                f"{name}: grown, it holds numbers too large for {wide.dtype}; choose another dtype, "
                "or less noise"
            )

    def dtype(self, name: str) -> torch.dtype:
        """That of the narrow tensor."""
        return self._narrow.dtype(self.plan.canonical(name))

    def config(self, dtype: torch.dtype | None = None) -> PreTrainedConfig:
        """The wide config; with the narrow one's dtype unless another is given."""
        config = copy.deepcopy(self.plan.config)
        assert config is not None
        config.dtype = dtype or config.dtype
        return config

    def _read(self, name: str) -> Tensor:
        tensor = self._narrow(name)
        if not self._nonfinite and not is_finite(tensor):
            raise GrowthError(
                f"{self._narrow.place(name)} holds NaN or infinity; --allow-nonfinite lets it through"
            )
        return tensor


def is_finite(tensor: Tensor) -> bool:
    """Whether no number is NaN or infinite; by the extremes, which takes no memory."""
    if not tensor.numel() or not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return all(bool(extreme.isfinite()) for extreme in torch.aminmax(real))
