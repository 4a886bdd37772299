"""Rules of the operators that keep dims or rearrange them, put tensors together or make new ones.

They know what becomes of a dim when it is viewed, moved, cut, repeated, padded or put beside another; nothing
is summed over here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from mupscale.layout.flow.dispatch import Call, Dims, fresh, pointwise, rule
from mupscale.layout.flow.units import Conflict, Unit, cut, regroup, row, size_of, unify


@rule(
    "alias clone detach _to_copy contiguous lift_fresh lift native_dropout dropout flip roll triu tril "
    "zeros_like ones_like empty_like full_like rand_like randn_like rsub isin bucketize nan_to_num "
    "resolve_conj resolve_neg view_as_real_copy _conj masked_scatter empty_permuted fill fill_ zero_ "
    "normal_ uniform_ bernoulli_ exponential_ as_strided_ hardswish log_sigmoid_forward"
)
def _same(call: Call) -> Dims | None:
    return call.dims(0) if isinstance(call.args[0], Tensor) else None


rule("polar floor_divide copy_ copy where masked_fill masked_fill_ addcmul lerp addcdiv _prelu_kernel")(
    pointwise
)


@rule("_softmax softmax _safe_softmax")
def _softmax(call: Call) -> Dims:
    """What sums to one over copies is that much smaller, and copies of the rest."""
    dims = call.dims(0)
    call.summed += dims[call.axis(call.get(1, "dim", -1))] if dims else ()
    return dims


@rule("_log_softmax log_softmax cumsum cumprod logcumsumexp sort argsort")
def _along(call: Call) -> Any:
    dims = call.dims(0)
    dim = call.get(1, "dim", -1)
    if not isinstance(dim, int) or isinstance(dim, bool):
        dim = call.get(2, "dim", -1)
    if call.args[0].ndim:
        call.fix(dims[call.axis(dim)], f"{call.name.strip('_')} runs over it")
    return [dims, dims] if call.name == "sort" else dims


@rule("topk kthvalue mode")
def _topk(call: Call) -> list[Dims]:
    dims = list(call.dims(0))
    at = call.axis(call.get(2, "dim", -1))
    call.fix(dims[at], f"{call.name} picks from it")
    dims[at] = call.new("what was picked", call.out[0])[at]
    return [dims, dims]


@rule("view _unsafe_view reshape _reshape_alias unflatten")
def _view(call: Call) -> Dims:
    """Dims that are as large together go together; where these do not fit, the others are kept."""
    dims, shape = call.dims(0), list(call.args[0].shape)
    found: Dims = []
    start = 0
    for stop, sizes in _blocks(shape, list(call.out.shape)):
        units = tuple(u for each in dims[start:stop] for u in each)
        try:
            found += regroup(units, sizes)
        except Conflict:
            call.fix(units, f"{call.name} cuts or regroups it")
            found += [(Unit(n, "a view cuts through it"),) if n != 1 else () for n in sizes]
        start = stop
    return found


def _blocks(shape: list[int], other: list[int]) -> Iterator[tuple[int, list[int]]]:
    """The least runs of dims of one shape that hold as much as a run of the other: its end, and that run."""
    i = j = 0
    while i < len(shape) or j < len(other):
        start, left, right = j, 1, 1
        while True:
            if left <= right and i < len(shape):
                left, i = left * shape[i], i + 1
            elif j < len(other):
                right, j = right * other[j], j + 1
            else:
                break
            if left == right:
                break
        yield i, other[start:j]


@rule("permute")
def _permute(call: Call) -> Dims:
    dims = call.dims(0)
    return [dims[i] for i in call.args[1]]


@rule("transpose transpose_ swapaxes")
def _transpose(call: Call) -> Dims:
    dims = list(call.dims(0))
    i, j = call.axis(call.args[1]), call.axis(call.args[2])
    dims[i], dims[j] = dims[j], dims[i]
    return dims


@rule("t t_ numpy_T mT")
def _t(call: Call) -> Dims:
    return list(reversed(call.dims(0)))


@rule("unsqueeze unsqueeze_")
def _unsqueeze(call: Call) -> Dims:
    dims = list(call.dims(0))
    dims.insert(call.axis(call.args[1], call.args[0].ndim + 1), ())
    return dims


@rule("squeeze squeeze_")
def _squeeze(call: Call) -> Dims:
    which = call.get(1, "dim")
    which = range(call.args[0].ndim) if which is None else [which] if isinstance(which, int) else which
    gone = {call.axis(d) for d in which if call.args[0].shape[d] == 1}
    return [d for i, d in enumerate(call.dims(0)) if i not in gone]


@rule("expand")
def _expand(call: Call) -> Dims:
    out, narrow = fresh(call.out), call.args[0]
    for i, units in enumerate(call.dims(0), start=call.out.ndim - narrow.ndim):
        if narrow.shape[i - call.out.ndim] != 1:
            out[i] = units
    return out


@rule("repeat tile")
def _repeat(call: Call) -> Dims:
    out, narrow = [], call.args[0]
    for i, n in enumerate(call.out.shape):
        at = i - call.out.ndim + narrow.ndim
        units = call.dims(0)[at] if at >= 0 else ()
        times = n // size_of(units)
        out.append((*((Unit(times),) if times > 1 else ()), *units))
    return out


@rule("repeat_interleave")
def _repeat_interleave(call: Call) -> Dims | None:
    if len(call.args) < 3 or not isinstance(call.args[0], Tensor) or not isinstance(call.args[1], int):
        return None
    dims = list(call.dims(0))
    at = call.axis(call.args[2])
    dims[at] = (*dims[at], Unit(call.args[1]))
    return dims


@rule("slice")
def _slice(call: Call) -> Dims:
    dims, shape = list(call.dims(0)), call.args[0].shape
    at = call.axis(call.get(1, "dim", 0))
    n, step = shape[at], call.get(4, "step", 1)
    start = call.get(2, "start") or 0
    start = max(0, min(n, start + n if start < 0 else start))
    if step == 1:
        dims[at] = cut(dims[at], start, start + call.out.shape[at])
    elif n % step == 0 and n // step == call.out.shape[at]:
        dims[at] = regroup(dims[at], (n // step, step))[0]
    else:
        dims[at] = fresh(call.out, "sliced")[at]
    return dims


@rule("split split_with_sizes unsafe_split chunk unsafe_chunk tensor_split")
def _split(call: Call) -> list[Dims]:
    dims = list(call.dims(0))
    at = call.axis(call.get(2, "dim", 0))
    whole, start, found = dims[at], 0, []
    for piece in call.out:
        stop = start + piece.shape[at]
        found.append([*dims[:at], cut(whole, start, stop), *dims[at + 1 :]])
        start = stop
    return found


@rule("select")
def _select(call: Call) -> Dims:
    dims, tensor = list(call.dims(0)), call.args[0]
    units = dims.pop(call.axis(call.args[1]))
    # Of whole numbers that are all alike, as of kinds of tokens made in a tensor's shape, any will do.
    if tensor.is_floating_point() or tensor.is_complex() or not _alike(tensor):
        call.fix_once_used(units, "one index of it is selected")
    return dims


@rule("unbind")
def _unbind(call: Call) -> list[Dims]:
    dims = list(call.dims(0))
    call.fix(dims.pop(call.axis(call.get(1, "dim", 0))), "it is split into single entries")
    return [dims for _ in call.out]


@rule("cat concat")
def _cat(call: Call) -> Dims:
    parts = [t for t in call.args[0] if t.numel() or t.ndim > 1]
    at = call.axis(call.get(1, "dim", 0), call.out.ndim)
    out = list(call.dims_of(parts[0]))
    for part in parts[1:]:
        for i, units in enumerate(call.dims_of(part)):
            if i != at:
                unify(out[i], units)
    out[at] = row([call.dims_of(p)[at] if p.shape[at] != 1 else (Unit(1),) for p in parts if p.shape[at]])
    return out


@rule("stack")
def _stack(call: Call) -> Dims:
    at = call.axis(call.get(1, "dim", 0), call.out.ndim)
    out = list(call.dims_of(call.args[0][0]))
    for part in call.args[0][1:]:
        for one, other in zip(out, call.dims_of(part), strict=True):
            unify(one, other)
    out.insert(at, fresh(call.out, "tensors are stacked along it")[at])
    return out


@rule(
    "constant_pad_nd pad reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d "
    "replication_pad2d replication_pad3d"
)
def _pad(call: Call) -> Dims:
    dims, pads = list(call.dims(0)), list(call.args[1])
    for k in range(len(pads) // 2):
        before, after, at = pads[2 * k], pads[2 * k + 1], len(dims) - 1 - k
        units = dims[at] if call.args[0].shape[at] != 1 else (Unit(1),)
        if before < 0 or after < 0:
            start, stop = max(0, -before), call.args[0].shape[at] - max(0, -after)
            units = cut(units, start, stop)
        around = [(Unit(n, "padding"),) if n > 0 else None for n in (before, after)]
        dims[at] = row([p for p in (around[0], units, around[1]) if p is not None])
    return dims


@rule("glu")
def _glu(call: Call) -> Dims:
    dims, at = list(call.dims(0)), call.axis(call.get(1, "dim", -1))
    half = call.args[0].shape[at] // 2
    value, gate = cut(dims[at], 0, half), cut(dims[at], half, 2 * half)
    unify(value, gate)
    dims[at] = value
    return dims


@rule("pixel_shuffle pixel_unshuffle")
def _pixel_shuffle(call: Call) -> Dims:
    """Channels, each of so many places in a row and column, as places; and back."""
    *lead, channels, _, _ = call.dims(0)
    places = (Unit(int(call.args[1]) ** 2, "it holds positions"),)
    if call.name == "pixel_unshuffle":
        channels = (*channels, *places)
    else:
        channels, inside = regroup(channels, (size_of(channels) // size_of(places), size_of(places)))
        call.fix(inside, "it holds positions")
    return [*lead, channels, *call.new("positions")[-2:]]


@rule("channel_shuffle native_channel_shuffle")
def _channel_shuffle(call: Call) -> Dims:
    """So many groups, and the channels of each, in the other order."""
    batch, channels, *places = call.dims(0)
    groups, each = regroup(channels, (int(call.args[1]), size_of(channels) // int(call.args[1])))
    return [batch, (*each, *groups), *places]


@rule("im2col col2im")
def _columns(call: Call) -> Dims:
    """Every channel with the places around each place, as columns; and back."""
    *lead, channels = call.dims(0)[: -2 if call.name == "im2col" else -1]
    size = math.prod(call.args[1 if call.name == "im2col" else 2])
    if call.name == "im2col":
        return [*lead, (*channels, Unit(size, "it holds positions")), *call.new("positions")[-1:]]
    channels, inside = regroup(channels, (size_of(channels) // size, size))
    call.fix(inside, "it holds positions")
    return [*lead, channels, *call.new("positions")[-2:]]


@rule("unfold")
def _unfold(call: Call) -> Dims:
    dims, at = list(call.dims(0)), call.axis(call.args[1])
    new = call.new("positions")
    return [*(new[i] if i == at else d for i, d in enumerate(dims)), new[-1]]


@rule("view_as_complex")
def _view_as_complex(call: Call) -> Dims:
    return call.dims(0)[:-1]


@rule("view_as_real")
def _view_as_real(call: Call) -> Dims:
    return [*call.dims(0), (Unit(2, "real and imaginary part"),)]


@rule("diagonal")
def _diagonal(call: Call) -> Dims:
    dims = call.dims(0)
    i, j = call.axis(call.get(2, "dim1", 0)), call.axis(call.get(3, "dim2", 1))
    kept = [d for k, d in enumerate(dims) if k not in (i, j)]
    return [*kept, fresh(call.out, "a diagonal")[-1]]


@rule("eye")
def _eye(call: Call) -> Dims:
    """Maps duplicates to themselves: as a map it is a duplicate, though not as numbers."""
    rows, columns = fresh(call.out)
    return [rows, rows if call.out.shape[0] == call.out.shape[1] else columns]


@rule("arange linspace range randint randperm tril_indices triu_indices scalar_tensor hann_window")
def _counted(call: Call) -> Dims:
    return fresh(call.out, f"{call.name} in {call.place} counts along it")


def _alike(tensor: Tensor) -> bool:
    return tensor.numel() > 0 and bool((tensor == tensor.flatten()[0]).all())
