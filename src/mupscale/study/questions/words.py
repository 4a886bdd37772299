"""What all questions say alike: single values, such as losses and FLOPs; curves over compute."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mupscale.study.page.plots import Panels, Plot, draw

Row = dict[str, Any]


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
    """32, or 32 → 64; where the study says how deep its models are, 32 with 4 layers, 32 with 4 → 8 layers.

    >>> widths({"width": 64, "from_width": 32, "layers": None})
    '32 → 64'
    >>> widths({"width": 32, "from_width": 32, "layers": 8, "from_layers": 4})
    '32 with 4 → 8 layers'
    """
    width, layers = ((sweep.get(f"from_{key}"), sweep.get(key)) for key in ("width", "layers"))
    if layers[1] is None:
        return _from_to(*width)
    return f"{_from_to(*width, once=True)} with {_from_to(*layers, once=True)} layers"


def size(sweep: Row) -> str:
    """The same without what it comes from.

    >>> size({"width": 32, "from_width": 32, "layers": 8, "from_layers": 4})
    '32 with 8 layers'
    """
    return widths(sweep | {"from_width": None, "from_layers": None})


def _from_to(before: Any, after: Any, *, once: bool = False) -> str:
    """Both; or the latter, where there is no other, or ``once`` where they are the same."""
    return str(after) if before is None or (once and before == after) else f"{before} → {after}"


def loss_axis(results: Row) -> str:
    """What a loss is, and is counted in."""
    return f"held-out loss ({results['unit']})"


def loss_over_flops(results: Row, name: str, panels: Panels, x: str, caption: str, **look: Any) -> Plot:
    """A picture of curves over what they cost: means over the seeds, and bands."""
    caption = f"Means over the seeds, with bands from the best to the worst. {caption}"
    look = {"zoom": 0.5} | look
    return draw(name, panels, columns=("flops", "loss"), x=x, y=loss_axis(results), caption=caption, **look)


def several(words: Sequence[str]) -> str:
    """A list in words.

    >>> several(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))
