"""What a study found, as tables: Markdown that also reads well in a terminal.

Knows the results of `mupscale.study.tune.results`. The same results give the same text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mupscale.study.tune import outcome, words
from mupscale.study.tune.reading import (
    TUNED_KINDS,
    Row,
    checks_transfer,
    lengths_of,
    show,
    show_flops,
    show_loss,
    sweep_of,
    sweeps_of,
    trials_done,
    tried,
    varied,
)

Cells = dict[str, str]


def tables(results: Row) -> str:
    """Everything in Markdown: what was tuned and what it cost, the comparison, the transfer, every point.

    Args:
        results: what `collect` returned, or `results.json` read back; of a study in any state.
    """
    parts = [f"# {words.title(results)}", words.headline(results), *words.unfinished(results)]
    parts += ["## Tuned values", markdown_table(tuned_rows(results)), *words.tuned(results)]
    parts += [markdown_table(cost_rows(results)), *words.cost(results)]
    if not checks_transfer(results):
        parts += ["## Grown against from scratch", markdown_table(length_rows(results))]
        parts += [markdown_table(reach_rows(results)), *outcome.final(results)]
    if results["transfer"]:
        parts += ["## Transfer", markdown_table(transfer_rows(results)), *outcome.transfer(results)]
    parts.append("## All points")
    for sweep in tuned_sweeps(results):
        parts += [f"### {words.sweep_title(sweep)}", " ".join(words.sweep(sweep))]
        parts.append(markdown_table(point_rows(sweep)))
    return "\n\n".join(part for part in parts if part) + "\n"


def estimate_table(rows: Sequence[Row]) -> str:
    """What a study would run, from `mupscale.study.tune.driver.dry`; the last row is the sum.

    A transferred rate that the last stage's list does not hold comes on top: it is not known beforehand.
    """
    runs, flops = (sum(row[key] for row in rows) for key in ("runs", "flops"))
    total = {"sweep": "all", "width": "", "trials": "", "runs": runs, "steps": "", "flops": flops}
    table = markdown_table(
        [
            {key: show_flops(value) if key == "flops" else str(value) for key, value in row.items()}
            for row in [*rows, total]
        ]
    )
    if not any(row["sweep"].startswith(("grown", "fresh")) for row in rows):
        return table
    return (
        f"{table}\n\nIn the last stage each side tries its transferred rate, too, if it is not listed there."
    )


def tuned_sweeps(results: Row) -> list[Row]:
    """The sweeps that look for an optimum, from scratch first, then ascending in width."""
    return [sweep for kind in TUNED_KINDS for sweep in sweeps_of(results, kind)]


# ---- rows --------------------------------------------------------------------------------------------------


def point_rows(sweep: Row) -> list[Cells]:
    """One row for each point of a sweep: what was varied, the loss, and how it ended; the best is marked."""
    knobs = varied(sweep) or ["lr"]
    best = sweep["best"] and sweep["best"]["point"]
    rows = []
    for row in sorted(sweep["points"], key=lambda row: [row["point"][knob] for knob in knobs]):
        complete = row["state"] == "complete"
        rows.append(
            {
                **{knob: show(row["point"][knob]) for knob in knobs},
                "loss": show_loss(row["loss"], row["spread"]) if complete else "–",
                "": "best" if complete and row["point"] == best else "" if complete else row["state"],
            }
        )
    return rows


def tuned_rows(results: Row) -> list[Cells]:
    """The best value of each knob, from scratch and for growth, with the loss that it gave."""
    found = {kind: results["tuned"][kind] for kind in TUNED_KINDS if results["tuned"][kind]}
    narrow = results["widths"]["narrow"]
    rows = []
    for kind, best in found.items():
        sweep = sweep_of(results, kind, narrow)
        assert sweep is not None
        for knob, value in best["point"].items():
            among = tried(sweep, knob)
            ends = show(among[0]) if len(among) == 1 else f"{show(among[0])} … {show(among[-1])}"
            if isinstance(value, str):
                ends = ", ".join(among)
            rows.append(
                {
                    "sweep": sweep["name"],
                    "knob": knob,
                    "best": show(value),
                    "tried": f"{ends} ({len(among)} value{'s' if len(among) > 1 else ''})",
                    "at the edge": "yes" if knob in sweep["at_edge"] else "",
                }
            )
        rows.append(
            {
                "sweep": sweep["name"],
                "knob": "loss",
                "best": show_loss(best["loss"], best["spread"]),
                "tried": "",
                "at the edge": "",
            }
        )
    return rows


def cost_rows(results: Row) -> list[Cells]:
    """What each sweep cost in FLOPs, and as a share of one run of the large model from scratch."""
    large = results["tuned"]["large_run_flops"]
    rows = [
        _cost(sweep["name"], f"{trials_done(sweep)} of {sweep['total']}", sweep["flops"], large)
        for sweep in results["sweeps"]
    ]
    rows.append(_cost("of these, tuning", "", results["tuned"]["flops"], large))
    return rows


def _cost(name: str, trials: str, flops: int, large: int | None) -> Cells:
    share = {"of the large run": f"{flops / large:.1%}"} if large else {}
    return {"sweep": name, "trials": trials, "FLOPs": show_flops(flops), **share}


def length_rows(results: Row) -> list[Cells]:
    """The grown model after each length of training, and the one from scratch, at every rate tried."""
    large, growth = results["widths"]["large"], results["widths"]["growth"]
    grown, fresh = sweep_of(results, "grown", large), sweep_of(results, "fresh", large * growth)
    rows: list[Cells] = []
    for kind, sweep in (("grown", grown), ("from scratch", fresh)):
        if sweep is None:
            continue
        for row in sweep["points"]:
            best = row["point"] == (sweep["best"] and sweep["best"]["point"])
            steps = lengths_of(row["lengths"]) or [(row["curve"][-1][0] if row["curve"] else 0, row["loss"])]
            for count, loss in steps:
                longest = count == steps[-1][0]
                complete = row["state"] == "complete"
                rows.append(
                    {
                        "model": kind,
                        "lr": show(row["point"]["lr"]),
                        "steps": str(count) if complete else "–",
                        "FLOPs": show_flops(count * sweep["flops_per_step"]) if complete else "–",
                        # Only of the longest run is the spread over seeds kept.
                        "loss": show_loss(loss, row["spread"] if longest else None) if complete else "–",
                        "": row["state"] if not complete else "best" if best and longest else "",
                    }
                )
    return rows


def reach_rows(results: Row) -> list[Cells]:
    """What the grown model needs to end where training from scratch does, as shares of what that cost."""
    rows = []
    for rates in ("transferred", "tuned"):
        found = results["final"] and results["final"][rates]
        if not found:
            continue
        sign = outcome.BOUND_SIGNS[found["steps_to_reach"]["bound"]]
        rows.append(
            {
                "rates": rates,
                "lr grown": show(found["grown_lr"]),
                "lr from scratch": show(found["scratch_lr"]),
                "loss to reach": show_loss(found["scratch_loss"], found["scratch_spread"]),
                "FLOPs to reach it": sign + show_flops(found["flops_to_reach"]),
                "of from scratch": f"{sign}{found['ratio']:.0%}",
                "with the base model": f"{sign}{found['ratio_with_narrow']:.0%}",
                "with tuning, too": f"{sign}{found['ratio_with_narrow_and_tuning']:.0%}",
            }
        )
    return rows


def transfer_rows(results: Row) -> list[Cells]:
    """The optimum at each pair of widths, how far it moved, and what the narrowest one's costs there."""
    if not results["transfer"]:
        return []
    found = results["transfer"]["rows"]
    # What varies at one width may not at another whose sweep is the only one that got so far.
    knobs = list(dict.fromkeys(knob for row in found for knob in row["point"] if _differs(results, knob)))
    narrowest = found[0]["point"]
    rows = []
    for row in found:
        moved = [outcome.moved(narrowest[knob], row["point"][knob], knob) for knob in knobs]
        rows.append(
            {
                "widths": f"{row['from']} → {row['to']}",
                **{f"best {knob}": show(row["point"][knob]) for knob in knobs},
                "moved": ", ".join(filter(None, moved)) or ("–" if row is found[0] else "no"),
                "loss": show_loss(row["loss"], row["spread"]),
                "at the narrowest optimum": _at_narrowest(row),
                "regret": outcome.regret(row),
                "at the edge": ", ".join(row["at_edge"]),
            }
        )
    return rows


def _differs(results: Row, knob: str) -> bool:
    return knob == "lr" or any(knob in varied(sweep) for sweep in sweeps_of(results, "grow"))


def _at_narrowest(row: Row) -> str:
    there = row["narrowest_optimum"]
    return show_loss(there["loss"]) if there["state"] == "complete" else str(there["state"])


# ---- Markdown ----------------------------------------------------------------------------------------------


def markdown_table(rows: Sequence[Cells]) -> str:
    """A Markdown table whose columns line up; empty for no rows.

    >>> print(markdown_table([{"lr": "0.1", "loss": "2.5"}, {"lr": "0.25", "loss": "–"}]))
    |   lr | loss |
    | ---: | ---: |
    |  0.1 |  2.5 |
    | 0.25 |    – |
    """
    if not rows:
        return ""
    columns = {}
    for head in rows[0]:
        cells = [row[head] for row in rows]
        # A right-aligned ruler needs two characters.
        columns[head] = (max(2, *map(len, (head, *cells))), any(cells) and all(map(_numeric, cells)))
    ruler = [("-" * (width - 1) + ":") if right else "-" * width for width, right in columns.values()]
    lines = [list(rows[0]), ruler, *(list(row.values()) for row in rows)]
    padded = (
        [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, (width, right) in zip(line, columns.values(), strict=True)
        ]
        for line in lines
    )
    return "\n".join("| " + " | ".join(line) + " |" for line in padded)


def _numeric(cell: Any) -> bool:
    return cell in ("–", "") or cell[:1].isdigit() or cell[:2] in ("> ", "≤ ")
