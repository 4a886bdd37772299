"""How large do activations, weights and gradients become, over time and over width?"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from mupscale.study.page.parts import Answer, table_of
from mupscale.study.page.plots import Line, Plot, draw
from mupscale.study.questions.reading import Names, Row, sweeps_of, with_state
from mupscale.study.questions.words import show_loss
from mupscale.study.spec.space import show

TITLE = "Sizes of activations, weights and gradients"
# What names end with, a panel each; of models without any of them, the first few names.
WEIGHTS = ("embed_tokens.weight", "self_attn.o_proj.weight", "mlp.down_proj.weight", "lm_head.weight")
ENDINGS = {
    "activation": ("embed_tokens", "self_attn", "mlp", "lm_head"),
    "weight": WEIGHTS,
    "gradient": WEIGHTS,
}


def norms(results: Row, *, of: Names, by: str = "shrink") -> Answer:
    """Activations over width, and all sizes over time at the widest, a line for each value of a knob.

    ``change`` and ``over_time`` in its data are the largest sizes over the smallest: of activations at the
    end, over width; and of everything over time, at the widest.
    """
    recorded = [
        (row["point"].get(by, sweep["name"]), sweep["width"], row)
        for sweep in sweeps_of(results, of)
        for row in with_state(sweep, "complete")
        if row["norms"]
    ]
    if not recorded:
        return Answer(title=TITLE, parts=("No sizes are recorded yet.",))
    found: dict[str, dict[int, Row]] = {}
    for value, width, row in sorted(recorded, key=lambda one: one[:2]):
        found.setdefault(f"λ = {show(value)}" if by == "shrink" else f"{by} {show(value)}", {})[width] = row
    word, widths = results["width_word"], sorted({width for _, width, _ in recorded})
    lowest = {w: min((n for n in found if w in found[n]), key=lambda n: found[n][w]["loss"]) for w in widths}
    said = "The lowest loss has " + ", ".join(f"{name} at {word} {w}" for w, name in lowest.items()) + "."
    widest = {name: rows[widths[-1]] for name, rows in found.items() if widths[-1] in rows}
    plots, change = [], dict.fromkeys(found, 1.0)
    over_time_by: dict[str, dict[str, float]] = {}
    for kind in ENDINGS:
        ends, y = _ends(kind, widest), f"mean |{kind}|"
        over_time = {end: {name: _mean(row, kind, end) for name, row in widest.items()} for end in ends}
        ranges = [{name: _range(sizes) for name, sizes in lines.items()} for lines in over_time.values()]
        over_time_by[kind] = {name: max(each[name] for each in ranges) for name in widest}
        plots.append(_draw(f"{kind}s_over_time", over_time, "step", f"{y} at {word} {widths[-1]}"))
    if len(widths) > 1:
        over_width = {
            end: {
                name: {width: [*_mean(row, "activation", end).values()][-1] for width, row in rows.items()}
                for name, rows in found.items()
            }
            for end in _ends("activation", widest)
        }
        for lines in over_width.values():
            for name, sizes in lines.items():
                change[name] = max(change[name], _range(sizes))
        factors = ", ".join(f"×{factor:.2g} ({name})" for name, factor in change.items())
        between = f"From {word} {widths[0]} to {widths[-1]}"
        said = f"{between}, mean activations at the end change by at most {factors}. {said}"
        plots.insert(0, _draw("activations_over_width", over_width, word, "mean |activation| at the end"))
    rows = [
        [str(w), *(show_loss(mine[w]["loss"], digits=3) if w in mine else "–" for mine in found.values())]
        for w in widths
    ]
    table = table_of([word, *found], rows, "Held-out loss")
    data = {"change": change, "over_time": over_time_by, "lowest": lowest}
    return Answer(title=TITLE, parts=(said, table, *plots), headline=said, data=data)


def _range(sizes: Mapping[int, float]) -> float:
    """The largest over the smallest, of those that are not zero, as biases are at first."""
    known = [size for size in sizes.values() if size > 0]
    return max(known) / min(known) if known else 1.0


def _draw(name: str, panels: Mapping[str, Mapping[str, dict[int, float]]], x: str, y: str) -> Plot:
    over_width = name.endswith("width")
    lines = {
        title: [
            Line(name=line, curve=[*sizes.items()], marker="o" * over_width)
            for line, sizes in by_line.items()
        ]
        for title, by_line in panels.items()
    }
    caption = "Means over the seeds and the layers."
    caption += " Where a line is level, sizes do not depend on the width." * over_width
    look: dict[str, Any] = {"log_y": True, "legend": "right", "values": over_width, "panel_size": (3.6, 3.6)}
    columns = ("width" if over_width else "step", "mean_absolute")
    return draw(name, lines, columns=columns, x=x, y=y, caption=caption, colours="viridis", **look)


def _mean(row: Row, kind: str, ending: str) -> dict[int, float]:
    """Mean absolute size by step, over everything whose name ends so."""
    found: dict[int, list[float]] = {}
    for step, what, name, l1, _ in row["norms"]:
        if what == kind and name.endswith(ending):
            found.setdefault(step, []).append(l1)
    return {step: fmean(sizes) for step, sizes in sorted(found.items())}


def _ends(kind: str, rows: Mapping[str, Row]) -> list[str]:
    names = {name: None for row in rows.values() for _, what, name, *_ in row["norms"] if what == kind}
    return [end for end in ENDINGS[kind] if any(name.endswith(end) for name in names)] or list(names)[:4]
