"""`Plan`: the theory for a whole model, by parameter name, and the file that holds one, ``mupscale.json``."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import Tensor, nn

from mupscale.errors import GrowthError, one_line, said_as
from mupscale.layout.base import DEPTH, Layout
from mupscale.layout.depth import renumbered, source_of
from mupscale.models.skeletons import PreTrainedConfig, config_class, skeleton
from mupscale.theory.scaling import Scaling
from mupscale.theory.tables import as_text, collapse, count, scaling_table

MANIFEST = "mupscale.json"

# Submodules that torch.compile, checkpoint_wrapper and FSDP put around the one that has the parameter.
WRAPPERS = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}


def bare(name: str) -> str:
    """A name without the words of wrappers; DDP's ``module.``, which may be anybody's word, stays."""
    return ".".join(word for word in name.split(".") if word not in WRAPPERS)


@dataclass(frozen=True, kw_only=True, repr=False)
class Plan:
    """What becomes of every parameter when a model grows. Made by `mupscale.plan`; prints as a table.

    Keyed by parameter name and serializable, so that it survives FSDP, torch.compile and pickling.

    Attributes:
        layout: the axes of the narrow model.
        growth: the factor of every axis that grows.
        period: how many layers are repeated together where their number grows (`mupscale.layout.depth`).
        narrow_config, config: the narrow and the wide transformers config; None for plain modules.
        proved: whether even copies were proved to be exact; not so for a plain module without inputs.
        unproved_because: what the inputs could not show, where a run on them proves nothing.
    """

    layout: Layout
    growth: Mapping[str, Fraction]
    period: int = 1
    narrow_config: PreTrainedConfig | None = None
    config: PreTrainedConfig | None = None
    proved: bool = False
    unproved_because: str | None = None
    # How to build a fresh narrow and wide module; not part of the file, nor of equality.
    build_narrow: Callable[[], nn.Module] | None = field(default=None, compare=False, repr=False)
    build_wide: Callable[[], nn.Module] | None = field(default=None, compare=False, repr=False)
    # Proves an operator by name, on the inputs that a plain module was planned with.
    prove: Callable[[str], object] | None = field(default=None, compare=False, repr=False)

    @cached_property
    def params(self) -> dict[str, Scaling]:
        """The scaling of every parameter, by fully qualified name."""
        return {name: Scaling.of(name, self.layout, self.growth) for name in self.layout.params}

    def __getitem__(self, name: str) -> Scaling:
        """The scaling of a parameter or buffer of the wide model, by any of its names.

        Also by those that wrappers give it.

        Raises:
            GrowthError: the model has no such tensor.
        """
        return self.of_narrow(self.canonical(name))

    def of_narrow(self, name: str) -> Scaling:
        """The scaling of a parameter or buffer by the narrow model's name of it, the first of tied ones."""
        return self.params.get(name) or Scaling.of(name, self.layout, self.growth)

    def canonical(self, name: str) -> str:
        """The narrow model's name of what a tensor of the wide model comes from: of tied ones the first."""
        name = self.unwrapped(name)
        name = self.wide_names.get(name, name)
        return self.layout.ties.get(name, name)

    def unwrapped(self, name: str) -> str:
        """The name of a tensor without what torch.compile, DDP and the like put before it."""
        if self.layout.knows(name) or name in self.wide_names:
            return name
        stripped = bare(name)
        return stripped if self.layout.knows(stripped) else stripped.removeprefix("module.")

    def own_name(self, name: str) -> str:
        """A tensor's name in its own model: without wrappers, the first of tied ones.

        Random numbers go by it, so that layers that come from one layer have numbers of their own.
        """
        name = self.unwrapped(name)
        return self.layout.ties.get(name, name)

    @cached_property
    def wide_names(self) -> dict[str, str]:
        """Every parameter and buffer of the wide model, with the one of the narrow model that it comes from.

        They have the same names, but for the layers of a deeper model.
        """
        names = (*self.layout.params, *self.layout.buffers)
        if DEPTH not in self.growth:
            return {name: name for name in names}
        depth = self.layout.sizes[DEPTH]
        deeper = int(depth * self.growth[DEPTH])
        copies: dict[int | None, list[int]] = {None: [0]}
        for layer in range(deeper):
            copies.setdefault(source_of(layer, depth, deeper, self.period), []).append(layer)
        found = {}
        for name in names:
            _, own = renumbered(name, 0)
            for layer in copies.get(own, []):
                found[renumbered(name, layer - (own or 0))[0]] = name
        return found

    @cached_property
    def becomes(self) -> dict[str, list[str]]:
        """What a parameter or buffer of the narrow model becomes: one, or one in each of several layers."""
        found: dict[str, list[str]] = {}
        for wide, narrow in self.wide_names.items():
            found.setdefault(narrow, []).append(wide)
        return found

    @cached_property
    def inexact(self) -> dict[str, str]:
        """Axes whose growth even copies cannot express, each with the reason."""
        fractions = {
            axis: f"grows by {factor}, but even copies are made a whole number of times"
            for axis, factor in self.growth.items()
            if factor.denominator != 1
        }
        return fractions | self.not_copied

    @property
    def keeps_function(self) -> bool:
        """Whether even copies compute what the narrow model does: not where the model becomes deeper."""
        return not self.inexact and DEPTH not in self.growth

    def check_depth(self) -> None:
        """Refuse to say what hyperparameters and fresh weights become of a deeper model that has no rule.

        Raises:
            GrowthError: with the reason.
        """
        if DEPTH in self.growth and (reason := self.layout.inexact.get(DEPTH)) is not None:
            raise GrowthError(
                f"{DEPTH}: {reason}; no rule in depth is known for its hyperparameters and fresh weights: "
                "tune them, or grow widths alone"
            )

    @cached_property
    def not_copied(self) -> dict[str, str]:
        """Axes whose growth no copies can express, uneven ones neither, each with the reason."""
        known = self.layout.inexact
        reasons = {axis: known[axis] for axis in self.growth if axis in known}
        for axis, factor in self.growth.items():
            if factor < 1:
                beside = [a for a in self._merged_with(axis) if a != axis]
                reasons[axis] = (
                    f"shrinks by {factor}, so that {', '.join(beside)} and it can only be padded as one axis"
                )
        return reasons

    def _merged_with(self, axis: str) -> tuple[str, ...]:
        """The named axes that share a dim with ``axis``, itself among them."""
        dims = [d for axes in self.layout.params.values() for d in axes.dims if axis in d.names]
        return tuple(dict.fromkeys(name for dim in dims for name in dim.names))

    def wide_shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor of the wide model."""
        return self[name].wide_shape

    def check_shape(self, name: str, tensor: Tensor) -> None:
        """Refuse a tensor of the wide model that has another shape, as one of another model has.

        Raises:
            GrowthError: names it, and both shapes.
        """
        if tuple(tensor.shape) != self.wide_shape(name):
            raise GrowthError(
                f"{name}: the plan gives shape {self.wide_shape(name)}, found {tuple(tensor.shape)}; "
                "build the wide model in the sizes of the plan"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the scales are there for readers, and computed anew by `from_dict`."""
        return {
            "growth": {a: str(g) for a, g in self.growth.items()},
            "period": self.period,
            "layout": self.layout.to_dict(),
            "narrow_config": self.narrow_config and self.narrow_config.to_dict(),
            "config": self.config and self.config.to_dict(),
            "proved": self.proved,
            "unproved_because": self.unproved_because,
            "scales": self._scales(),
        }

    def _scales(self) -> dict[str, dict[str, float]]:
        return {
            name: {"copies": float(p.copies), "weight_scale": p.weight_scale, "grad_scale": p.grad_scale}
            for name, p in self.params.items()
        }

    def to_json(self) -> str:
        """The plan as JSON text."""
        return json.dumps(self.to_dict(), indent=1)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Plan:
        narrow, wide = (_config_from_dict(data[key]) for key in ("narrow_config", "config"))
        plan = Plan(
            layout=Layout.from_dict(data["layout"]),
            growth={a: Fraction(g) for a, g in data["growth"].items()},
            period=data["period"],
            narrow_config=narrow,
            config=wide,
            proved=data["proved"],
            unproved_because=data["unproved_because"],
            build_narrow=narrow and builder(narrow),
            build_wide=wide and builder(wide),
        )
        plan._check_scales(data.get("scales"))
        return plan

    def _check_scales(self, stored: Mapping[str, Mapping[str, float]] | None) -> None:
        """Refuse axes, sizes or factors that do not give the scales that were written beside them."""
        own = self._scales()
        stored = own if stored is None else stored
        for name in sorted({*own, *stored}):
            mine, theirs = own.get(name, {}), stored.get(name, {})
            alike = mine.keys() == theirs.keys() and all(math.isclose(mine[k], theirs[k]) for k in mine)
            if not alike:  # but for rounding
                raise GrowthError(f"{name}: its scales are not those of its axes and the plan's factors")

    @staticmethod
    def from_json(text: str) -> Plan:
        """The plan that `to_json` wrote.

        Raises:
            GrowthError: it wrote something else.
        """
        with said_as("not a plan", "; expected the text that Plan.to_json gave"):
            return Plan.from_dict(json.loads(text))

    def __reduce__(self) -> tuple[Any, ...]:
        # For pickle, which takes no functions made on the way: what builds models is lost, but for configs.
        return Plan.from_json, (self.to_json(),)

    def __copy__(self) -> Plan:
        return self  # nothing changes a plan

    def __deepcopy__(self, memo: dict[int, Any]) -> Plan:
        return self

    @staticmethod
    def load(directory: str | Path, *, last_growth: bool = False) -> Plan:
        """The plan by which a checkpoint directory was grown, from its ``mupscale.json``.

        A model that was grown several times has its hyperparameters relative to the first of the line, which
        is what one trains by; so that is the plan from there.

        Args:
            directory: what `mupscale grow` wrote, or `Plan.save`.
            last_growth: only the last of several growths, to compare with the checkpoint before it.

        Raises:
            GrowthError: the directory holds no readable manifest.
        """
        manifest = Manifest.read(directory)
        return manifest.plan if last_growth else manifest.from_first

    def save(self, directory: str | Path) -> None:
        """Write a ``mupscale.json`` beside a checkpoint's weights, so that `load` finds the plan there."""
        Manifest(plan=self, from_first=self).write(directory)

    def describe(self) -> str:
        """One line: what grows, and how many parameters that makes."""
        sizes = self.layout.sizes
        axes = ", ".join(f"{axis} {sizes[axis]} → {int(sizes[axis] * g)}" for axis, g in self.growth.items())
        narrow = sum(math.prod(p.shape) for p in self.params.values())
        wide = sum(math.prod(self.params[n].wide_shape) for n in self.wide_names.values() if n in self.params)
        return f"{axes or 'nothing grows'}: {count(narrow)} → {count(wide)} parameters"

    def table(self, axes: bool = True) -> Table:
        """The plan as a `rich` table, with or without the axes."""
        return scaling_table(self.params, title=self.describe(), notes=self._notes(), axes=axes)

    def _notes(self) -> list[str]:
        """What is to be known of it beside its numbers."""
        notes = [f"{axis}: {reason}" for axis, reason in self.inexact.items()]
        if DEPTH in self.growth and DEPTH not in self.inexact:
            notes.append(
                f"{DEPTH}: repeated, not copied: the function changes, the less the more layers there are; "
                "exact against explicit multipliers (CompleteP), which are written into the weights"
            )
        if self.inexact and DEPTH not in self.growth:
            notes.append("not by even copies (operator duplicate): choose other sizes, or zero_pad or expand")
        if not self.proved and not self.inexact and self.growth:
            why = self.unproved_because or "read off shapes alone; plan(..., inputs=x) proves it on a run"
            notes.append(f"not proved: {why}")
        for name in dict.fromkeys(collapse(n) for n, p in self.params.items() if not p.linear):
            notes.append(f"{name}: no noise, which would change the function")
        for name in dict.fromkeys(collapse(n) for n, p in self.params.items() if p.offset):
            notes.append(
                f"{name}: stored as a difference; keep it out of weight decay, which would pull it elsewhere"
            )
        return notes

    def __str__(self) -> str:
        return as_text(self.table())

    def __repr__(self) -> str:
        return f"<Plan: {self.describe()}>"


# What a growth says of itself, and its kinds.
_RECIPE = {
    "operator": str,
    "noise": str,
    "seed": int,
    "shrink": str,
    "optimizer": bool,
    "optimizer_state": str,
    "source": dict,
    "sha256": dict,
    "machine": str,
}


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What ``mupscale.json`` holds.

    Attributes:
        plan, from_first: of the last growth, and from the first model of the line.
        recipe: how it was grown: at least operator, noise and seed; empty where a plan alone was saved. What
            `mupscale grow` writes also has the checksums, the machine and what became of the optimizer.
    """

    plan: Plan
    from_first: Plan
    recipe: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def read(directory: str | Path) -> Manifest:
        """That of a directory.

        Raises:
            GrowthError: it holds none, or not one of ours.
        """
        path = Path(directory) / MANIFEST
        try:
            recipe = json.loads(path.read_text())
            plan, first = (Plan.from_dict(recipe.pop(key)) for key in ("plan", "from_first"))
        except OSError:
            raise GrowthError(f"{path}: not found; expected a directory that `mupscale grow` wrote") from None
        except Exception as error:  # config classes raise kinds of their own
            reason = one_line(error, limit=160)
            raise GrowthError(
                f"{path}: not a mupscale manifest ({reason}); grow the checkpoint again"
            ) from None
        for key, kind in _RECIPE.items() if "operator" in recipe else ():
            value = recipe.get(key, kind())
            if not isinstance(value, kind) or (key in ("noise", "seed") and key not in recipe):
                raise GrowthError(
                    f"{path}: {key} is {recipe.get(key)!r}, expected {kind.__name__}; grow again"
                )
        return Manifest(plan=plan, from_first=first, recipe=recipe)

    def write(self, directory: str | Path) -> None:
        """Write it beside a checkpoint's weights."""
        (Path(directory) / MANIFEST).write_text(json.dumps(self.to_dict(), indent=1))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**self.recipe, "plan": self.plan.to_dict(), "from_first": self.from_first.to_dict()}

    @property
    def made_by(self) -> str:
        """The recipe in words."""
        shrink = f", shrink {self.recipe['shrink']}" if "shrink" in self.recipe else ""
        return f"{self.recipe['operator']}{shrink}, noise {self.recipe['noise']}"


def builder(config: PreTrainedConfig) -> Callable[[], nn.Module]:
    """What makes the model of a config, on the ``meta`` device."""
    return lambda: skeleton(config)


def _config_from_dict(data: Mapping[str, Any] | None) -> PreTrainedConfig | None:
    return data and config_class(data).from_dict(dict(data))
