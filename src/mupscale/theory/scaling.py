"""The one formula: how a parameter, its gradient and its fresh values scale when its axes grow.

For one parameter θ, with g the growth of its axes:

    θ↑ = s · dup(θ)
    m  = Π g over all grown axes                 copies of each entry
    s  = fold / Π g over contracted axes         weight scale: every activation becomes a duplicate
    c  = 1 / (m · s)                             gradient scale: ∂L/∂θ↑ = c · dup(∂L/∂θ)

Depth is one more axis: of a parameter in the layers, m has the factor g(layers), as each becomes so many; and
what writes to the residual stream is folded by 1/g, so that all layers together add as much as before. By the
rules for Adam that is CompleteP at α = 1 (Dey et al. 2025, arXiv 2505.01618), its multiplier of each residual
branch written into the weights.

Everything is relative to the narrow model, however that was trained. With "narrow" read as "base width" the
same numbers are the μP tables (Yang et al. 2021, arXiv 2203.03466, Tables 3 and 8).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from mupscale.layout.base import DEPTH, Layout
from mupscale.layout.depth import renumbered
from mupscale.notation.axes import Axes


@dataclass(frozen=True)
class Scaling:
    """How one parameter scales (the equations are in this module's docstring).

    Attributes:
        axes: its named axes.
        copies: m, the copies of each entry, in all layers that its own becomes.
        repeats: how many layers these are; 1 for what is in no layer.
        fan_in: k_in, the growth of its contracted axes.
        fold: the width-dependent constant folded into it; 1 for most.
        readout: whether it leads from the last hidden layer to outputs, and these do not grow.
        linear: whether the model uses it as it is, and not normalized or the like.
        writes: whether what it computes is added to the residual stream, and scaled as layers become more.
        offset: what the architecture adds to it before use; where it is folded, θ + offset is what scales.
        shape, wide_shape: before and after.
    """

    axes: Axes
    shape: tuple[int, ...]
    wide_shape: tuple[int, ...]
    copies: Fraction
    fan_in: Fraction
    repeats: Fraction = Fraction(1)
    fold: float = 1.0
    readout: bool = False
    linear: bool = True
    writes: bool = False
    offset: float = 0.0

    @staticmethod
    def of(name: str, layout: Layout, growth: Mapping[str, Fraction]) -> Scaling:
        """The scaling of a parameter or buffer of a layout under a growth.

        Raises:
            GrowthError: the layout has no such tensor.
        """
        axes, folds = layout.axes_of(name), layout.folds.get(name, ())
        fold = math.prod(float(growth.get(f.axis, 1)) ** float(f.power) for f in folds)
        copies = axes.copies(growth)
        repeats = Fraction(growth.get(DEPTH, 1) if renumbered(name, 0)[1] is not None else 1)
        # A buffer holds statistics of activations, which duplication leaves as they are.
        fan_in = axes.fan_in(growth) if name in layout.params else Fraction(1)
        return Scaling(
            axes=axes,
            shape=axes.shape(layout.sizes),
            wide_shape=axes.wide_shape(layout.sizes, growth),
            copies=copies * repeats,
            fan_in=fan_in,
            repeats=repeats,
            fold=fold,
            readout=name in layout.readouts and copies == fan_in,
            linear=name not in layout.nonlinear,
            writes=any(f.axis == DEPTH for f in folds),
            offset=max((f.offset for f in folds), default=0.0) if fold != 1 else 0.0,
        )

    @property
    def own_copies(self) -> Fraction:
        """The copies of each entry in one tensor of the wide model."""
        return self.copies / self.repeats

    @property
    def weight_scale(self) -> float:
        """s: θ↑ = s · dup(θ)."""
        return self.fold / float(self.fan_in)

    @property
    def grad_scale(self) -> float:
        """c: ∂L/∂θ↑ = c · dup(∂L/∂θ)."""
        return 1 / (float(self.copies) * self.weight_scale)

    @property
    def init_scale(self) -> float:
        """Standard deviation of a fresh μP init at the wide width, over that of a fresh narrow init.

        ÷√k_in for hidden weights; ÷k_in for weights whose outputs do not grow, readouts above all; ×1 where
        nothing contracted grows: embeddings, biases (Yang et al. 2021, Table 3).
        """
        is_hidden = self.own_copies > self.fan_in
        return self.fold / (math.sqrt(self.fan_in) if is_hidden else float(self.fan_in))

    @property
    def is_embedding(self) -> bool:
        """Whether it is a lookup table: a matrix that contracts nothing."""
        return len(self.shape) == 2 and not any(dim.contracted for dim in self.axes.dims)

    @property
    def has_noise(self) -> bool:
        """Whether random terms are added to it: to weights that contract a dim, save for readouts."""
        return self.linear and not self.readout and any(dim.contracted for dim in self.axes.dims)
