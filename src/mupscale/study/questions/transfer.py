"""Does the optimum stay where it is while the width grows, or the depth?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mupscale.study.page.parts import Answer, Table, table_of
from mupscale.study.questions.knobs import knob_plots
from mupscale.study.questions.reading import Row, point_at, sweeps_of, varied
from mupscale.study.questions.words import several, show_loss, widths
from mupscale.study.spec.space import show

LARGEST_FACTOR = 2.0
LARGEST_REGRET = 0.005
MEASURE = (
    f"An optimum counts as transferring if the narrowest one costs at most {LARGEST_REGRET:.1%} of the loss "
    f"at the widest, and no number moved by more than a factor of {LARGEST_FACTOR:g}."
)
MEASURE_OF_LISTS = (
    f"The last passes if its learning rate moves by at most a factor of {LARGEST_FACTOR:g}, by less than "
    "that of the first, and stands at no edge of what was tried."
)


def transfer(results: Row, *, of: Sequence[str | Sequence[str]], names: Sequence[str] = ()) -> Answer:
    """How far the optimum moves with width, or with depth, and what the narrowest one's costs at the widest.

    An optimum passes that moves by at most `LARGEST_FACTOR` and costs at most `LARGEST_REGRET`. Of several
    lists the last passes if its learning rate moves by no more than that, by less than that of the first,
    and stands at no edge of what was tried.

    Args:
        results: of the study.
        of: sweeps of one grid at several widths; or lists of such, which are compared with each other.
        names: of these lists.
    """
    nested = not isinstance(of[0], str)
    lists: Sequence[Any] = of if nested else [of]
    panels = names or [str(i + 1) if nested else "" for i in range(len(lists))]
    groups = {name: sweeps_of(results, group) for name, group in zip(panels, lists, strict=True)}
    known = {name: optima([s for s in sweeps if s["finished"]]) for name, sweeps in groups.items()}
    found = {name: one for name, one in known.items() if one}
    lines = [f"{name}: {_moves(one)}" if name else _moves(one) for name, one in found.items()]
    passed, figures = None, []
    if len(found) == len(groups):
        passed = _stays([*found.values()]) if nested else found[panels[0]]["transfers"]
        figures.append(({True: "yes", False: "no", None: "?"}[passed], "does the optimum transfer?"))
    if nested and passed is not None:
        lines.append(f"{panels[-1]} {'passes' if passed else 'does not pass'}.")
    elif found and not nested:
        last = found[panels[0]]["rows"][-1]
        lines += [_cost(last), {True: "It transfers.", False: "It does not transfer.", None: ""}[passed]]
        figures += [
            (show_loss(last["loss"], digits=3), f"best loss at {last['widths']}"),
            (_regret(last), f"at {last['widths']} with the narrowest optimum, above the best loss there"),
        ]
    said = " ".join(lines).strip() or "Fewer than two widths are known yet."
    tables = [_table(one, name) for name, one in found.items()]
    return Answer(
        title="Does the optimum transfer?",
        parts=(
            said,
            MEASURE_OF_LISTS if nested else MEASURE,
            *tables,
            *knob_plots(results, groups, same_scale=nested),
        ),
        headline=said,
        figures=figures,
        passed=passed,
        data=found,
    )


def optima(sweeps: Sequence[Row]) -> Row | None:
    """The optimum at each width, how far it moved, and what the narrowest one's costs there.

    Returns:
        ``knobs``: those that varied; ``factor``: by knob with numbers, the ratio of the optima at the
        narrowest and the widest; ``regret``: the loss at the widest with the narrowest's optimum over the
        best one there, less 1; ``transfers``: None where the former is not known. None for fewer than two
        widths.
    """
    diverged = [sweep["width"] for sweep in sweeps if not sweep["best"]]
    sweeps = sorted((s for s in sweeps if s["best"]), key=lambda s: (s["width"], s.get("layers") or 0))
    if len(sweeps) < 2:
        return None
    chosen, rows = sweeps[0]["best"]["point"], []
    for sweep in sweeps:
        there = point_at(sweep, chosen) or {"state": "not tried"}
        loss = there["loss"] if there["state"] == "complete" else None
        regret = None if loss is None else loss / sweep["best"]["loss"] - 1
        seen = {"at_narrowest": loss, "state": there["state"], "regret": regret}
        rows.append({"widths": widths(sweep), **sweep["best"], "at_edge": sweep["at_edge"], **seen})
    last, moved = rows[-1], {knob for sweep in sweeps for knob in varied(sweep)} | {"lr"}
    factor = {k: _ratio(x, last["point"][k]) for k, x in chosen.items() if not isinstance(x, str)}
    known = diverged or last["state"] in ("complete", "diverged")
    cheap = last["regret"] is not None and last["regret"] <= LARGEST_REGRET
    return {
        "rows": rows,
        "knobs": [knob for knob in chosen if knob in moved],
        "width_ratio": sweeps[-1]["width"] / sweeps[0]["width"],
        "depth_ratio": (sweeps[-1].get("layers") or 1) / (sweeps[0].get("layers") or 1),
        "factor": factor,
        "regret": last["regret"],
        "diverged": diverged,
        "transfers": cheap and not diverged and max(factor.values()) <= LARGEST_FACTOR if known else None,
    }


def _stays(found: Sequence[Row]) -> bool:
    """Whether the last line's rate stays, and better than the first's."""
    first, last = (one["factor"].get("lr", 1.0) for one in (found[0], found[-1]))
    edge = any("lr" in row["at_edge"] for row in found[-1]["rows"])
    better = len(found) == 1 or last < first
    return last <= LARGEST_FACTOR and better and not edge and not found[-1]["diverged"]


def _table(found: Row, title: str) -> Table:
    """The optimum at each width, how far it moved, and what the narrowest one's costs there."""
    first, knobs = found["rows"][0], found["knobs"]
    heads = [*(f"best {knob}" for knob in knobs), "moved", "loss", "at the narrowest optimum", "regret"]
    rows = []
    for row in found["rows"]:
        pairs = [(knob, first["point"][knob], row["point"][knob]) for knob in knobs]
        moved = ", ".join(_moved(*pair) for pair in pairs if pair[1] != pair[2])
        there = show_loss(row["at_narrowest"]) if row["at_narrowest"] else row["state"]
        best, cells = show_loss(row["loss"], row["spread"]), [show(now) for _, _, now in pairs]
        cells += [moved or ("–" if row is first else "no"), best, there, _regret(row)]
        rows.append((row["widths"], *cells, ", ".join(row["at_edge"])))
    return table_of(("widths", *heads, "at the edge"), rows, title)


def _regret(row: Row) -> str:
    """What the narrowest optimum costs at a width, as a share of the best loss there."""
    if row["regret"] is None:
        return "diverged" if row["state"] == "diverged" else "–"
    return f"{row['regret']:.2%}"


def _moves(found: Row) -> str:
    """From where to where the optimum moves."""
    first, last = found["rows"][0], found["rows"][-1]
    pairs = [(knob, show(first["point"][knob]), show(last["point"][knob])) for knob in found["knobs"]]
    moved = ", ".join(f"{knob} from {old} to {new}" for knob, old, new in pairs if old != new)
    kept = ", ".join(f"{knob} at {old}" for knob, old, new in pairs if old == new)
    ratios = {"wide": found["width_ratio"], "deep": found["depth_ratio"]}
    larger = [f"{ratio:g} times as {word}" for word, ratio in ratios.items() if ratio != 1]
    text = f"From {first['widths']} to {last['widths']}, {several(larger) or 'of one size'}, the optimum "
    if moved:
        text += f"moved: {moved}" + (f"; it kept {kept}." if kept else ".")
    else:
        text += f"stayed where it was: {kept}."
    if at := [f"{', '.join(row['at_edge'])} at {row['widths']}" for row in found["rows"] if row["at_edge"]]:
        text += f" It stands at the edge of what was tried ({'; '.join(at)}) and may move further."
    if found["diverged"]:
        text += f" Every point diverged at {', '.join(map(str, found['diverged']))}."
    return text


def _cost(last: Row) -> str:
    """What the narrowest optimum gives at the widest."""
    best = show_loss(last["loss"], last["spread"])
    what = f"costs {_regret(last)} of the best loss there, {best}"
    if last["state"] != "complete":
        what = (
            "diverged"
            if last["state"] == "diverged"
            else f"was {last['state']}, so that its cost is not known"
        )
    elif last["regret"] == 0:
        what = f"is the best point, too, with loss {best}"
    return f"At {last['widths']} the narrowest optimum {what}."


def _moved(knob: str, before: Any, after: Any) -> str:
    """How a knob's best value changed.

    >>> _moved("lr", 0.004, 0.002), _moved("noise", 0, 1.0), _moved("noise_kind", "gaussian", "balanced")
    ('lr ÷2', 'noise 0 → 1', 'noise_kind gaussian → balanced')
    """
    if isinstance(before, str) or min(before, after) <= 0:
        return f"{knob} {show(before)} → {show(after)}"
    return f"{knob} {'×' if after > before else '÷'}{_ratio(before, after):.3g}"


def _ratio(a: float, b: float) -> float:
    return 1.0 if a == b else max(a, b) / min(a, b) if min(a, b) > 0 else math.inf
