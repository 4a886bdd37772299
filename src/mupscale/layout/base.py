"""`Layout`: the axes of every tensor of a model, and what the architecture does to them on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from mupscale.errors import GrowthError
from mupscale.notation.axes import Axes

DEPTH = "layers"  # the one axis that is no width, and that no dim of a tensor has


@dataclass(frozen=True)
class Fold:
    """A width-dependent constant of the architecture, folded into parameters: each is scaled by g^power.

    With tied embeddings the logits come out g(d_model) times too large; ``Fold("d_model", -1)`` on the gain
    and bias of the last norm before the readout takes that back and leaves the stock architecture as it is.

    Attributes:
        offset: what the architecture adds to the parameter before it is used, as Gemma adds 1 to its gains:
            then θ + offset is what is scaled.
    """

    axis: str
    power: Fraction
    offset: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The named axes of one model, keyed by fully qualified parameter name.

    Attributes:
        sizes: narrow size of every named axis.
        params: axes of every parameter (a tied one under its first name only).
        buffers: axes of every persistent buffer.
        ties: other names of tied parameters, each with the name that it stands for.
        readouts: weights from the last hidden layer to the outputs, which get no noise.
        nonlinear: weights that the model does not use as they are (normalized ones): terms that sum to zero
            over copies would change the function, so that they get no noise.
        folds: by parameter name.
        ignored: patterns of tensor names that old checkpoints hold and today's models compute.
        stored_as: names that checkpoints have for a tensor, each with the model's own.
        inexact: axes along which copies change the function, each with the reason; they can only be padded.
        outputs: the axes of what the model returns, where that is known; of the dims that do not grow, sizes
            are those of one call.
        inputs: the axes of those inputs, by name, that are hidden states of another model, and grow with it.
    """

    sizes: Mapping[str, int]
    params: Mapping[str, Axes]
    buffers: Mapping[str, Axes] = field(default_factory=dict)
    ties: Mapping[str, str] = field(default_factory=dict)
    readouts: frozenset[str] = frozenset()
    nonlinear: frozenset[str] = frozenset()
    folds: Mapping[str, tuple[Fold, ...]] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    stored_as: Mapping[str, str] = field(default_factory=dict)
    inexact: Mapping[str, str] = field(default_factory=dict)
    outputs: tuple[Axes, ...] = ()
    inputs: Mapping[str, Axes] = field(default_factory=dict)

    def knows(self, name: str) -> bool:
        """Whether this is one of the names of a parameter or buffer."""
        return name in self.params or name in self.ties or name in self.buffers

    def axes_of(self, name: str) -> Axes:
        """Axes of a parameter or buffer, by any of its names.

        Raises:
            GrowthError: the layout has no such tensor.
        """
        if not self.knows(name):
            raise GrowthError(
                f"{name}: not a tensor of this model; expected one of its parameters or buffers"
            )
        name = self.ties.get(name, name)
        return self.params[name] if name in self.params else self.buffers[name]

    def without_depth(self, reason: str) -> Layout:
        """The same of a model for which no rule is known in depth: its layers can be stacked, no more."""
        folds = {n: tuple(f for f in folds if f.axis != DEPTH) for n, folds in self.folds.items()}
        return replace(self, folds=folds, inexact={**self.inexact, DEPTH: reason})

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, for JSON."""
        return {
            "sizes": dict(self.sizes),
            "params": {n: str(a) for n, a in self.params.items()},
            "buffers": {n: str(a) for n, a in self.buffers.items()},
            "ties": dict(self.ties),
            "readouts": sorted(self.readouts),
            "nonlinear": sorted(self.nonlinear),
            "folds": {
                n: [[f.axis, str(f.power), f.offset] for f in folds] for n, folds in self.folds.items()
            },
            "ignored": list(self.ignored),
            "stored_as": dict(self.stored_as),
            "inexact": dict(self.inexact),
            "outputs": list(map(str, self.outputs)),
            "inputs": {n: str(a) for n, a in self.inputs.items()},
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Layout:
        layout = Layout(
            sizes=data["sizes"],
            params={n: Axes.parse(a) for n, a in data["params"].items()},
            buffers={n: Axes.parse(a) for n, a in data["buffers"].items()},
            ties=data["ties"],
            readouts=frozenset(data["readouts"]),
            nonlinear=frozenset(data.get("nonlinear", ())),
            folds={
                n: tuple(Fold(a, Fraction(p), *c) for a, p, *c in folds) for n, folds in data["folds"].items()
            },
            ignored=tuple(data["ignored"]),
            stored_as=data.get("stored_as", {}),
            inexact=data.get("inexact", {}),
            outputs=tuple(map(Axes.parse, data.get("outputs", ()))),
            inputs={n: Axes.parse(a) for n, a in data.get("inputs", {}).items()},
        )
        for axes in (*layout.params.values(), *layout.buffers.values()):
            axes.shape(layout.sizes)  # which has to know all of their names
        return layout
