"""Looking things up in the results of a study, and writing single values. Knows plain data only.

Takes what `mupscale.study.tune.results.collect` returned, or `results.json` read back, in which a diverged
loss is None instead of infinite: only ``state`` tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mupscale.study.tune.spec import FAMILIES, TEXT_FAMILIES

Row = dict[str, Any]

TUNED_KINDS = ("scratch", "grow")
WIDTH_WORDS = {"mlp": "hidden units", "resnet18": "channels of the first stage"}


# ---- the study ---------------------------------------------------------------------------------------------


def loss_unit(results: Row) -> str:
    """What a loss is counted in."""
    classifier = results["model"]["family"] in set(FAMILIES) - set(TEXT_FAMILIES)
    return "nats per item" if classifier else "nats per token"


def width_word(results: Row) -> str:
    """What width means for the model of the study."""
    return WIDTH_WORDS.get(results["model"]["family"], "d_model")


def sweep_of(results: Row, kind: str, width: int) -> Row | None:
    """The sweep of a kind at a narrow width; None where it has not begun."""
    return next((s for s in results["sweeps"] if (s["kind"], s["width"]) == (kind, width)), None)


def sweeps_of(results: Row, kind: str) -> list[Row]:
    """All sweeps of a kind, ascending in width."""
    return sorted((s for s in results["sweeps"] if s["kind"] == kind), key=lambda sweep: sweep["width"])


def checks_transfer(results: Row) -> bool:
    """Whether this is the transfer check, and not the procedure."""
    return bool(results["transfer"]) or len(sweeps_of(results, "grow")) > 1


# ---- a sweep -----------------------------------------------------------------------------------------------


def with_state(sweep: Row, state: str) -> list[Row]:
    """The points that ended so: complete, diverged or pruned."""
    return [row for row in sweep["points"] if row["state"] == state]


def tried(sweep: Row, knob: str) -> list[Any]:
    """The values of a knob, ascending."""
    return sorted({row["point"][knob] for row in sweep["points"] if knob in row["point"]})


def varied(sweep: Row) -> list[str]:
    """The knobs of which more than one value was tried."""
    return [knob for knob in sweep["knobs"] if knob != "seed" and len(tried(sweep, knob)) > 1]


def point_at(sweep: Row, point: Row) -> Row | None:
    """The row of one point; None where it was not tried."""
    return next((row for row in sweep["points"] if row["point"] == point), None)


def trials_done(sweep: Row) -> int:
    """How many trials are finished."""
    return sum(len(row["trials"]) for row in sweep["points"])


def seeds_of(sweep: Row) -> int:
    """Repetitions of a point; a pruned one may have fewer."""
    return max((len(row["losses"]) for row in sweep["points"]), default=0)


def steps_of(sweep: Row) -> int:
    """Optimizer steps of a run that was not cut short; 0 where there is none."""
    return max((row["curve"][-1][0] for row in with_state(sweep, "complete") if row["curve"]), default=0)


def lengths_of(losses: Row) -> list[tuple[int, float]]:
    """Steps and final losses, shortest first; JSON has made the steps strings."""
    return sorted((int(steps), loss) for steps, loss in losses.items())


# ---- values ------------------------------------------------------------------------------------------------


def show(value: Any) -> str:
    """A value of a knob.

    >>> show(0.0040000001), show("balanced")
    ('0.004', 'balanced')
    """
    return value if isinstance(value, str) else f"{value:.4g}"


def show_point(point: Row, knobs: Sequence[str] | None = None) -> str:
    """Knobs and values in a line.

    >>> show_point({"lr": 0.004, "noise": 1.0})
    'lr 0.004, noise 1'
    """
    return ", ".join(f"{knob} {show(point[knob])}" for knob in (point if knobs is None else knobs))


def show_loss(loss: float | None, spread: float | None = None, *, digits: int = 4) -> str:
    """A mean and one standard deviation over the seeds.

    >>> show_loss(1.5, 0.01), show_loss(None)
    ('1.5000 ± 0.0100', '–')
    """
    if loss is None:
        return "–"
    return f"{loss:.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")


def show_flops(flops: float) -> str:
    """Floating point operations, short.

    >>> show_flops(5_105_909_760)
    '5.11e9'
    """
    mantissa, _, exponent = f"{flops:.2e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def widths(sweep: Row) -> str:
    """32, or 32 → 64."""
    return str(sweep["width"]) if sweep["to"] == sweep["width"] else f"{sweep['width']} → {sweep['to']}"
