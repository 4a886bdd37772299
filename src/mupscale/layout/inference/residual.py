"""Which parameters write to the residual stream: what a layer adds is proportional to them.

Found by trying: a tiny model runs with one parameter doubled, and tripled, at a time. A writer's share of a
term is what doubling it adds, where tripling adds that twice and no term before it in the layer moves; the
writers of a term are the fewest whose shares are all of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

from mupscale.errors import GrowthError
from mupscale.layout.depth import renumbered
from mupscale.layout.flow.stream import Term, terms_of
from mupscale.models.calls import Call
from mupscale.notation.axes import Axes

_SAME = 1e-9  # of float64, relative to a term
STREAM = "d_model"  # the axis of the residual stream

Writer = tuple[str, float]  # a parameter, and the constant that the model adds to it before use


def writers(model: nn.Module, depth: int, axes: Mapping[str, Axes], call: Call) -> dict[str, float]:
    """The parameters that write to a (tiny) model's residual stream, each with what is added before its use.

    Args:
        model: in float64, its weights away from zeros and ones; changed and changed back.

    Raises:
        GrowthError: there is no residual stream, or a term in it is proportional to no parameters.
    """
    terms = terms_of(model, depth, call)
    found: dict[str, float] = {}
    for layer in range(depth):
        own = {term: value for term, value in terms.items() if term[0] == layer}
        shares = _shares(model, depth, _candidates(model, axes, layer), call, own)
        for term, value in own.items():
            chosen = _fewest([(w, s[term]) for w, s in shares if term in s], value)
            if chosen is None:
                raise GrowthError(
                    f"layer {layer}: what it adds to the residual stream is proportional to none of its "
                    "weights, so that it cannot be made smaller as layers become more"
                )
            found |= dict(chosen)
    return found


def _candidates(model: nn.Module, axes: Mapping[str, Axes], layer: int) -> list[Writer]:
    """A layer's parameters whose outputs are the stream's channels: the last matrices first, then vectors."""
    names = [
        name
        for name, _ in model.named_parameters()
        if renumbered(name, 0)[1] == layer
        and any(STREAM in dim.names for dim in axes[name].dims if not dim.contracted)
    ]
    matrices = [n for n in reversed(names) if any(dim.contracted for dim in axes[n].dims)]
    vectors = [n for n in names if n not in matrices]
    return [(name, 0.0) for name in (*matrices, *vectors)] + [(name, 1.0) for name in vectors]


def _shares(
    model: nn.Module, depth: int, candidates: Sequence[Writer], call: Call, own: Mapping[Term, Tensor]
) -> list[tuple[Writer, dict[Term, Tensor]]]:
    """Of every candidate its share of the first term that it moves, where that is proportional to it."""
    found = []
    for name, offset in candidates:
        param = model.get_parameter(name)
        before = param.detach().clone()
        more = []
        try:
            for factor in (2.0, 3.0):
                param.data.copy_((before + offset) * factor - offset)
                terms = terms_of(model, depth, call)
                more.append({term: terms[term] - value for term, value in own.items()})
        finally:
            param.data.copy_(before)
        first = next((t for t in own if not _is_small(more[0][t], own[t])), None)
        if first is not None and _is_small(more[1][first] - 2 * more[0][first], own[first]):
            found.append(((name, offset), {first: more[0][first]}))
    return found


def _fewest(shares: Sequence[tuple[Writer, Tensor]], term: Tensor) -> Sequence[Writer] | None:
    """The fewest writers whose shares are the whole term, of as few those that come first."""
    for several in _subsets(shares):
        names = [name for (name, _), _ in several]
        if len({*names}) == len(names) and _is_small(sum(s for _, s in several) - term, term):
            return [writer for writer, _ in several]
    return None


def _subsets(
    shares: Sequence[tuple[Writer, Tensor]],
) -> Iterator[tuple[tuple[Writer, Tensor], ...]]:
    for size in range(1, min(len(shares), _MOST) + 1):
        yield from combinations(shares, size)


_MOST = 6  # writers of one term: attention, an MLP beside it, shared experts, and their biases


def _is_small(difference: Tensor, term: Tensor) -> bool:
    return bool(difference.abs().max() <= _SAME * term.abs().max() + torch.finfo(term.dtype).tiny)
