"""Inputs that show something: drawn in the shape, dtype and range of given ones, which may be all alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mupscale.models.calls import Call, result_tensors


@dataclass(frozen=True)
class Drawn:
    """Inputs to prove by.

    Attributes:
        call: drawn ones; the given ones where the model takes no others.
        shows_nothing: why a run on them shows nothing about some weights; None where it shows all.
    """

    call: Call
    shows_nothing: str | None


def drawn_like(model: nn.Module, given: Call, *, seed: int = 0) -> Drawn:
    """Draw inputs for ``model``, which is run in the mode that it is in.

    Floating-point numbers are drawn from the range of the given ones, or about them where these are all
    alike; indices from the rows of the tables that they look up. What the model does not take (it raises, or
    gives no finite numbers) is kept as it was given: first indices and masks, then everything.

    >>> from torch import nn
    >>> zeros = torch.zeros(2, 5, dtype=torch.long)
    >>> ids = drawn_like(nn.Embedding(30, 8), Call.of(zeros)).call.args[0]
    >>> bool(ids.max() > 0), bool(ids.max() < 30)
    (True, True)
    """
    seen = _look(model, given)
    draw = torch.Generator().manual_seed(seed)
    if seen is None:  # they do not run: said where they are run
        return Drawn(given, None)

    def anew(value: Tensor) -> Tensor:
        if value.is_floating_point() or value.is_complex():
            return _real(value, draw)
        return _whole(value, seen.rows.get(_key(value), seen.fewest), draw)

    def floats(value: Tensor) -> Tensor:
        return anew(value) if value.is_floating_point() or value.is_complex() else value

    for change in (anew, floats):
        call = given.mapped(change)
        if call is not given and (again := _look(model, call)) is not None and again.finite:
            return Drawn(call, _why(call, again))
    return Drawn(given, _why(given, seen))


def _why(call: Call, seen: _Seen) -> str | None:
    tensors = [t for t in call.tensors if t.numel()]
    if tensors and all(t.numel() > 1 and bool((t == t.flatten()[0]).all()) for t in tensors):
        return "the inputs are all alike, and the module takes no others"
    return seen.single


def _real(value: Tensor, draw: torch.Generator) -> Tensor:
    """Uniform in the range of the values; about the value where there is only one; normal about zero."""
    if value.is_complex():
        return torch.view_as_complex(_real(torch.view_as_real(value), draw).contiguous())
    if not value.numel() or not value.isfinite().all():  # masks of −∞
        return value
    low, high = value.min().item(), value.max().item()
    if low == high:
        low, high = sorted((0.5 * low, 1.5 * low))
    if low == high:
        return torch.randn(value.shape, generator=draw, dtype=value.dtype)
    return low + (high - low) * torch.rand(value.shape, generator=draw, dtype=value.dtype)


def _whole(value: Tensor, rows: int | None, draw: torch.Generator) -> Tensor:
    if value.dtype == torch.bool or not value.numel():
        return value
    low, high = int(value.min()), int(value.max())
    if low == high:
        low, high = (min(low, 0), max(high, 0)) if rows is None else (0, rows - 1)
    return torch.randint(low, high + 1, value.shape, generator=draw, dtype=value.dtype)


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


_SINGLE = (
    "a softmax (attention, a router) runs over a single entry, which says nothing about what it weighs; give "
    "inputs of several positions"
)


@dataclass
class _Seen:
    """What one run showed: the rows of the tables that each index looks up, and whether it all is finite."""

    rows: dict[int, int] = field(default_factory=dict)
    single: str | None = None
    finite: bool = True

    @property
    def fewest(self) -> int | None:
        return min(self.rows.values(), default=None)


class _Look(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, seen: _Seen) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = seen
        # A softmax that is written out: exponentials, and their sums. They are kept, as a key may return.
        self.powers: dict[int, Tensor] = {}
        self.sums: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        self._look_up(name, args)
        out = func(*args, **kwargs)
        self._weigh(name, args, kwargs, out)
        return out

    def _look_up(self, name: str, args: Any) -> None:
        rows = self.seen.rows
        if name == "embedding":
            rows[_key(args[1])] = min(args[0].shape[0], rows.get(_key(args[1]), args[0].shape[0]))
        elif name == "index_select":
            rows[_key(args[2])] = args[0].shape[args[1]]
        elif name == "index":
            for at, index in enumerate(args[1]):
                if isinstance(index, Tensor) and index.dtype not in (torch.bool, torch.uint8):
                    rows.setdefault(_key(index), args[0].shape[at])

    def _weigh(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        if name in ("_softmax", "_safe_softmax"):
            self._count(out > 0, args[1])
        elif name == "_log_softmax":
            self._count(out.exp() > 0, args[1])
        elif name == "logsumexp":
            self._count(args[0].exp() != 0, args[1])
        elif name.startswith("_scaled_dot_product"):  # gives no weights; of them the mask tells
            bias, mask = args[1].new_zeros(args[1].shape[-2]), kwargs.get("attn_mask")
            self._count((bias if mask is None else bias + mask).softmax(-1) > 0, -1)
        elif name == "exp":
            self.powers[_key(out)] = out
        elif name == "sum" and _key(args[0]) in self.powers:
            self.sums[_key(out)] = out
        elif name == "div" and isinstance(args[1], Tensor) and _key(args[1]) in self.sums:
            self._count((out != 0) & (out != 1), [*range(out.ndim)], most=0)

    def _count(self, weights: Tensor, dim: int | list[int], most: int = 1) -> None:
        """Look at where there are weights: in no row more of them?"""
        if weights.numel() and bool((weights.sum(dim) <= most).all()):
            self.seen.single = _SINGLE


def _look(model: nn.Module, call: Call) -> _Seen | None:
    """What a run shows; None where the model does not run."""
    seen = _Seen()
    try:
        with torch.no_grad(), _Look(seen):
            seen.finite = all(bool(t.isfinite().all()) for t in result_tensors(call(model)))
    except Exception:  # whatever the model's own code raises
        return None
    return seen
