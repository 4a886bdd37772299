"""The knobs of growth, and what they say in the words of `mupscale.grow`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mupscale.operators.noise import exact_text

# Knobs of growth, and what each is when nothing is said. None: as the operator's paper or the settings have
# it. Where neither noise nor its kind is said, noise is the operator's own.
GROWTH_KNOBS: dict[str, Any] = {
    "operator": "duplicate",
    "noise_kind": "balanced",
    "noise": 1.0,
    "shrink": None,
    "optimizer_state": None,
}


def noise_of(knobs: Mapping[str, Any]) -> str:
    """The noise in the notation of `mupscale.grow`; the operator's own where nothing is said of it.

    >>> noise_of({"noise": 0.5}), noise_of({"noise": 0, "noise_kind": "gaussian"}), noise_of({"lr": 1})
    ('balanced:0.5', 'none', 'default')
    >>> noise_of({"noise": "gaussian:0.3"}), noise_of({"noise": 1 / 3})
    ('gaussian:0.3', 'balanced:0.3333333333333333')
    """
    if not {"noise", "noise_kind"} & knobs.keys():
        return "default"
    kind, strength = (knobs.get(name, GROWTH_KNOBS[name]) for name in ("noise_kind", "noise"))
    if isinstance(strength, str):
        return strength
    return f"{kind}:{exact_text(strength)}" if strength else "none"


def recipe_of(knobs: Mapping[str, Any], deeper: float = 1) -> str:
    """The same growth as options of `mupscale grow`; of layers, how many times as many.

    >>> recipe_of({"operator": "zero_pad", "shrink": 0.4, "lr": 0.01}), recipe_of({"noise": 2})
    ('--operator zero_pad --shrink 0.4', '--operator duplicate --noise balanced:2')
    >>> recipe_of({"operator": "stack"}, deeper=2)
    '--axes layers=2 --operator stack'
    """
    states = {"fresh": " --no-optimizer", "carried": " --carry-optimizer"}
    states["asymmetric"] = " --optimizer-state asymmetric"
    words = {"axes": f"layers={deeper:g}"} if deeper != 1 else {}
    words |= {"operator": knobs.get("operator", GROWTH_KNOBS["operator"])}
    words |= {"noise": noise_of(knobs)} if noise_of(knobs) != "default" else {}
    words |= {"shrink": exact_text(knobs["shrink"])} if "shrink" in knobs else {}
    said = " ".join(f"--{option} {value}" for option, value in words.items())
    return said + states.get(knobs.get("optimizer_state", ""), "")
