"""How a study came out, in sentences: grown against from scratch, and whether the optimum transfers.

Knows the results of `mupscale.study.tune.results`; bounds are called bounds, and what is not known is said.
"""

from __future__ import annotations

from typing import Any

from mupscale.study.tune.reading import (
    Row,
    lengths_of,
    show,
    show_loss,
    sweep_of,
    sweeps_of,
    varied,
    with_state,
)
from mupscale.study.tune.results import LARGEST_FACTOR, LARGEST_REGRET

# Of `mupscale.study.savings.steps_to_reach`, before a number.
BOUND_SIGNS = {"interpolated": "", "more than": "> ", "at most": "≤ "}

# ---- the final comparison ----------------------------------------------------------------------------------


def final(results: Row) -> list[str]:
    """Grown against from scratch: with the transferred rates, and with the best tried at the large width."""
    found = results["final"]
    large, growth = results["widths"]["large"], results["widths"]["growth"]
    if not found:
        return _no_final(results)
    lines = []
    grown, fresh = sweep_of(results, "grown", large), sweep_of(results, "fresh", large * growth)
    if found["transferred"]:
        lines += [reached(found["transferred"]), *_counted(found["transferred"])]
    else:
        lines.append(f"With the transferred rates there is no comparison: {_which_failed(grown, fresh)}.")
    if not found["tuned"]:
        return lines
    same = found["transferred"] and all(
        found["tuned"][key] == found["transferred"][key] for key in ("grown_lr", "scratch_lr")
    )
    if same and all(len(sweep["points"]) == 1 for sweep in (grown, fresh) if sweep):
        lines.append("No other rates were tried at the large width.")
    elif same:
        lines.append("No other rate that was tried at the large width did better, for either.")
    else:
        rates = f"{show(found['tuned']['grown_lr'])} grown, {show(found['tuned']['scratch_lr'])} from scratch"
        lines.append(
            f"With the best rates of those tried at the large width ({rates}; finding them there is not "
            f"counted): {_lower(reached(found['tuned']))}"
        )
        lines += _counted(found["tuned"])
    at_edge = [s["name"] for s in (grown, fresh) if s and "lr" in s["at_edge"]]
    if at_edge:
        lines.append(f"The best rate of {' and of '.join(at_edge)} stands at the edge of those tried there.")
    return lines


def reached(found: Row) -> str:
    """Both final losses, and the share of the FLOPs that growing needs."""
    lengths, bound = lengths_of(found["grown_losses"]), found["steps_to_reach"]["bound"]
    steps, loss = lengths[-1]
    goal = show_loss(found["scratch_loss"], found["scratch_spread"], digits=3)
    per_step = found["flops_to_reach"] / found["steps_to_reach"]["steps"]
    text = (
        f"The grown model ended at a loss of {show_loss(loss, found['grown_spread'], digits=3)} after "
        f"{steps} steps, the same one from scratch at {goal} after {found['scratch_flops'] / per_step:.0f}. "
    )
    if bound == "more than":
        return text + (
            f"Growing did not reach the loss from scratch, with {found['ratio']:.0%} of its FLOPs spent; "
            "what it would take is not known."
        )
    if bound == "at most":
        return text + (
            f"Already the grown model's shortest run, {lengths[0][0]} steps, reached the loss from scratch: "
            f"it takes at most {found['ratio']:.0%} of the FLOPs."
        )
    return text + f"To end at the loss from scratch, growing takes {found['ratio']:.0%} of the FLOPs."


def share_of(found: Row) -> str:
    """The share of the FLOPs as the end of a sentence, for rates other than those it was about.

    >>> share_of({"ratio": 0.4, "steps_to_reach": {"bound": "at most"}})
    'it takes at most 40%'
    """
    share = f"{found['ratio']:.0%}"
    return {
        "interpolated": f"it takes {share}",
        "at most": f"it takes at most {share}",
        "more than": f"{share} is not enough",
    }[found["steps_to_reach"]["bound"]]


def _counted(found: Row) -> list[str]:
    """Whether it pays once the base model and the tuning are counted in."""
    bound = found["steps_to_reach"]["bound"]
    sign = {"interpolated": "", "more than": "more than ", "at most": "at most "}[bound]
    parts = [
        f"{sign}{found[key]:.0%} with {what} counted in ({_pays(found[key], bound)})"
        for key, what in (
            ("ratio_with_narrow", "the base model's training"),
            ("ratio_with_narrow_and_tuning", "the tuning, too,"),
        )
    ]
    return [f"Of the FLOPs from scratch that is {', and '.join(parts)}."]


def _pays(ratio: float, bound: str) -> str:
    if ratio < 1:
        return "whether it pays is not known" if bound == "more than" else "it pays"
    return "whether it pays is not known" if bound == "at most" else "it does not pay"


def _no_final(results: Row) -> list[str]:
    large, growth = results["widths"]["large"], results["widths"]["growth"]
    grown, fresh = sweep_of(results, "grown", large), sweep_of(results, "fresh", large * growth)
    missing = [
        f"{sweep['name']} has no run that ended with a loss"
        for sweep in (grown, fresh)
        if sweep and sweep["finished"] and not sweep["best"]
    ]
    if missing:
        return [f"There is no comparison: {', and '.join(missing)}."]
    return ["There is no comparison yet: the runs at the large width are not finished."]


def _which_failed(*found: Row | None) -> str:
    rows = [
        f"{sweep['name']} at lr {show(row['point']['lr'])} diverged"
        for sweep in found
        if sweep
        for row in with_state(sweep, "diverged")
    ]
    return ", ".join(rows) or "a run is missing"


# ---- transfer ----------------------------------------------------------------------------------------------


def transfer(results: Row) -> list[str]:
    """How far the optimum moves with width, and what the narrowest one's costs at the widest."""
    found = results["transfer"]
    if not found:
        return []
    first, last = found["rows"][0], found["rows"][-1]
    before, after = (f"{row['from']} → {row['to']}" for row in (first, last))
    knobs = [k for k in first["point"] if any(k in varied(sweep) for sweep in sweeps_of(results, "grow"))]
    changes = [
        f"{knob} from {show(first['point'][knob])} to {show(last['point'][knob])}"
        + (f" ({ratio})" if (ratio := _ratio(first["point"][knob], last["point"][knob])) else "")
        for knob in knobs
        if first["point"][knob] != last["point"][knob]
    ]
    kept = [f"{k} at {show(first['point'][k])}" for k in knobs if first["point"][k] == last["point"][k]]
    text = f"From {before} to {after}, {found['width_ratio']:g} times as wide, "
    text += f"the optimum moved: {', '.join(changes)}" if changes else "the optimum stayed where it was"
    text += f"{'; it kept ' if changes else ': '}{', '.join(kept)}." if kept else "."
    lines = [text, _regret_at(first, last), _verdict(results), *_edges_of(results)]
    if found["diverged"]:
        lines.append(
            f"Every point diverged at {', '.join(map(str, found['diverged']))}: it does not transfer."
        )
    return lines


def transfers(results: Row) -> bool | None:
    """Whether the optimum transfers; None where the narrowest one has no loss at the widest pair."""
    if regret(results["transfer"]["rows"][-1]) == "–":
        return None
    return bool(results["transfer"]["transfers"])


def _verdict(results: Row) -> str:
    """Whether that counts as transfer, and by which measure."""
    measure = (
        f"the narrowest one's loss at the widest pair is at most {LARGEST_REGRET:.1%} above the best there, "
        f"and no number moved by more than a factor of {LARGEST_FACTOR:g}"
    )
    answer = {True: "This one does", False: "This one does not", None: "Whether this one does is not known"}
    return f"An optimum counts as transferring if {measure}. {answer[transfers(results)]}."


def _regret_at(first: Row, last: Row) -> str:
    """What the narrowest optimum gives at the widest, in a sentence."""
    after, there = f"{last['from']} → {last['to']}", last["narrowest_optimum"]
    if there["state"] == "not tried":
        return f"The narrowest optimum itself was not tried at {after}; what it costs there is not known."
    if there["state"] == "diverged":
        return f"At {after} the narrowest optimum diverged: it does not transfer."
    if there["state"] == "pruned":
        return f"At {after} the narrowest optimum was pruned, so its loss there is not known."
    if first["point"] == last["point"]:
        return f"It is the best point at {after}, too, with loss {show_loss(last['loss'], last['spread'])}."
    worse, spread = there["loss"] - last["loss"], last["spread"]
    text = (
        f"At {after} the narrowest optimum gives a loss of {there['loss']:.4f}, where the best point gives "
        f"{last['loss']:.4f}: {worse / last['loss']:.2%} more"
    )
    if spread is None:
        return text + "; one seed does not tell whether that is noise."
    return text + (
        f", within the spread over seeds (± {spread:.4f})."
        if worse <= spread
        else f", more than the spread over seeds (± {spread:.4f})."
    )


def _edges_of(results: Row) -> list[str]:
    at = [
        f"{', '.join(r['at_edge'])} at {r['from']} → {r['to']}"
        for r in results["transfer"]["rows"]
        if r["at_edge"]
    ]
    if not at:
        return []
    return [f"The optimum stands at the edge of what was tried ({'; '.join(at)}): it may move further."]


def regret(row: Row) -> str:
    """What the narrowest optimum costs at a pair of widths, as a share of the best loss there."""
    there = row["narrowest_optimum"]
    if there["state"] != "complete":
        return "diverged" if there["state"] == "diverged" else "–"
    return f"{there['loss'] / row['loss'] - 1:.2%}"


def moved(before: Any, after: Any, knob: str) -> str:
    """How a knob's best value changed; empty where it did not.

    >>> moved(0.004, 0.002, "lr"), moved(0, 1.0, "noise"), moved("gaussian", "balanced", "noise_kind")
    ('lr ÷2', 'noise 0 → 1', 'noise_kind gaussian → balanced')
    """
    if before == after:
        return ""
    return f"{knob} {_ratio(before, after) or f'{show(before)} → {show(after)}'}"


def _ratio(before: Any, after: Any) -> str:
    """×2 or ÷2; empty where there is no ratio."""
    if any(isinstance(value, str) or value <= 0 for value in (before, after)):
        return ""
    return f"×{after / before:.3g}" if after > before else f"÷{before / after:.3g}"


def _lower(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]
