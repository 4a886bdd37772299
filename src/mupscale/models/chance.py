"""Two models of different widths draw the same random numbers, so that what they compute can be compared."""

from __future__ import annotations

import random
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class SameChance(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside this mode the n-th draw is the same whatever was drawn before it, and dropout drops nothing.

    A mask over hidden units is of another shape in a wide model, so that none can be the same in both: every
    Bernoulli draw is 1. Other draws go by their number alone: where shapes agree, so do values.

    Args:
        seed: of all draws.
        still: also give every normal draw its mean and every uniform one its middle, for models that add
            noise to hidden units.
    """

    def __init__(self, seed: int, *, still: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seed = seed
        self.still = still
        self.calls = 0
        self.draws = 0  # the calls that did draw something

    def __enter__(self) -> Any:
        self._before = torch.get_rng_state(), np.random.get_state(), random.getstate()
        np.random.seed(self.seed)
        random.seed(self.seed)
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        torch.set_rng_state(self._before[0])
        np.random.set_state(self._before[1])
        random.setstate(self._before[2])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **(kwargs or {}))
        self.calls += 1
        before = torch.default_generator.manual_seed(1_000_003 * self.seed + self.calls).get_state()
        out = func(*args, **(kwargs or {}))
        self.draws += not torch.equal(torch.get_rng_state(), before)
        name = func.overloadpacket.__name__.strip("_")
        if isinstance(out, Tensor):
            if name == "bernoulli":
                return out.fill_(1)
            if self.still and name in ("randn", "randn_like"):
                return out.zero_()
            if self.still and name in ("rand", "rand_like"):
                return out.fill_(0.5)
            if self.still and name == "normal" and all(isinstance(a, int | float) for a in args[1:]):
                return out.fill_(args[1] if len(args) > 1 else (kwargs or {}).get("mean", 0.0))
            if self.still and name == "uniform":
                bounds = [*args[1:3], 0.0, 1.0][:2] if len(args) != 2 else [args[1], 1.0]
                return out.fill_(sum(bounds) / 2)
        return out
