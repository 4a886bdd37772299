"""Layouts of plain modules, from the difference in shape between a narrow and a wide instance.

Shapes show which dims grow and by how much; the module's type shows which of them is contracted. What
neither shows (a flattened ``(channels height width)``, a custom parameter) is said by a short hint.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from torch import nn

from mupscale.errors import GrowthError
from mupscale.layout.base import Layout
from mupscale.models.contents import persistent_buffers, state_tensors, tie_names
from mupscale.notation.axes import Axes
from mupscale.notation.dims import Dim

# The dim of ``weight`` that the forward pass sums over; None: an elementwise gain or a lookup.
_CONTRACTED: dict[type[nn.Module], int | None] = {
    **dict.fromkeys((nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d), 1),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), 0),
    **dict.fromkeys((nn.Embedding, nn.PReLU, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm), None),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), None),
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), None),
}


def layout_by_shape(
    narrow: nn.Module, wide: nn.Module, hints: Mapping[str, str] | None = None
) -> tuple[Layout, dict[str, Fraction]]:
    """The layout of ``narrow``, and the growth of its axes that gives ``wide``.

    An axis is named after its size and growth: ``w64x2`` is 64 wide and grows by 2. Names never matter to
    the theory, only which dims of a parameter grow together.

    Args:
        narrow, wide: instances of the same architecture; only names, shapes and module types are read.
        hints: notation by parameter name, one named axis a dim at the most, such as
            ``{"head.weight": "10 [channels 16]"}`` after flattening 4×4 pixels.

    Raises:
        GrowthError: the modules differ in more than widths, or a parameter of an unknown module type
            changes shape and has no hint.
    """
    hints = dict(hints or {})
    sizes: dict[str, int] = {}
    growth: dict[str, Fraction] = {}
    tensors: dict[str, Axes] = {}
    narrow_tensors, wide_tensors = state_tensors(narrow), state_tensors(wide)
    if differing := narrow_tensors.keys() ^ wide_tensors.keys():
        name = min(differing)
        where = "narrow" if name in wide_tensors else "wide"
        raise GrowthError(f"{name}: not in the {where} module; build both alike but for their widths")
    params = dict(narrow.named_parameters())
    buffers = persistent_buffers(narrow)
    for name, tensor in {**params, **buffers}.items():
        wide_shape = tuple(wide_tensors[name].shape)
        if len(wide_shape) != tensor.ndim:
            raise GrowthError(
                f"{name}: {tensor.ndim} dims in the narrow module, {len(wide_shape)} in the wide; "
                "build both alike but for their widths"
            )
        hint = hints.pop(name, None)
        if hint is not None:
            axes = _read_hint(name, hint, tuple(tensor.shape))
        else:
            contracted = _contracted_dim(narrow, name, tuple(tensor.shape), wide_shape)
            axes = Axes(
                tuple(
                    Dim((_axis_name(n, w),), contracted=i == contracted)
                    for i, (n, w) in enumerate(zip(tensor.shape, wide_shape, strict=True))
                )
            )
        for dim, n, w in zip(axes.dims, tensor.shape, wide_shape, strict=True):
            for axis in dim.names:
                known = growth.setdefault(axis, Fraction(w, n))
                size = sizes.setdefault(axis, n // dim.size({axis: 1}))
                if known != Fraction(w, n) or dim.size({axis: size}) != n:
                    raise GrowthError(
                        f"{name}: axis {axis!r} has size {size} growing by {known} elsewhere, but this dim "
                        f"goes from {n} to {w}; name the axis differently in the hint"
                    )
        tensors[name] = axes
    if hints:
        raise GrowthError(f"hint for {next(iter(hints))!r}: expected the name of a parameter of the module")
    weights = {n: tensors[n] for n in params}
    return (
        Layout(
            sizes=sizes,
            params=weights,
            buffers={n: tensors[n] for n in buffers},
            ties=tie_names(narrow),
            readouts=_readouts(weights, growth),
        ),
        growth,
    )


def _axis_name(narrow: int, wide: int) -> str | int:
    if narrow == wide:
        return narrow
    return f"w{narrow}x{Fraction(wide, narrow)}".replace("/", "_")


def _contracted_dim(
    module: nn.Module, name: str, shape: tuple[int, ...], wide_shape: tuple[int, ...]
) -> int | None:
    owner, _, attribute = name.rpartition(".")
    kind = next((t for t in type(module.get_submodule(owner)).__mro__ if t in _CONTRACTED), None)
    if kind is None and shape != wide_shape:
        hint = "out [in]" if len(shape) > 1 else "out"
        raise GrowthError(
            f"{name}: grows from {shape} to {wide_shape} in a {type(module.get_submodule(owner)).__name__}, "
            f"and shapes do not show which dim is fan_in; give inputs=x, or hints={{{name!r}: {hint!r}}}"
        )
    return _CONTRACTED[kind] if kind is not None and attribute == "weight" else None


def _read_hint(name: str, hint: str, shape: tuple[int, ...]) -> Axes:
    axes = Axes.parse(hint)
    if len(axes.dims) != len(shape) or any(len(d.names) > 1 for d in axes.dims):
        raise GrowthError(
            f"hint for {name!r}: {hint!r} must describe {len(shape)} dims with at most one named axis each"
        )
    for dim, size in zip(axes.dims, shape, strict=True):
        if size % dim.size(dict.fromkeys(dim.names, 1)) or (not dim.names and dim.size({}) != size):
            raise GrowthError(
                f"hint for {name!r}: '{dim}' does not fit a dim of size {size}; give divisors of it"
            )
    return axes


def _readouts(params: Mapping[str, Axes], growth: Mapping[str, Fraction]) -> frozenset[str]:
    """Weights that only contract what grows, as far as other weights' noise makes those copies differ.

    Noise in a weight that contracts a grown axis tells apart the copies of its inputs and, a step later, of
    its outputs. Where there is none (one hidden layer), the readout's is the only noise that can.
    """

    def contracted(axes: Axes) -> set[str]:
        return {n for d in axes.dims if d.contracted for n in d.names if growth[n] != 1}

    contracting = {n: a for n, a in params.items() if contracted(a)}
    closing = {n for n, a in contracting.items() if a.copies(growth) == a.fan_in(growth)}
    told_apart = {axis for n, a in contracting.items() if n not in closing for axis in a.names}
    return frozenset(n for n in closing if contracted(params[n]) <= told_apart)
