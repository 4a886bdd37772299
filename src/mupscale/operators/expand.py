"""Old weights as they are, new units beside them that nothing sees yet: the function is kept, nothing copied.

An axis is one of two kinds. Along a *silent* axis, the one over which a norm averages (d_model), new channels
hold zeros: what writes to them is zero, what reads them is fresh, and the norm's gain gets √(d/d↑), since the
mean square over d↑ channels is that much smaller. Where the norm subtracts the mean, they hold the mean of
the old channels instead, which leaves it as it was, and them at zero behind the norm. Along every other axis
(d_ff, heads) new units are fresh, and what reads them into old ones is zero:

    θ↑[o, i] = θ[o, i]       o, i old
               0             o new and silent (or their mean over the old o), or i new and loud to an old o
               fresh         everywhere else, of the size that μP gives it

With λ between this and a fresh model, θ↑ = λ · expand(θ) + (1 − λ) · fresh. λ = 1 keeps the function, λ = 0
is `mupscale.init_`. Any sizes will do, fractions too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mupscale.models.copying import copied
from mupscale.models.skeletons import PreTrainedConfig, parts_of
from mupscale.notation.axes import Axes, among_zeros, pad, padded_rows
from mupscale.notation.dims import Dim, Growth, Sizes, wide_sizes
from mupscale.operators.fresh import Law, fresh_laws
from mupscale.theory.manifest import Plan


@dataclass(frozen=True)
class Norms:
    """The norms of a model that average over axes which grow.

    Attributes:
        gains: their gains, each with what the norm adds to it.
        silent: the axes.
        centred: whether they subtract the mean, as a layer norm does.
    """

    gains: Mapping[str, float]
    silent: frozenset[str]
    centred: bool

    @classmethod
    def of(cls, plan: Plan, laws: Mapping[str, Law]) -> Norms:
        """Those of a plan. A gain is a constant, one for each channel, that begins as 1, or as 0 to which the
        norm adds 1; what also has a running variance is a norm of every channel by itself.
        """
        gains = {}
        for name, scaling in plan.params.items():
            owner, _, leaf = name.rpartition(".")
            constant = name in laws and laws[name].std == 0 and laws[name].mean in (0, 1)
            vector = len(scaling.shape) == 1 and scaling.fan_in == 1 != scaling.own_copies
            if constant and vector and leaf != "bias" and f"{owner}.running_var" not in plan.layout.buffers:
                gains[name] = 1 - laws[name].mean
        silent = {axis for name in gains for axis in plan.of_narrow(name).axes.names if axis in plan.growth}
        return cls(gains, frozenset(silent), bool(gains) and _centres(plan, next(iter(gains))))

    def centres(self, name: str) -> bool:
        """Whether what a parameter writes comes to one of the norms that subtract the mean.

        Their own biases they add in the end.
        """
        owner, _, leaf = name.rpartition(".")
        return self.centred and not (
            leaf == "bias" and any(gain.rpartition(".")[0] == owner for gain in self.gains)
        )


def _centres(plan: Plan, gain: str) -> bool:
    """Whether a norm gives the same when something is added to all channels: it is tried."""
    assert plan.build_narrow is not None
    norm = copied(plan.build_narrow().get_submodule(gain.rpartition(".")[0])).to_empty(device="cpu").float()
    for tensor in (*norm.parameters(), *norm.buffers()):
        nn.init.ones_(tensor.data)
    x = torch.linspace(-1, 2, plan.of_narrow(gain).shape[0]).square()[None]
    try:
        return bool(torch.allclose(norm(x), norm(x + 1), atol=1e-3))
    except Exception:  # called in some other way; whether zeros do is for the proof to say
        return False


def expand(
    tensor: Tensor,
    axes: Axes,
    sizes: Sizes,
    growth: Growth,
    *,
    fresh: Tensor,
    silent: Collection[str],
    means: bool = False,
    gain_offset: float | None = None,
    shrink: float = 1.0,
    rows: slice | None = None,
) -> Tensor:
    """A wide parameter from a narrow one and a fresh wide one, in the precision of ``fresh``.

    Args:
        tensor: θ. Integers are only padded.
        axes: its own; of them the contracted ones are read, the others written.
        fresh: a wide parameter as `mupscale.init_` makes it.
        rows: make these rows of it alone, which ``fresh`` then has alone; see `needs_all_rows`.
        silent: the axes whose new channels hold zeros.
        means: they hold the mean of the old channels instead.
        gain_offset: of a norm's gain over a silent axis: what the norm adds to it.
        shrink: λ.

    >>> axes = Axes.parse("d_model [d_ff]")
    >>> expand(torch.ones(1, 1), axes, {"d_model": 1, "d_ff": 1}, {"d_model": 2, "d_ff": 2},
    ...        fresh=torch.full((2, 2), 5.0), silent={"d_model"}).tolist()
    [[1.0, 0.0], [0.0, 0.0]]
    """
    if not tensor.is_floating_point():
        return pad(tensor, axes, sizes, growth).clone()
    if rows is None:
        wide = pad(tensor.to(fresh.dtype), axes, sizes, growth).clone()
    else:
        mine, there, those = padded_rows(axes, sizes, growth, rows)
        narrow = tensor.index_select(0, mine.to(tensor.device)).to(fresh.dtype)
        wide = among_zeros(pad(narrow, those, sizes, growth), 0, there, len(fresh))

    def old(place: int, among: Collection[str]) -> Tensor:
        found = _within(axes.dims[place], sizes, growth, among)
        return (found[rows] if rows is not None and place == 0 else found).to(fresh)

    def is_old(among: Collection[str], *, contracted: bool) -> Tensor:
        """1 where an entry is old along these axes, read or written, else 0; of a shape that broadcasts."""
        found = fresh.new_ones([1] * tensor.ndim)
        for place, dim in enumerate(axes.dims):
            if dim.contracted == contracted:
                found = found * old(place, among).view([-1 if i == place else 1 for i in range(tensor.ndim)])
        return found

    # By products, as 0 and 1 are multiplied faster than chosen by.
    written, loud = is_old(growth, contracted=False), growth.keys() - set(silent)
    speaks = is_old(silent, contracted=False) if gain_offset is None else 1
    reads_new = (1 - is_old(growth, contracted=True)) * is_old(loud, contracted=True)
    wide.addcmul_(fresh, (1 - written) * speaks).addcmul_(fresh, written * reads_new)
    if gain_offset is not None:
        wide = (wide + gain_offset) / math.sqrt(axes.copies(growth)) - gain_offset
    elif means:
        for place, dim in enumerate(axes.dims):
            averaged = old(place, silent) == 1
            if not dim.contracted and not averaged.all():
                mean = wide.index_select(place, averaged.nonzero()[:, 0]).mean(dim=place, keepdim=True)
                along = [-1 if i == place else 1 for i in range(wide.ndim)]
                wide = torch.where(averaged.view(along), wide, mean)
    return wide if shrink == 1 else wide.mul_(shrink).add_(fresh, alpha=1 - shrink)


def needs_all_rows(axes: Axes, growth: Growth, silent: Collection[str], *, means: bool) -> bool:
    """Whether a mean over rows is taken, so that no rows can be made without the others."""
    first = axes.dims[0]
    return means and not first.contracted and any(a in silent and growth.get(a, 1) != 1 for a in first.names)


def _within(dim: Dim, sizes: Sizes, growth: Growth, axes: Collection[str]) -> Tensor:
    """1 for every index of the wide dim that is the narrow one's along some of the axes, else 0."""
    others = {axis: g for axis, g in growth.items() if axis not in axes}
    before = wide_sizes(sizes, others)
    mine = {axis: g for axis, g in growth.items() if axis in axes}
    old = torch.zeros(dim.size(wide_sizes(before, mine)))
    old[dim.places(before, mine)] = 1
    return old


def with_smaller_eps(plan: Plan) -> Plan:
    """The plan to a config by which norms add as much to a mean square as before, in proportion.

    A mean square over d↑ channels of which d hold something is d/d↑ of what it was, and so has the norm's eps
    to be. In a transformers config it is one field, for all norms of the model.
    """
    silent = Norms.of(plan, fresh_laws(plan)).silent
    if plan.config is None or plan.narrow_config is None or not silent:
        return plan
    share = 1 / float(max(plan.growth[axis] for axis in silent))
    return replace(plan, config=with_eps_of(plan.config, plan.narrow_config, share))


def with_eps_of(config: PreTrainedConfig, other: PreTrainedConfig, share: float = 1.0) -> PreTrainedConfig:
    """A copy of a config whose norms have the other's eps, or a share of it."""
    config = deepcopy(config)
    for part, theirs in zip(parts_of(config), parts_of(other), strict=True):
        for key, value in theirs.to_dict().items():
            if isinstance(value, float) and re.search(r"(^|_)eps(ilon)?$", key):
                setattr(part, key, value * share)
    return config
