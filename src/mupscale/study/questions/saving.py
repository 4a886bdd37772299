"""What it saves to begin from something: FLOPs to the same loss, against training from scratch.

One of the two sides was run at several lengths, each with its own cooldown; where it comes down to the loss
with which the other side ends is interpolated between them.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from mupscale.study.page.parts import Answer, Cells, Table
from mupscale.study.page.plots import BLUE, LIGHT_BLUE, ORANGE, Line, Plot
from mupscale.study.questions import reading
from mupscale.study.questions.reading import Row, best_row, ends_of, sweep_of
from mupscale.study.questions.tuned import point_rows
from mupscale.study.questions.words import called, loss_over_flops, show_flops, show_loss
from mupscale.study.spec.space import show

# By how steps are known: the sign before them, that before a share which such steps divide, and why.
BOUNDS = {
    "interpolated": ("", "", ""),
    "at most": ("≤ ", "≥ ", ", since already the shortest run {} gets there"),
    "more than": ("> ", "< ", ", since the longest run {} does not get there"),
}
IN_WORDS = {"": "", "≤ ": "at most ", "≥ ": "at least ", "> ": "more than ", "< ": "less than "}
# Shares of the FLOPs from scratch, ever more counted in: in tables, in sentences, below figures.
SHARES = {
    "ratio": ("of from scratch", "", "of the FLOPs from scratch to the same loss"),
    "with_before": ("with the base model", "what came before", "counting what came before"),
    "with_tuning": ("with tuning, too", "the tuning, too,", "counting the tuning, too"),
}
EQUAL = {"equal_steps": "as many steps lead", "equal_compute": "the compute of both models leads"}


def saving(results: Row, *, of: str, against: str) -> Answer:
    """The FLOPs that a sweep needs to the loss of one from scratch, or the other way round.

    Twice, where values are taken from other sweeps: with these, and with the best of all tried here.
    """
    ours, theirs = sides = sweep_of(results, of), sweep_of(results, against)
    rows = [{"model": called(s)} | row for s in sides for row in point_rows(s, ["lr"], lengths=True)]
    title, ends = f"{called(ours).capitalize()} against {called(theirs)}", Table(rows)
    missing = [
        f"{side['name']} {'has no run that ended with a loss' if side['finished'] else 'is not finished'}"
        for side in sides
        if not (side["finished"] and side["best"])
    ]
    if missing:
        said = f"There is no comparison: {', and '.join(missing)}."
        return Answer(title=title, parts=(said, ends), headline=said)
    pairs = {"transferred": [_taken(results, side) for side in sides], "tuned": [*map(best_row, sides)]}
    if not (ours["takes"] or theirs["takes"]):
        del pairs["transferred"]
    found = {
        rates: compare(results, ours, theirs, *pair)  # type: ignore[arg-type]
        for rates, pair in pairs.items()
        if all(row and row["state"] == "complete" for row in pair)
    }
    first, tuned = found.get(next(iter(pairs))), found["tuned"]
    headline = _sentences(ours, theirs, first) if first else "With the values taken over a run diverged."
    lines = [headline]
    if first and first is not tuned and first["ratio"] == tuned["ratio"]:
        lines.append("Nothing else that was tried here did better, for either.")
    elif first is not tuned:
        rates = f"lr {show(tuned['lr'])} {called(ours)}, {show(tuned['against_lr'])} {called(theirs)}"
        lines.append(f"With the best of all tried here ({rates}) it takes {_shares(tuned)}.")
    if edges := [side["name"] for side in sides if "lr" in side["at_edge"]]:
        lines.append(f"The best rate of {' and of '.join(edges)} stands at the edge of those tried there.")
    reach, shown = Table([reach_row(rates, one) for rates, one in found.items()]), first or tuned
    return Answer(
        title=title,
        parts=(" ".join(lines), reach, _picture(results, ours, theirs, tuned), ends),
        headline=headline,
        figures=[(_share(shown, key), words[2]) for key, words in SHARES.items() if key in shown],
        data=found,
    )


def compare(results: Row, ours: Row, theirs: Row, our_row: Row, their_row: Row) -> Row:
    """What one point needs to the loss of the other.

    The side that was run at several lengths comes down to the other's final loss: ours, or theirs where only
    they have them (``backwards``); then of each length from scratch the best point counts.

    Returns:
        ``steps`` and ``flops_to_reach`` of that side, and the ``ratio`` of our FLOPs to theirs, also
        ``with_before`` and ``with_tuning``, where there are any (None: not known), ``sign`` before them.
    """
    our_ends, their_ends, step = ends_of(ours, our_row), ends_of(theirs, their_row), theirs["flops_per_step"]
    backwards = len(our_ends) == 1 < len(their_ends)
    their_ends = theirs["best_ends"] if backwards else their_ends
    sides = (our_ends, ours), (their_ends, theirs)
    (runs, part), (others, whole) = sides[::-1] if backwards else sides
    goal = others[-1]
    steps, bound = reading.steps_to_reach([(end["steps"], end["loss"]) for end in runs], goal["loss"])
    needed, spent = steps * part["flops_per_step"], goal["steps"] * whole["flops_per_step"]
    flops, cost = (spent, needed) if backwards else (needed, spent)
    before, tuning = reading.flops_before(results, ours), reading.tuning_of(results, [ours])
    found = {
        "backwards": backwards,
        "lr": our_row["point"].get("lr"),
        "against_lr": their_row["point"].get("lr"),
        "ends": our_ends,
        "against_ends": their_ends,
        "goal": goal,
        "steps": steps,
        "bound": bound,
        "sign": BOUNDS[bound][backwards],
        "flops_to_reach": needed,
        "before_flops": before,
        "tuning_flops": tuning,
        "ratio": flops / cost,
    }
    if before != 0:
        found["with_before"] = None if before is None else (flops + before) / cost
    if tuning:
        found["with_tuning"] = None if before is None else (flops + before + tuning) / cost
    if backwards:  # what from scratch comes to with as many steps, and with as much compute
        budgets = {"equal_steps": our_ends[-1]["steps"] * step, "equal_compute": flops + (before or math.nan)}
        for key, budget in budgets.items():
            close = (end for end in their_ends if abs(end["steps"] * step - budget) <= 0.51 * step)
            found[key] = next(close, None)
    return found


def _taken(results: Row, sweep: Row) -> Row | None:
    """The point at the values taken from other sweeps; the best where none were."""
    taken = {knob: sweep_of(results, name)["best"] for knob, name in sweep["takes"].items()}
    point = {knob: best["point"][knob] for knob, best in taken.items() if knob in sweep["knobs"]}
    return reading.point_at(sweep, point) if point else best_row(sweep)


# ---- tables and sentences ----------------------------------------------------------------------------------


def reach_row(rates: str, found: Row) -> Cells:
    """The loss to reach, what that takes, and the shares of the FLOPs from scratch."""
    return {
        "rates": rates,
        "lr grown": show(found["lr"]),
        "lr from scratch": show(found["against_lr"]),
        "loss to reach": show_loss(found["goal"]["loss"], found["goal"]["spread"]),
        "FLOPs to reach it": BOUNDS[found["bound"]][0] + show_flops(found["flops_to_reach"]),
        **{head: _share(found, key) for key, (head, *_) in SHARES.items() if key in found},
    }


def _share(found: Row, key: str) -> str:
    return "not known" if found[key] is None else f"{found['sign']}{found[key]:.0%}"


def _sentences(ours: Row, theirs: Row, found: Row) -> str:
    """Both final losses; the FLOPs to the same one; what from scratch gives for equal steps and compute."""
    mine, other = found["ends"][-1], found["against_ends"][-1]
    us, them = f"{called(ours)} model", called(theirs)
    why = BOUNDS[found["bound"]][2].format(them if found["backwards"] else called(ours))
    loss, goal = (show_loss(end["loss"], end["spread"], digits=3) for end in (mine, other))
    text = (
        f"The {us} ended at a loss of {loss} after {mine['steps']} steps, the same one {them} at {goal} "
        f"after {other['steps']}. To the same loss the {us} takes {_shares(found)}{why}."
    )
    for key, what in EQUAL.items():
        if end := found.get(key):
            text += f" {them.capitalize()}, {what} to {end['loss']:.3f} ({end['steps']} steps)."
    return text


def _shares(found: Row) -> str:
    """The share of the FLOPs from scratch, ever more counted in, and whether it pays then."""
    word, lower = IN_WORDS[found["sign"]], found["sign"] in ("> ", "≥ ")
    text = f"{word}{found['ratio']:.0%} of the FLOPs from scratch"
    for key in ("with_before", "with_tuning"):
        if key in found and found[key] is None:
            return f"{text}; what the training before cost is not known"
        if key in found:
            pays = "it pays" if found[key] < 1 else "it does not pay"
            if found["sign"] and lower == (found[key] < 1):
                pays = "whether it pays is not known"
            text += f", {word}{found[key]:.0%} with {SHARES[key][1]} counted in ({pays})"
    return text


# ---- the picture -------------------------------------------------------------------------------------------


def _picture(results: Row, ours: Row, theirs: Row, found: Row) -> Plot:
    """Held-out loss over compute, ours with and without what came before it."""
    us, them, before = called(ours), called(theirs), found["before_flops"] or 0
    sides = [(them, theirs, "against_ends", 0, ORANGE), (us, ours, "ends", 0, BLUE)]
    if before:
        sides.insert(1, (f"{us}, with what came before", ours, "ends", before, LIGHT_BLUE))
    lines, between = [], []
    for name, sweep, key, ahead, colour in sides:
        row, ends, step = best_row(sweep), found[key], sweep["flops_per_step"]
        assert row is not None
        curve = [[at * step + ahead, *losses] for at, *losses in row["curve"]]
        stops = [[end["steps"] * step + ahead, *reading.band(end)] for end in ends if len(ends) > 1]
        label, style = (name, "--") if ahead else (f"{name}: {ends[-1]['loss']:.3f}", "-")
        lines.append(Line(name=name, curve=curve, ends=stops, label=label, colour=colour, style=style))
        for short, long in pairwise(ends):  # between lengths, linear in the logarithm of the steps
            steps = np.geomspace(short["steps"], long["steps"], 20)
            between.append((steps * step + ahead, np.linspace(short["loss"], long["loss"], 20), colour))
    caption = (
        "At the best of what was tried. Diamonds: where training ends if stopped there, after a cooldown of "
        "its own; thin, the losses between. Dotted: the loss to reach."
    ) + (" Dashed: the same, what came before it counted in." if before else "")
    plot = loss_over_flops(results, "final_loss_over_flops", {"": lines}, "training compute (FLOPs)", caption)
    (axes,) = plot.figure.axes
    for flops, losses, colour in between:
        axes.plot(flops, losses, color=colour, linewidth=0.8)
    goal, at_flops = found["goal"]["loss"], found["flops_to_reach"]
    mover, other, said = BLUE, ORANGE, f"{found['ratio']:.0%} of {them} "
    if found["backwards"]:
        mover, other, said = ORANGE, BLUE, f"{found['steps']:.0f} steps "
    axes.axhline(goal, color=other, linewidth=1, linestyle=":")
    if found["bound"] == "interpolated":
        axes.plot(at_flops, goal, marker="o", markersize=9, color=mover, markerfacecolor="none", zorder=5)
        axes.vlines(at_flops, 0, goal, color=mover, linewidth=1, linestyle=":")
        place = axes.get_xaxis_transform()
        axes.text(at_flops, 0.02, said, color=mover, ha="right", fontsize=9, transform=place)
    return plot
