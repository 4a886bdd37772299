"""Two models of different widths draw the same random numbers, so that what they compute can be compared."""

from __future__ import annotations

import random
from collections.abc import Collection
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
_ODDS = {  # which argument holds the probabilities of a draw that is a whole number
    _aten.bernoulli.default: 0,
    _aten.bernoulli.Tensor: 1,
    _aten.bernoulli_.Tensor: 1,
    _aten.binomial.default: 1,
    _aten.multinomial.default: 0,
    _aten.poisson.default: 0,
}


class SameChance(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside this mode the n-th draw is the same whatever was drawn before it, and dropout drops nothing.

    A mask over hidden units is of another shape in a wide model, so that none can be the same in both: every
    Bernoulli draw is 1. Other draws go by their number alone: where shapes agree, so do values.

    Args:
        seed: of all draws.
        still: numbers of draws, from 0, of which a normal one is given its mean and a uniform one its middle:
            see `unlike`.

    Attributes:
        drawn: of every draw what it is, and its shape.
        odds: the probabilities that a model computes and draws by; of these a draw alone shows little.
    """

    def __init__(self, seed: int, *, still: Collection[int] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seed = seed
        self.still = still
        self.draws = 0  # the calls that did draw something
        self.drawn: list[tuple[str, tuple[int, ...]]] = []
        self.odds: list[Tensor] = []

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
        number = len(self.drawn)
        if func in _ODDS:
            odds = args[_ODDS[func]].clone()
            self.odds.append(odds / odds.sum(-1, keepdim=True) if func is _aten.multinomial.default else odds)
        before = torch.default_generator.manual_seed(1_000_003 * self.seed + number + 1).get_state()
        out = func(*args, **(kwargs or {}))
        self.draws += not torch.equal(torch.get_rng_state(), before)
        name = func.overloadpacket.__name__.strip("_")
        self.drawn.append((name, tuple(getattr(out, "shape", ()))))
        if isinstance(out, Tensor):
            if name == "bernoulli":
                return out.fill_(1)
            if number in self.still:
                return _stilled(out, name, args, kwargs or {})
        return out


def _stilled(out: Tensor, name: str, args: Any, kwargs: Any) -> Tensor:
    if name in ("randn", "randn_like"):
        return out.zero_()
    if name in ("rand", "rand_like"):
        return out.fill_(0.5)
    if name == "normal" and all(isinstance(a, int | float) for a in args[1:]):
        return out.fill_(args[1] if len(args) > 1 else kwargs.get("mean", 0.0))
    if name == "uniform":
        bounds = [*args[1:3], 0.0, 1.0][:2] if len(args) != 2 else [args[1], 1.0]
        return out.fill_(sum(bounds) / 2)
    return out


def unlike(one: SameChance, other: SameChance) -> Collection[int]:
    """The numbers of the draws that cannot be the same in two models, as noise over hidden units cannot.

    Of other shapes, that is; all of them where one model draws more often, as it is not known which is which.
    """
    if len(one.drawn) != len(other.drawn):
        return range(max(len(one.drawn), len(other.drawn)))
    return {n for n, (a, b) in enumerate(zip(one.drawn, other.drawn, strict=True)) if a != b}
