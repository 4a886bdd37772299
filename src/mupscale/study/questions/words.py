"""Writing single values: losses, FLOPs, points, widths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]


def show(value: Any) -> str:
    """A value of a knob; – for none.

    >>> show(0.0040000001), show("balanced"), show(None)
    ('0.004', 'balanced', '–')
    """
    return "–" if value is None else f"{value:.4g}" if isinstance(value, int | float) else str(value)


def show_point(point: Row) -> str:
    """Knobs and values in a line.

    >>> show_point({"lr": 0.004, "noise": 1.0})
    'lr 0.004, noise 1'
    """
    return ", ".join(f"{knob} {show(value)}" for knob, value in point.items())


def show_loss(loss: float | None, spread: float | None = None, *, digits: int = 4) -> str:
    """A mean and one standard deviation over the seeds.

    >>> show_loss(1.5, 0.01), show_loss(None)
    ('1.5000 ± 0.0100', '–')
    """
    if loss is None or not math.isfinite(loss):
        return "–"
    return f"{loss:.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")


def show_flops(flops: float) -> str:
    """Floating point operations, short.

    >>> show_flops(5_105_909_760)
    '5.11e9'
    """
    mantissa, _, exponent = f"{flops:.2e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def called(sweep: Row) -> str:
    """How its models began."""
    return {"scratch": "from scratch", "grow": "grown", "continue": "continued"}.get(sweep["begin"], "given")


def widths(sweep: Row) -> str:
    """32, or 32 → 64."""
    before = sweep["from_width"]
    return str(sweep["width"]) if before is None else f"{before} → {sweep['width']}"


def loss_axis(results: Row) -> str:
    """What a loss is, and is counted in."""
    return f"held-out loss ({results['unit']})"


def several(words: Sequence[str]) -> str:
    """A list in words.

    >>> several(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))
