"""The operators by name: where each comes from, which noise goes with it, and what it keeps."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from mupscale.errors import GrowthError
from mupscale.layout.base import DEPTH
from mupscale.models.contents import unwrapped
from mupscale.operators.noise import Noise
from mupscale.theory.manifest import Plan


@dataclass(frozen=True)
class Operator:
    """One way to fill the wide parameters from the narrow ones.

    Attributes:
        name: as `grow` takes it.
        summary: what it does, and what it keeps.
        source: the paper.
        noises: kinds of noise that go with it.
        default_noise: unless one is chosen.
        copies_evenly: θ↑ = s · dup(θ) but for noise: the function is kept, save by layers, where that is of
            order 1/layers; and the optimizer can be carried.
        deepens: it adds layers and widens nothing.
        adds_identity: the added layers are to leave the function as it is, which is proved of each model.
        expands: what is new is not to be seen at first, which is proved of each model.
        shrink: λ, where it takes one, unless another is chosen.
    """

    name: str
    summary: str
    source: str
    noises: tuple[str, ...]
    default_noise: str
    copies_evenly: bool = False
    deepens: bool = False
    adds_identity: bool = False
    expands: bool = False
    shrink: float | None = None

    def noise(self, given: str | Noise | None) -> Noise | None:
        """The noise to add; ``"default"`` stands for the operator's own.

        Raises:
            GrowthError: unknown, or not one that goes with this operator.
        """
        noise = Noise.parse(self.default_noise if given == "default" else given)
        if noise is not None and noise.kind not in self.noises:
            others = [other.name for other in OPERATORS.values() if noise.kind in other.noises]
            raise GrowthError(
                f"noise {str(noise)!r} does not go with the operator {self.name} but with "
                f"{' and '.join(others)}; expected none{', or one of ' * bool(self.noises)}"
                f"{', '.join(self.noises)}, or another operator"
            )
        return noise

    def own_plan(self, plan: Plan) -> Plan:
        """The plan in the order in which this operator takes layers: what stacks, stacks the whole again."""
        return replace(plan, period=plan.layout.sizes[DEPTH]) if self.deepens else plan

    def check(self, plan: Plan) -> None:
        """Refuse a plan with axes that this operator cannot grow.

        Raises:
            GrowthError: names the axis, the reason and what to do.
        """
        if self.deepens:
            if plan.growth.keys() != {DEPTH}:
                raise GrowthError(
                    f"operator {self.name} makes a model deeper and no wider: grow {DEPTH} alone, "
                    f"axes={{{DEPTH!r}: 2}} or --axes {DEPTH}=2, and the widths in a step of their own"
                )
            _check_whole_layers(plan)
            return
        if DEPTH in plan.growth and not self.copies_evenly:
            raise GrowthError(
                f"operator {self.name} makes a model wider and no deeper: grow {DEPTH} in a step of their "
                "own, with the operator duplicate, stack or stack_identity"
            )
        if DEPTH in plan.growth:
            _check_whole_layers(plan)
        # Copies of randomly chosen units, and new ones, can be any number.
        for axis, reason in (plan.inexact if self.copies_evenly else plan.not_copied).items():
            if axis == DEPTH:
                raise GrowthError(
                    f"axis {axis!r}: {reason}; choose the operator stack or stack_identity, which can grow it"
                )
            if self.name != "zero_pad":
                raise GrowthError(f"axis {axis!r}: {reason}; choose other sizes, or the operator zero_pad")


def _check_whole_layers(plan: Plan) -> None:
    if (factor := plan.growth[DEPTH]).denominator != 1:
        raise GrowthError(f"{DEPTH} by {factor}: layers grow by whole factors; choose 2")


OPERATORS = {
    operator.name: operator
    for operator in (
        Operator(
            "duplicate",
            "even copies, rescaled: keeps the function, with balanced noise or none; layers nearly, too",
            "Ma et al. 2026, arXiv 2602.10545",
            tuple(kind for kind in Noise.KINDS if kind != "fresh"),
            "balanced:1",
            copies_evenly=True,
        ),
        Operator(
            "zero_pad",
            "shrunk, padded and added to a fresh μP initialization: does not keep the function",
            "Mallik et al. 2024, arXiv 2411.07340",
            ("fresh",),
            "fresh:1",
            shrink=0.4,
        ),
        Operator(
            "expand",
            "old weights as they are, beside them new units that nothing sees yet: keeps the function",
            "this project; Net2Net (Chen et al. 2016, arXiv 1511.05641) without its copies",
            ("fresh",),
            "fresh:1",
            expands=True,
            shrink=1.0,
        ),
        Operator(
            "hyperclone",
            "even copies with opposite noise in pairs of copies: keeps the function",
            "Samragh et al. 2024, arXiv 2409.12903",
            ("paired",),
            "paired:10",
            copies_evenly=True,
        ),
        Operator(
            "net2net",
            "copies of randomly chosen units: keeps the function unless a norm averages over the axis",
            "Chen et al. 2016, arXiv 1511.05641",
            ("relative", "gaussian"),
            "none",
        ),
        Operator(
            "aki",
            "as net2net, new outputs copy units of the layer above: does not keep the function",
            "Chen et al. 2022, arXiv 2110.07143",
            ("relative", "gaussian"),
            "none",
        ),
        Operator(
            "stack",
            "depth: the whole stack of layers again on top of itself; does not keep the function",
            "Du et al. 2024, arXiv 2405.15319",
            (),
            "none",
            deepens=True,
        ),
        Operator(
            "stack_identity",
            "depth: as stack, with new blocks that start as the identity: keeps the function (not post-norm)",
            "Du et al. 2024, arXiv 2405.15319, with the zero projections of Wu et al. 2024, arXiv 2401.02415",
            (),
            "none",
            deepens=True,
            adds_identity=True,
        ),
    )
}


# What grows a model when no operator is named, and λ where that one takes it.
DEFAULT: tuple[str, float | None] = ("expand", 0.7)


def operator_named(name: str) -> Operator:
    """An operator by name.

    Raises:
        GrowthError: unknown.

    >>> operator_named("zero_pad").source
    'Mallik et al. 2024, arXiv 2411.07340'
    """
    if not isinstance(name, str) or name not in OPERATORS:
        raise GrowthError(f"operator {name!r} is unknown; expected one of {', '.join(OPERATORS)}")
    return OPERATORS[name]


_MARK = "_grown_with"  # an attribute, so that copies of a model and pickles of it have it too


def mark_(wide: nn.Module, operator: str) -> None:
    """Let a module say which operator it was grown with."""
    setattr(wide, _MARK, operator)


def unmark_(wide: nn.Module) -> None:
    """Let a module no longer say what it was grown with: it holds other values now."""
    vars(unwrapped(wide)).pop(_MARK, None)


def grown_with(wide: nn.Module, said: str | None = None) -> str | None:
    """The operator that a module was grown with: what it is marked with, or else what is said of it.

    Raises:
        GrowthError: the two differ.
    """
    marked: str | None = getattr(unwrapped(wide), _MARK, None)
    if said is not None and marked is not None and said != marked:
        raise GrowthError(
            f"operator {said!r}: the wide model was grown with {marked}; leave it out, or say that"
        )
    return said if said is not None else marked
