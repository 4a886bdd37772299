"""What was tuned and how, in sentences made from the numbers. How it came out is told by `outcome`.

Knows the results of `mupscale.study.tune.results`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mupscale.study.tune.outcome import final, reached, share_of, transfer
from mupscale.study.tune.reading import (
    Row,
    checks_transfer,
    loss_unit,
    seeds_of,
    show,
    show_flops,
    show_loss,
    show_point,
    steps_of,
    sweep_of,
    sweeps_of,
    trials_done,
    tried,
    varied,
    width_word,
    widths,
    with_state,
)

# ---- the whole study ---------------------------------------------------------------------------------------


def title(results: Row) -> str:
    """Of the page and of the tables."""
    narrow, large, growth = (results["widths"][key] for key in ("narrow", "large", "growth"))
    if checks_transfer(results):
        grow = sweeps_of(results, "grow")
        return f"{results['study']}: does what is tuned at {widths(grow[0])} hold at {widths(grow[-1])}?"
    return (
        f"{results['study']}: tuned at {narrow} → {narrow * growth}, used at {large} → {large * growth} "
        f"({width_word(results)})"
    )


def headline(results: Row) -> str:
    """The result in a sentence or two."""
    if results["transfer"]:
        return " ".join(transfer(results)[:2])
    narrow, growth = results["widths"]["narrow"], results["widths"]["growth"]
    best = results["tuned"]["grow"]
    if not best:
        return "No values of growth are tuned yet." if not (none := tuned(results)) else none[-1]
    where = f"at {narrow} → {narrow * growth}"
    if not results["final"]:
        return f"Growth tuned {where}: {show_point(best['point'])}, loss {_loss(best)}."
    found = results["final"]["transferred"]
    text = f"Growth was tuned {where} ({show_point(best['point'])}) and used at {_large(results)}. "
    if not found:
        return text + final(results)[0]
    tuned_there = results["final"]["tuned"]
    text += reached(found)
    if tuned_there["ratio"] != found["ratio"]:
        text += f" With the best rates tried there for both, {share_of(tuned_there)}."
    return text


def unfinished(results: Row) -> list[str]:
    """Which sweeps are not done, and what that means; nothing where all are."""
    left = [sweep for sweep in results["sweeps"] if not sweep["finished"]]
    if not left:
        return []
    names = ", ".join(f"{s['name']} ({trials_done(s)} of {s['total']} trials)" for s in left)
    return [f"Not finished: {names}. What is said here is about the trials done so far, and may change."]


def method(results: Row) -> list[str]:
    """How it was measured."""
    narrow = results["widths"]["narrow"]
    lines = [
        f"Data: {results['data']}. Losses are those on the held-out part, in {loss_unit(results)}, at the "
        "end of each run; lower is better.",
        "Seeds: every point is the mean over "
        + ", ".join(f"{seeds_of(s)} ({s['name']})" for s in results["sweeps"] if s["points"])
        + " of them; ± is one standard deviation over the seeds. A seed has its own weights, noise and order "
        "of the data.",
        "Steps of a run: "
        + ", ".join(f"{steps_of(s)} ({s['name']})" for s in results["sweeps"] if steps_of(s))
        + ".",
        f"All learning rates are said as those of the model of width {narrow}; a wider one's follow from "
        "them by μP, and a grown one's by the rules of growth.",
        _data_of_growth(results["passes_of_base"]),
        "FLOPs are those of the matrix products of forward and backward pass, at two operations per "
        "multiply-add, counted by torch on the real model; attention is counted in full, the masked half "
        "included. Elementwise work, the optimizer's update and evaluation are not counted.",
    ]
    training = results.get("training")
    if training:
        lines.insert(3, "Training: " + ", ".join(f"{key} {_setting(x)}" for key, x in training.items()) + ".")
    if results["final"]:
        lines.append(
            "Each length of the grown model's training has a cooldown of its own. Between two lengths the "
            "final loss is taken as linear in the logarithm of the steps; beyond them only a bound is given."
        )
    return lines


def _data_of_growth(passes: float) -> str:
    """What data a grown model sees, next to its base model."""
    if passes <= 1:
        seen = "trains on data that its base model has not seen"
    else:
        seen = f"goes on in the shuffled data, which its base model has been through {passes:.1f} times"
    return f"A grown model {seen}; the one from scratch that it is compared with sees the same as it does."


def _setting(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


# ---- one sweep ---------------------------------------------------------------------------------------------


def sweep_title(sweep: Row) -> str:
    """Name, what is trained, how far it is."""
    kind = "from scratch at" if sweep["kind"] == "scratch" else "grown"
    return f"{sweep['name']}: {kind} {widths(sweep)}, {trials_done(sweep)} of {sweep['total']} trials"


def sweep(sweep: Row) -> list[str]:
    """The best point of a sweep, how sure it is, and what did not work."""
    lines = []
    fixed = [knob for knob in sweep["knobs"] if knob not in (*varied(sweep), "seed") and tried(sweep, knob)]
    if fixed:
        lines.append(f"The same everywhere: {', '.join(f'{k} {show(tried(sweep, k)[0])}' for k in fixed)}.")
    best = sweep["best"]
    if not best:
        return [*lines, "No point has a loss yet." if not sweep["points"] else "No point ended with a loss."]
    if varied(sweep):
        lines.append(f"Best: {show_point(best['point'], varied(sweep))}, with loss {_loss(best)}.")
        near = [
            row
            for row in with_state(sweep, "complete")
            if row["point"] != best["point"] and row["loss"] - best["loss"] <= (best["spread"] or 0)
        ]
        if near:
            lines.append(
                f"{len(near)} other point{_s(near)} lie{'s' if len(near) == 1 else ''} within that spread."
            )
    lines += edges(sweep)
    for state, meaning in (("diverged", "diverged"), ("pruned", "pruned: given up before the end")):
        if rows := with_state(sweep, state):
            lines.append(f"{len(rows)} of {len(sweep['points'])} points {meaning}.")
    return lines


def edges(sweep: Row) -> list[str]:
    """Where the optimum stands at the end of what was tried, so that a better one may lie beyond."""
    lines = []
    for knob in sweep["at_edge"]:
        value, values = sweep["best"]["point"][knob], tried(sweep, knob)
        upper = values.index(value) >= len(values) / 2
        if value == 0:
            lines.append(f"The best {knob} is 0, the lowest there is.")
        else:
            lines.append(
                f"The best {knob}, {show(value)}, stands at the {'upper' if upper else 'lower'} edge of what "
                "was tried: a better one may lie beyond."
            )
    pairs = [
        k for k in varied(sweep) if len(tried(sweep, k)) == 2 and not isinstance(tried(sweep, k)[0], str)
    ]
    if pairs:
        lines.append(f"Of {' and '.join(pairs)} only two values were tried: the optimum may lie elsewhere.")
    return lines


# ---- tuning ------------------------------------------------------------------------------------------------


def tuned(results: Row) -> list[str]:
    """Edges that the tuned values stand at, sweeps without any."""
    lines = []
    for kind in ("scratch", "grow"):
        found = sweep_of(results, kind, results["widths"]["narrow"])
        if found and found["best"]:
            lines += [f"{found['name']}: {line}" for line in edges(found)]
        elif found and found["points"]:
            lines.append(f"{found['name']}: no point has ended with a loss; there is nothing to transfer.")
    return lines


def cost(results: Row) -> list[str]:
    """What tuning cost."""
    spent, large = results["tuned"]["flops"], results["tuned"]["large_run_flops"]
    if not spent:
        return []
    text = f"Tuning at the narrow widths cost {show_flops(spent)} FLOPs, all points and seeds together"
    if large:
        text += f": {spent / large:.1%} of one run of the large model from scratch ({show_flops(large)})"
    return [text + "."]


# ---- small words -------------------------------------------------------------------------------------------


def _large(results: Row) -> str:
    large = results["widths"]["large"]
    return f"{large} → {large * results['widths']['growth']}"


def _loss(found: Row) -> str:
    return show_loss(found["loss"], found["spread"], digits=4)


def _s(many: Sequence[Any]) -> str:
    return "" if len(many) == 1 else "s"
