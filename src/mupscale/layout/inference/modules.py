"""Layouts of plain modules, from running a narrow and a wide instance on the same inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from torch import nn

from mupscale.errors import GrowthError, one_line
from mupscale.layout.base import Layout
from mupscale.layout.flow.ones import show_ones
from mupscale.layout.flow.structure import leaves, pairs, sizes_of, written
from mupscale.layout.flow.trace import Trace, trace
from mupscale.layout.flow.units import Conflict, Unit, size_of
from mupscale.layout.inference.constants import folds
from mupscale.layout.inference.folding import said_as_folds
from mupscale.models.calls import Call
from mupscale.models.contents import state_tensors, tie_names
from mupscale.models.precision import Float64, float64
from mupscale.notation.axes import Axes
from mupscale.notation.dims import Dim


def layout_by_running(narrow: nn.Module, wide: nn.Module, call: Call) -> tuple[Layout, dict[str, Fraction]]:
    """The layout of ``narrow``, and the growth of its axes that gives ``wide``.

    Both are run as they are: copies in float64, on the CPU, as the call's tensors have to be.

    Axes are named after their size and growth, as in `layout_by_shape`.

    Raises:
        GrowthError: the modules differ in more than widths, or do not run on the inputs; or what is cut off
            at a fixed number changes with the width.
    """
    base, other = _traced(narrow, call), _traced(wide, call)
    if differing := state_tensors(narrow).keys() ^ state_tensors(wide).keys():
        raise GrowthError(
            f"{min(differing)}: only in one of the two modules; build both alike but for their widths"
        )
    show_ones(base, other)
    base.contracted |= other.contracted  # a dim of size 1 is seen to be only there
    grown = _grown_axes(base, other)
    _forget_parts(base, grown)
    seen = written(base, grown.named)
    _check(base, seen.axes, grown.growth)
    params = dict(narrow.named_parameters())
    # Whole numbers have no axes: their shapes stay.
    plain = {n: Axes(tuple(Dim((s,)) for s in t.shape)) for n, t in state_tensors(narrow).items()}
    found, cut, refused = folds(base, other, lambda unit: float(grown.growth.get(str(grown.named(unit)), 1)))
    if refused is not None and not grown.inexact:
        raise GrowthError(f"{type(narrow).__name__}: {refused}")
    layout = Layout(
        sizes=grown.sizes,
        params={n: seen.axes.get(n, plain[n]) for n in params},
        buffers={n: seen.axes.get(n, plain[n]) for n in plain if n not in params},
        ties=tie_names(narrow),
        readouts=seen.readouts,
        folds={
            n: (f,) for n, f in said_as_folds(found, seen.axes, grown.growth, type(narrow).__name__).items()
        },
        nonlinear=cut,
        inexact=grown.inexact,
        outputs=seen.outputs,
    )
    return layout, grown.growth


@dataclass
class _Grown:
    """The axes that grow, named after their size and growth, and the units that are each of them."""

    names: dict[int, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    growth: dict[str, Fraction] = field(default_factory=dict)
    inexact: dict[str, str] = field(default_factory=dict)

    def add(self, unit: Unit, wide: Unit) -> None:
        ratio = Fraction(wide.size, unit.size)
        axis = f"w{unit.size}x{ratio}".replace("/", "_")
        self.names[id(unit.find())] = axis
        self.sizes[axis], self.growth[axis] = unit.size, ratio
        if unit.fixed:
            self.inexact[axis] = unit.fixed

    def named(self, unit: Unit) -> str | int:
        return self.names.get(id(unit.find()), unit.size)


def _grown_axes(base: Trace, other: Trace) -> _Grown:
    found = _Grown()
    for name, dims in base.dims.items():
        if len(dims) != len(other.dims[name]):
            raise GrowthError(
                f"{name}: has {len(dims)} dims, and {len(other.dims[name])} in the wide module; "
                "build both alike but for their widths"
            )
        for a, b in zip(dims, other.dims[name], strict=True):
            try:
                for unit, wide in pairs(a, b):
                    if unit.size != wide.size:
                        found.add(unit, wide)
            except Conflict:
                raise GrowthError(
                    f"{name}: a dim of {size_of(a)} is {sizes_of(a)} in the narrow module, and one of "
                    f"{size_of(b)} is {sizes_of(b)} in the wide, so that copies do not fit; let the number "
                    "of heads or groups, and the size of each, be whole multiples of the narrow ones"
                ) from None
    return found


def _forget_parts(base: Trace, grown: _Grown) -> None:
    """Of a dim that is summed over in parts, the other parts must not grow, to count as contracted."""
    for root, part in base.partly.items():
        summed = {id(u.find()) for u in part}
        units = leaves(base.dims[root[0]][root[1]])
        if any(id(u) in grown.names and id(u) not in summed for u in units):
            base.contracted -= {root}


def _check(base: Trace, axes: Mapping[str, Axes], growth: Mapping[str, Fraction]) -> None:
    """Refuse segments that grow by different factors, and growth of what the run does not use."""
    for name, own in axes.items():
        try:
            copies = own.copies(growth)
        except GrowthError as error:
            raise GrowthError(f"{name}: {error}, or make them parameters of their own") from None
        if name not in base.seen and copies != 1:
            raise GrowthError(
                f"{name}: would grow, but the run on these inputs does not use it, so that nothing about it "
                "can be proved; give inputs that reach all of the module, or take out of it what nothing uses"
            )


def _traced(module: nn.Module, call: Call) -> Trace:
    try:
        with float64(), Float64():
            return trace(module, call.args, call.kwargs)
    except Exception as error:  # whatever the module's own code raises
        if "HigherOrderOperator" in str(error):
            raise GrowthError(
                f"{type(module).__name__}: a higher-order operator such as flex_attention cannot be traced "
                f"({one_line(error)[:90]}…); plan it with a plain one in its place, such as "
                "F.scaled_dot_product_attention: the parameters are the same"
            ) from error
        raise GrowthError(
            f"inputs: the module does not run on them ({one_line(error)}); give what it is called with"
        ) from error
