"""What a family of models is made of, measured on a tiny instance: its axes, and the fields that they follow.

The tiny model runs once as it is and once for every size field, doubled; the units that grow show what
follows what: an axis has size ``factor · Π field^power``. So the axes of a model of any size are known
without running it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from torch import nn

from mupscale.errors import GrowthError
from mupscale.layout.base import DEPTH, Layout
from mupscale.layout.inference.fields import (
    NO_WIDTH,
    Path,
    explicit,
    field_name,
    is_wider,
    one_number,
    size_fields,
    times,
    value_at,
    with_fields,
)
from mupscale.layout.tiny_config import tiny
from mupscale.models.contents import persistent_buffers, tie_names
from mupscale.models.skeletons import PreTrainedConfig
from mupscale.notation.axes import Axes
from mupscale.notation.dims import Dim, Row


@dataclass(frozen=True)
class Law:
    """The size of an axis: ``factor · Π field^power``; and why copies along it are not exact, if so."""

    powers: Mapping[Path, int]
    factor: Fraction
    fixed: str | None = None

    def size(self, config: PreTrainedConfig) -> int | None:
        """The size in a config; None where the fields give no whole number."""
        size = self.factor
        for path, power in self.powers.items():
            value = one_number(value_at(config, path))
            if value is None:
                return None
            size *= Fraction(value) ** power
        return int(size) if size.denominator == 1 else None

    def __str__(self) -> str:
        """``hidden_size ÷ num_attention_heads``, times a factor, where there is one."""
        times = [str(self.factor)] if self.factor != 1 else []
        above = [".".join(path) for path, power in self.powers.items() for _ in range(power)]
        below = [".".join(path) for path, power in self.powers.items() for _ in range(-power)]
        return " × ".join([*times, *above] or ["1"]) + "".join(f" ÷ {path}" for path in below)

    def by_stage(self, config: PreTrainedConfig) -> Sequence[int]:
        """The size in every stage, where it is the entry of a list in the config; else none."""
        path = next(iter(self.powers), ())
        value = value_at(config, path) if self.powers == {path: 1} and self.factor == 1 else None
        return value if isinstance(value, list | tuple) and one_number(value) is None else ()


@dataclass(frozen=True, kw_only=True)
class Family:
    """The axes of a tiny model, and of every other of its config class and flags.

    Attributes:
        small: the tiny config; ``grouped``: whether heads are grouped in it whatever the given one says.
        axes: of every parameter and persistent buffer of the tiny model.
        laws: how large each axis is.
        along: fields that no axis follows, but that have to be products of those that axes do: their powers.
        readouts: the weights from the last hidden layer to the outputs.
        outputs: the axes of what the tiny model returns.
        inputs: the axes of the hidden states of another model that it is called with.
        unused: tensors that its run never touched, nor any of the same part: of these nothing is proved.
    """

    small: PreTrainedConfig
    grouped: bool
    axes: Mapping[str, Axes]
    laws: Mapping[str, Law]
    along: Mapping[Path, Mapping[Path, int]]
    readouts: frozenset[str]
    outputs: tuple[Axes, ...]
    inputs: Mapping[str, Axes]
    unused: frozenset[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; the tiny config is made anew."""
        return {
            "grouped": self.grouped,
            "axes": {name: str(axes) for name, axes in self.axes.items()},
            "laws": {
                axis: [[[list(p), e] for p, e in law.powers.items()], str(law.factor), law.fixed]
                for axis, law in self.laws.items()
            },
            "along": [
                [list(path), [[list(p), e] for p, e in powers.items()]] for path, powers in self.along.items()
            ],
            "readouts": sorted(self.readouts),
            "outputs": list(map(str, self.outputs)),
            "inputs": {name: str(axes) for name, axes in self.inputs.items()},
            "unused": sorted(self.unused),
        }

    @staticmethod
    def from_dict(config: PreTrainedConfig, data: Mapping[str, Any]) -> Family:
        return Family(
            small=explicit(tiny(config, grouped=data["grouped"])),
            grouped=data["grouped"],
            axes={name: Axes.parse(text) for name, text in data["axes"].items()},
            laws={
                axis: Law({tuple(p): e for p, e in powers}, Fraction(factor), fixed)
                for axis, (powers, factor, fixed) in data["laws"].items()
            },
            along={tuple(path): {tuple(p): e for p, e in powers} for path, powers in data["along"]},
            readouts=frozenset(data["readouts"]),
            outputs=tuple(map(Axes.parse, data["outputs"])),
            inputs={name: Axes.parse(text) for name, text in data["inputs"].items()},
            unused=frozenset(data["unused"]),
        )

    @property
    def model_type(self) -> str:
        return str(self.small.model_type)

    def width(self, growth: Fraction) -> dict[str, Fraction]:
        """The growth of every axis under ``width=g``: hidden sizes and numbers of heads grow, head dims stay.

        Where copies of heads are not exact, as each has a slope of its own, the heads stay and their dims
        grow.
        """
        used = {path for law in self.laws.values() for path in law.powers}
        wider = [path for path in size_fields(self.small) if path in used and is_wider(self.small, path)]
        grown = self.growth_of(dict.fromkeys(wider, growth))
        if not self._can(grown):
            fewer = [path for path in wider if "head" not in field_name(self.small, path)]
            other = self.growth_of(dict.fromkeys(fewer, growth))
            grown = other if self._can(other) else grown
        hidden = [p for p in size_fields(self.small) if field_name(self.small, p) == "hidden_size"]
        if hidden and not (used | {*self.along}) & {*hidden}:
            raise GrowthError(
                f"{self.model_type}: no tiny model with another {'.'.join(hidden[0])} can be built, to see "
                "what grows with it; run the model itself, plan(model, to=wide_config, inputs=x)"
            )
        return {axis: g for axis, g in grown.items() if g != 1}

    def _can(self, growth: Mapping[str, Fraction]) -> bool:
        """Whether all that grows can be copied, and the segments of every fused dim alike."""
        if any(self.laws[axis].fixed for axis, g in growth.items() if g != 1):
            return False
        try:
            return all(axes.copies(growth) > 0 for axes in self.axes.values())
        except GrowthError:
            return False

    def layout(self, model: nn.Module, config: PreTrainedConfig) -> Layout:
        """The layout of a model of this family; only names and shapes are read.

        Raises:
            GrowthError: it has a parameter that the tiny one has not, or of a shape that does not follow.
        """
        params = dict(model.named_parameters())
        stored = persistent_buffers(model)
        buffers = {n: b for n, b in stored.items() if b.is_floating_point()}
        sizes = {a: n for a, law in self.laws.items() if (n := law.size(config)) is not None}
        stages = {a: each for a, law in self.laws.items() if (each := law.by_stage(config))}
        confirmed: set[str] = set()
        found = {
            name: self._fitted(name, tuple(tensor.shape), sizes, confirmed, stages)
            for name, tensor in (params | buffers).items()
        }
        rest = {n: Axes(tuple(Dim((s,)) for s in b.shape)) for n, b in stored.items()}
        return Layout(
            sizes=sizes | {DEPTH: getattr(config.get_text_config(), "num_hidden_layers", 1)},
            params={n: found[n] for n in params},
            buffers={n: found.get(n, axes) for n, axes in rest.items()},
            ties=tie_names(model),
            readouts=frozenset(n for n in params if self.twin(n, params[n].ndim) in self.readouts),
            ignored=(
                *(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()),
                *_COMPUTED,
                *sorted(
                    {rf"(^|\.){n.rpartition('.')[2]}$" for n, _ in model.named_buffers() if n not in stored}
                ),
            ),
            stored_as={old: new for old, new in _OLD_NAMES.items() if new in params and old not in params},
            outputs=self.outputs,
            inputs=self.inputs,
            inexact={
                axis: law.fixed for axis, law in self.laws.items() if law.fixed and axis not in NO_WIDTH
            },
        )

    def check_used(self, layout: Layout, growth: Mapping[str, Fraction]) -> None:
        """Refuse to grow what the tiny model's run did not use: a vision tower that text alone never reaches.

        Raises:
            GrowthError: such a tensor would grow.
        """
        for name, axes in (*layout.params.items(), *layout.buffers.items()):
            if self.twin(name, len(axes.dims)) in self.unused and axes.copies(growth) != 1:
                raise GrowthError(
                    f"{name}: would grow, but a tiny {self.model_type} on example inputs does not use it, so "
                    "that nothing is proved; give inputs that do, plan(model, to=wide_config, inputs=x)"
                )

    def twin(self, name: str, ndim: int) -> str | None:
        """The tiny model's tensor that plays the same part as one of a deeper model."""
        if name in self.axes and len(self.axes[name].dims) == ndim:
            return name
        part = part_of(name)
        return next((n for n, a in self.axes.items() if part_of(n) == part and len(a.dims) == ndim), None)

    def _fitted(
        self,
        name: str,
        shape: tuple[int, ...],
        sizes: dict[str, int],
        confirmed: set[str],
        stages: Mapping[str, Sequence[int]],
    ) -> Axes:
        twin = self.twin(name, len(shape))
        if twin is None:
            raise GrowthError(
                f"{name}: a {self.model_type} of this config has no such tensor in transformers; "
                "take off what was added to the model (adapters, a new head), or "
                "plan the whole from a function, plan(make, width=..., inputs=...)"
            )
        parts = part_of(name)
        alike = [twin, *(n for n in self.axes if n != twin and part_of(n) == parts)]
        candidates = [axes for axes in map(self.axes.__getitem__, alike) if len(axes.dims) == len(shape)]

        def sized(axis: str, size: int) -> str:
            """An axis of this size; layers of several sizes have an axis each."""
            if sizes.get(axis) != size:
                axis = f"{axis}_{size}" if axis in confirmed else axis
                sizes[axis] = size
            confirmed.add(axis)
            return axis

        if staged := [axis for axis in self.axes[twin].names if axis in stages]:
            # The first number in a name is that of the stage.
            stage = int(next(iter(re.findall(r"\.(\d+)(?=\.)", name)), 0))
            here = {axis: stages[axis][min(stage, len(stages[axis]) - 1)] for axis in staged}
            dims = [
                _of_stage(dim, n, here, sized) for dim, n in zip(self.axes[twin].dims, shape, strict=True)
            ]
            if self._shape(axes := Axes(tuple(dims)), sizes) == shape:
                return axes
        for axes in candidates:
            if self._shape(axes, sizes) == shape:
                confirmed.update(axes.names)
                return axes
        # What follows no field is another number here: the head dim of layers that see everything.
        for axes in candidates:
            of = zip(axes.dims, shape, strict=True)
            refitted = [found for dim, n in of if (found := dim.refit(n, sizes)) is not None]
            if len(refitted) == len(shape):
                return Axes(tuple(refitted))
        dims = []
        for dim, n in zip(self.axes[twin].dims, shape, strict=True):
            fixed = math.prod(f for f in dim.axes if isinstance(f, int))
            own = [f for f in dim.axes if isinstance(f, str)]
            unknown = [axis for axis in own if axis not in sizes]
            if not dim.names:  # a size that follows no field that grows
                dim = Dim((n,), dim.contracted)
            if len(own) > 1 and len(unknown) == 1 and not dim.has_segments:
                sizes[unknown[0]] = n // (fixed * math.prod(sizes[a] for a in own if a in sizes))
            elif len(own) == 1 and not dim.has_segments and n % fixed == 0:
                # An axis by itself is as large as the dim.
                axis = sized(own[0], n // fixed)
                dim = Dim(tuple(axis if f == own[0] else f for f in dim.axes), dim.contracted)
            dims.append(dim)
        axes = Axes(tuple(dims))
        if self._shape(axes, sizes) != shape:
            raise GrowthError(
                f"{name}: has shape {shape}, expected '{self.axes[twin]}' "
                f"({', '.join(f'{a} {sizes.get(a)}' for a in self.axes[twin].names)}); "
                "run the model itself, plan(model, to=wide_config, inputs=x)"
            )
        return axes

    @staticmethod
    def _shape(axes: Axes, sizes: Mapping[str, int]) -> tuple[int, ...] | None:
        return axes.shape(sizes) if all(a in sizes for a in axes.names) else None

    def growth_of(self, factors: Mapping[Path, Fraction]) -> dict[str, Fraction]:
        """By how much every axis grows when fields do."""
        return {axis: _product(factors, law.powers) for axis, law in self.laws.items()}

    def growth_of_layers(self, layout: Layout, growth: Mapping[str, Fraction]) -> dict[str, Fraction]:
        """The growth of axes that layers have in sizes of their own: of ``d_ff_768`` that of ``d_ff``."""
        own = {a: growth.get(a.rpartition("_")[0], Fraction(1)) for a in layout.sizes if a not in self.laws}
        return {axis: g for axis, g in own.items() if g != 1}

    def factors_for(self, growth: Mapping[str, Fraction]) -> dict[Path, Fraction]:
        """By how much the fields have to grow for axes to grow so much, and all others not at all.

        Raises:
            GrowthError: no config has such sizes.
        """
        paths = list(dict.fromkeys(p for law in self.laws.values() for p in law.powers))
        if not paths:
            return {}
        rows = [[law.powers.get(p, 0) for p in paths] for law in self.laws.values()]
        logs = [math.log(growth.get(axis, 1)) for axis in self.laws]
        solution = np.linalg.lstsq(np.array(rows, dtype=float), np.array(logs), rcond=1e-10)[0]
        factors = {
            path: Fraction(math.exp(x)).limit_denominator(4096)
            for path, x in zip(paths, solution, strict=True)
            if abs(x) > 1e-9
        }
        made = self.growth_of(factors)
        if any(made[axis] != growth.get(axis, 1) for axis in self.laws):
            asked = {axis for axis, g in growth.items() if g != 1}
            fields = {path for axis in asked if axis in self.laws for path in self.laws[axis].powers}
            bound = [f"{a} = {law}" for a, law in self.laws.items() if fields & law.powers.keys()]
            wish = ", ".join(f"{axis} by {growth[axis]}" for axis in sorted(asked))
            raise GrowthError(
                f"no config of {self.model_type} grows {wish} and nothing else, since {', '.join(bound)}; "
                "grow the axes of the same fields together"
            )
        behind = {path: _product(factors, powers) for path, powers in self.along.items()}
        return factors | {path: factor for path, factor in behind.items() if factor != 1}

    def shown_by(self, growth: Mapping[str, Fraction]) -> Mapping[str, Fraction]:
        """The growth of the tiny model that shows what a growth by whole numbers does: the same.

        But where the class takes no such sizes (a d_model that heads do not divide), powers of two stand for
        the factors, equal ones for equal ones: tiny sizes are powers of two themselves.
        """
        if self._takes(growth):
            return growth
        ranks = sorted({*growth.values()} - {1})
        plain = {axis: Fraction(2) ** (ranks.index(g) + 1) if g != 1 else g for axis, g in growth.items()}
        try:
            return plain if self._takes(plain) else growth
        except GrowthError:  # of axes of which one is as large as others together
            return growth

    def _takes(self, growth: Mapping[str, Fraction]) -> bool:
        factors = self.factors_for(growth)
        try:
            with_fields(self.small, {p: times(value_at(self.small, p), f) for p, f in factors.items()})
        except Exception:  # whatever a class checks its sizes with
            return False
        return True


def _product(factors: Mapping[Path, Fraction], powers: Mapping[Path, int]) -> Fraction:
    return math.prod((factors.get(p, Fraction(1)) ** e for p, e in powers.items()), start=Fraction(1))


def _of_stage(dim: Dim, n: int, here: Mapping[str, int], sized: Callable[[str, int], str]) -> Dim:
    """A dim of so many indices, of axes of which some have a size of their own in this stage.

    One more may be unknown: its size is what is left.
    """
    own = [f for f in dim.axes if isinstance(f, str)]
    rest = [axis for axis in own if axis not in here]
    if dim.has_segments or not own or len(rest) > 1:
        return dim
    known = math.prod(here.get(f, 1) if isinstance(f, str) else f for f in dim.axes if not isinstance(f, Row))
    new = {axis: sized(axis, here.get(axis, n // known)) for axis in dim.names}
    return Dim(tuple(new.get(f, f) if isinstance(f, str) else f for f in dim.axes), dim.contracted)


# What checkpoints of old hold and models of today compute, and what they call what has another name now.
_COMPUTED = (r"masked_bias$", r"rotary_emb\.inv_freq$")
_OLD_NAMES = {"embed_out.weight": "lm_head.weight"}


def part_of(name: str) -> str:
    """A name without the numbers of layers and experts."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "#", name)
