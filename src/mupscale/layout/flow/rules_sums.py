"""Rules of the operators that sum over dims, or look dims up and write them by index.

They know which dims a product contracts, what a norm, a reduction or a pooling leaves of its input, and that
a dim that is looked up means something by its index.
"""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor

from mupscale.layout.flow.dispatch import Call, Dims, fresh, pointwise, rule
from mupscale.layout.flow.units import Conflict, cut, flat, regroup, size_of, unify


def _contract(call: Call, a: Tensor, i: int, b: Tensor, j: int) -> None:
    unify(call.dims_of(a)[i], call.dims_of(b)[j])
    call.contract((a, i), (b, j))


@rule("mm bmm matmul mv dot vdot")
def _mm(call: Call) -> Dims:
    a, b = call.args[:2]
    i, j = a.ndim - 1, max(0, b.ndim - 2)
    _contract(call, a, i, b, j)
    left, right = call.dims_of(a), call.dims_of(b)
    if a.ndim == 3 and b.ndim == 3 and a.shape[0] != 1:
        unify(left[0], right[0])
    return left[:-1] + (right[-1:] if b.ndim > 1 else [])


@rule("addmm baddbmm addmv addbmm")
def _addmm(call: Call) -> Dims:
    product = Call(call.name, call.args[1:], {}, call.out, call.dims_of, call.mark, call.place, call.summed)
    out = _mm(product)
    for i, units in enumerate(call.dims(0), start=len(out) - call.args[0].ndim):
        if call.args[0].shape[i - len(out)] != 1:
            unify(out[i], units)
    return out


@rule("linear")
def _linear(call: Call) -> Dims:
    x, weight, bias = call.args[0], call.args[1], call.get(2, "bias")
    _contract(call, x, x.ndim - 1, weight, 1)
    out = call.dims(1)[0]
    if bias is not None:
        unify(out, call.dims_of(bias)[0])
    return [*call.dims(0)[:-1], out]


@rule("convolution _convolution conv1d conv2d conv3d mkldnn_convolution")
def _convolution(call: Call) -> Dims:
    x, weight, bias = call.args[:3]
    transposed, groups = bool(call.get(6, "transposed", False)), int(call.get(8, "groups", 1))
    channels = call.dims_of(x)[-weight.ndim + 1]
    w = call.dims_of(weight)
    into, out = (w[0], w[1]) if transposed else (w[1], w[0])
    if groups == 1:
        unify(channels, into)
        call.contract((weight, 0 if transposed else 1))
    elif transposed:
        # The weight has the groups on the side of its inputs.
        unify(channels, into)
        group, each = regroup(into, (groups, size_of(into) // groups))
        call.contract((weight, 0), part=each)
        out = (*group, *out)
    else:
        # Each group by itself; depthwise, a filter or a few for every channel.
        group, each = regroup(channels, (groups, size_of(channels) // groups))
        own, outs = regroup(out, (groups, size_of(out) // groups))
        unify(group, own)
        unify(each, into)
        if each:
            call.contract((weight, 1))
        out = (*own, *outs)
    if bias is not None:
        unify(out, call.dims_of(bias)[0])
    dims = call.new("positions")
    for k in range(1, weight.ndim - 1):
        stride, padding = (sizes[-k] if len(sizes) > 1 else sizes[0] for sizes in call.args[3:5])
        if (weight.shape[-k], stride, padding) == (1, 1, 0):  # place by place
            dims[-k] = call.dims_of(x)[-k]
        else:
            call.fix(call.dims_of(x)[-k], "a convolution runs over it")
    if call.out.ndim == weight.ndim:
        dims[0] = call.dims_of(x)[0]
    dims[-weight.ndim + 1] = out
    return dims


@rule("_trilinear")
def _trilinear(call: Call) -> Dims:
    """Three factors, each with dims of size 1 put in, multiplied and summed over some dims: `nn.Bilinear`."""
    factors, summed = call.args[:3], call.args[6]
    ndim = factors[0].ndim + len(call.args[3])
    out: Dims = [() for _ in range(ndim)]
    for at in range(ndim):
        where = []
        for tensor, put_in in zip(factors, call.args[3:6], strict=True):
            if at not in put_in:
                where.append((tensor, at - sum(i < at for i in put_in)))
        each = [call.dims_of(tensor)[i] for tensor, i in where]
        for other in each[1:]:
            unify(each[0], other)
        out[at] = each[0]
        if at in summed:
            call.contract(*where)
    return [units for at, units in enumerate(out) if at not in summed]


@rule("_cdist_forward cdist _euclidean_dist")
def _distance(call: Call) -> Dims:
    a, b = call.dims(0), call.dims(1)
    unify(a[-1], b[-1])
    call.summed += a[-1]
    return [*a[:-1], b[-2]]


@rule("native_layer_norm layer_norm _fused_rms_norm rms_norm")
def _layer_norm(call: Call) -> Any:
    dims = call.dims(0)
    for tensor in call.tensors[1:]:
        for i, units in enumerate(call.dims_of(tensor), start=len(dims) - tensor.ndim):
            unify(dims[i], units)
    return [dims] if isinstance(call.out, tuple) else dims


@rule("_weight_norm_interface")
def _weight_norm(call: Call) -> list[Dims]:
    """g · v / ‖v‖, the norm over all dims of v but one."""
    dims = call.dims(0)
    kept = call.axis(call.get(2, "dim", 0))
    call.summed += [u for i, units in enumerate(dims) if i != kept for u in units]
    unify(call.dims(1)[kept], dims[kept])
    return [dims, call.dims(1)]


@rule("native_group_norm group_norm")
def _group_norm(call: Call) -> Any:
    groups = call.args[6] if call.name == "native_group_norm" else call.args[1]
    return _channel_norm(call, int(groups))


@rule(
    "native_batch_norm batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training "
    "instance_norm cudnn_batch_norm _batch_norm_with_update _batch_norm_no_update"
)
def _channel_norm(call: Call, groups: int = 1) -> Any:
    dims = call.dims(0)
    each = size_of(dims[1]) // groups
    try:
        regroup(dims[1], (groups, each))
    except Conflict:
        # The seam of a concatenation lies inside a group: what is finer than both may grow.
        seams = [segment.size for unit in flat(dims[1]) for segment in unit.segments]
        inner = math.gcd(each, *seams)
        call.fix(
            regroup(dims[1], (groups * each // inner, inner))[0], "groups of a norm cross the seams of it"
        )
    for tensor in call.tensors[1:]:
        if tensor.ndim == 1 and tensor.shape[0] == call.args[0].shape[1]:
            unify(dims[1], call.dims_of(tensor)[0])
    return [dims] if isinstance(call.out, tuple) else dims


@rule(
    "_scaled_dot_product_flash_attention_for_cpu scaled_dot_product_attention "
    "_scaled_dot_product_attention_math _scaled_dot_product_attention_math_for_mps "
    "_scaled_dot_product_fused_attention_overrideable"
)
def _attention(call: Call) -> Any:
    query, key = call.args[:2]
    _contract(call, query, query.ndim - 1, key, key.ndim - 1)
    q, k, v = (call.dims(i) for i in range(3))
    unify(k[-2], v[-2])
    out = [*q[:-1], v[-1]]
    for i in range(len(q) - 2):
        unify(k[i], v[i])
        if 1 not in (query.shape[i], key.shape[i]):
            # Of grouped queries, every so many share a key.
            unify(regroup(q[i], (key.shape[i], query.shape[i] // key.shape[i]))[0], k[i])
        elif query.shape[i] == 1:
            out[i] = k[i]
    scores = [*out[:-1], k[-2]]
    for mask in [t for t in call.tensors[3:] if t.ndim <= len(scores)]:
        for i, units in enumerate(call.dims_of(mask), start=-mask.ndim):
            if mask.shape[i] != 1:
                call.same(scores[i], units)
    return [out] if isinstance(call.out, tuple) else out


@rule(
    "sum mean amax amin prod var std norm linalg_vector_norm logsumexp any all argmax argmin max min "
    "var_mean std_mean median nansum count_nonzero aminmax nanmean"
)
def _reduce(call: Call) -> Any:
    dims = call.dims(0)
    which = call.get(2 if call.name in ("norm", "linalg_vector_norm") else 1, "dim")
    if isinstance(which, Tensor):
        return pointwise(call)  # the maximum of two tensors
    which = range(len(dims)) if which is None or which == [] else [which] if isinstance(which, int) else which
    gone = {call.axis(d) for d in which} if dims else set()
    first = call.out[0] if isinstance(call.out, tuple | list) else call.out
    for d in gone:
        call.summed += dims[d]
        if call.name.startswith("arg"):
            call.fix(dims[d], f"{call.name} picks from it")
        elif call.name in ("prod", "logsumexp"):
            call.fix(dims[d], f"{call.name} runs over it")
    kept = [() if i in gone else d for i, d in enumerate(dims)]
    if first.ndim != len(dims):
        kept = [d for i, d in enumerate(dims) if i not in gone]
    return [kept for _ in call.out] if isinstance(call.out, tuple | list) else kept


@rule(
    "max_pool1d max_pool2d max_pool3d max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d "
    "avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d "
    "_adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d fractional_max_pool2d "
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d "
    "upsample_trilinear3d upsample_bicubic2d _upsample_nearest_exact1d _upsample_nearest_exact2d "
    "_upsample_bilinear2d_aa _upsample_bicubic2d_aa grid_sampler_2d grid_sampler_3d"
)
def _pool(call: Call) -> Any:
    out = call.out[0] if isinstance(call.out, tuple) else call.out
    places = int(re.findall(r"(\d)d", call.name)[0])
    for units in call.dims(0)[-places:]:
        call.fix(units, f"{call.name} runs over it")
    dims = [*call.dims(0)[:-places], *call.new("positions", out)[-places:]]
    return [dims] * len(call.out) if isinstance(call.out, tuple) else dims


@rule("_fft_r2c _fft_c2r _fft_c2c")
def _fourier(call: Call) -> Dims:
    """Frequencies in place of places."""
    dims, new = list(call.dims(0)), call.new("frequencies or positions")
    for at in map(call.axis, call.args[1]):
        call.fix(dims[at], "a Fourier transform runs over it")
        dims[at] = new[at]
    return dims


@rule("embedding")
def _embedding(call: Call) -> Dims:
    weight, index = call.dims(0), call.dims(1)
    call.fix(weight[0], "it is looked up by index")
    return [*index, *weight[1:]]


@rule("_embedding_bag _embedding_bag_forward_only")
def _embedding_bag(call: Call) -> list[Dims]:
    weight = call.dims(0)
    call.fix(weight[0], "it is looked up by index")
    bags, *rest = (call.new("bags", out) for out in call.out)
    return [[bags[0], weight[1]], *rest]


@rule("renorm")
def _renorm(call: Call) -> Dims:
    kept = call.axis(call.args[2])
    call.summed += [u for i, units in enumerate(call.dims(0)) if i != kept for u in units]
    return call.dims(0)


@rule("embedding_renorm")
def _embedding_renorm(call: Call) -> Dims:
    call.fix(call.dims(0)[1], "rows are cut to a fixed norm, and copies have a larger one")
    return call.dims(0)


@rule(
    "linalg_matrix_exp matrix_exp linalg_inv_ex _linalg_det _linalg_slogdet linalg_qr _linalg_svd "
    "_linalg_eigh linalg_householder_product linalg_lu_factor_ex _linalg_solve_ex linalg_cholesky_ex "
    "linalg_solve_triangular"
)
def _whole_matrix(call: Call) -> Any:
    """A matrix of copies is singular."""
    for tensor in call.tensors:
        for units in call.dims_of(tensor)[-2:]:
            call.fix(units, f"{call.name} takes a matrix of it")
    outs = call.out if isinstance(call.out, tuple) else (call.out,)
    found = [fresh(out, f"it comes out of {call.name}") for out in outs]
    return found if isinstance(call.out, tuple) else found[0]


@rule("index_select")
def _index_select(call: Call) -> Dims:
    dims = list(call.dims(0))
    at = call.axis(call.args[1])
    call.fix(dims[at], "it is looked up by index")
    dims[at] = call.dims_of(call.args[2])[0] if call.args[2].ndim else ()
    return dims


@rule("gather take_along_dim")
def _gather(call: Call) -> Dims:
    source, index = call.args[0], call.args[2]
    at = call.axis(call.args[1])
    dims = list(call.dims_of(index))
    for i, units in enumerate(call.dims(0)):
        if i != at and source.shape[i] == index.shape[i]:
            unify(dims[i], units)
    call.fix(call.dims(0)[at], "it is looked up by index")
    return dims


@rule("scatter scatter_ scatter_add scatter_add_ scatter_reduce scatter_reduce_")
def _scatter(call: Call) -> Dims:
    dims = call.dims(0)
    at = call.axis(call.args[1])
    call.fix(dims[at], "it is written by index")
    source = call.get(3, "src")
    if isinstance(source, Tensor):
        for i, units in enumerate(call.dims_of(source)):
            if i != at and source.shape[i] == call.args[0].shape[i]:
                unify(dims[i], units)
    return dims


@rule("index_add index_add_ index_copy index_copy_")
def _index_add(call: Call) -> Dims:
    dims, at = call.dims(0), call.axis(call.args[1])
    for i, units in enumerate(call.dims(3)):
        if i != at:
            unify(dims[i], units)
    return dims


def _indexed(call: Call) -> tuple[list[int], int, int]:
    """Of advanced indexing: the dims that stay, where the result of the indices goes, how many there are."""
    indices = list(call.args[1]) + [None] * call.args[0].ndim
    at, kept = 0, []
    used: list[int] = []
    for index in indices:
        if at >= call.args[0].ndim:
            break
        if index is None:
            kept.append(at)
            at += 1
        else:
            width = index.ndim if index.dtype in (torch.bool, torch.uint8) else 1
            used += range(at, at + width)
            at += width
    together = used == list(range(used[0], used[-1] + 1)) if used else True
    return kept, (used[0] if together and used else 0), call.args[0].ndim


@rule("index _unsafe_index")
def _index(call: Call) -> Dims:
    dims, (kept, at, ndim) = call.dims(0), _indexed(call)
    index = [t for t in call.args[1] if t is not None]
    if len(index) == 1 and index[0].numel() == 1 and index[0].dtype not in (torch.bool, torch.uint8):
        # One index is a slice of length one.
        gone = next(i for i in range(ndim) if i not in kept)
        at_index = int(index[0]) % call.args[0].shape[gone]
        cut(dims[gone], at_index, at_index + 1)
        rest = [dims[i] for i in kept]
        return [*rest[:at], *[()] * index[0].ndim, *rest[at:]]
    for i in range(ndim):
        if i not in kept:
            call.fix(dims[i], "it is looked up by index")
    new = call.out.ndim - len(kept)
    middle = call.new("what was looked up")[at : at + new]
    if len(index) == 1 and index[0].dtype not in (torch.bool, torch.uint8):
        middle = call.dims_of(index[0])
    rest = [dims[i] for i in kept]
    return [*rest[:at], *middle, *rest[at:]]


@rule("index_put index_put_ _index_put_impl_ _unsafe_index_put")
def _index_put(call: Call) -> Dims:
    dims, (kept, at, _) = call.dims(0), _indexed(call)
    values = call.args[2]
    behind = [i for i in kept if i >= at]
    for k, i in enumerate(reversed(behind), start=1):
        if values.ndim >= k and values.shape[-k] == call.args[0].shape[i] != 1:
            unify(dims[i], call.dims_of(values)[-k])
    return dims
