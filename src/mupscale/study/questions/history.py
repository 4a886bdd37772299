"""What became of a model on its way: through all stages, right after growing, and in every parameter."""

from __future__ import annotations

from collections.abc import Mapping

from mupscale.study.page.parts import Answer, Part, Table, table_of
from mupscale.study.page.plots import Line, Plot, draw
from mupscale.study.questions.reading import Names, Row, best_row, sweeps_of
from mupscale.study.questions.words import loss_axis, loss_over_flops, show_flops, show_loss, size
from mupscale.study.spec.space import show
from mupscale.theory.tables import count

# By which two models that compute the same may part in training: float32 rounds, and training magnifies that.
LARGEST_DRIFT = 1e-3


def line(results: Row, *, of: Names) -> Answer:
    """One history through all stages; steps, items and FLOPs are counted through."""
    heads = ("stage", results["width_word"], "parameters", "steps so far", "FLOPs so far", "loss")
    cells: list[tuple[str, ...]] = []
    lines = []
    steps = items = flops = 0
    for sweep in sweeps_of(results, of):
        row, parameters = best_row(sweep), count(sweep["parameters"])
        if row is None:
            break
        at, stage = [step for step, *_ in row["curve"]], f"stage {len(cells) + 1}"
        lines.append(
            Line(
                name=stage,
                curve=[[flops + step * sweep["flops_per_step"], *losses] for step, *losses in row["curve"]],
                label=f"{stage}: {parameters} parameters, {row['loss']:.3f}",
                more={
                    "step": [steps + step for step in at],
                    "items": [items + step * sweep["items_per_step"] for step in at],
                },
            )
        )
        steps, items = steps + sweep["steps"], items + sweep["steps"] * sweep["items_per_step"]
        flops += sweep["steps"] * sweep["flops_per_step"]
        final, loss = row["loss"], show_loss(row["loss"], row["spread"])
        cells.append((sweep["name"], size(sweep), parameters, str(steps), show_flops(flops), loss))
    if not cells:
        return Answer(title="All stages", parts=("No stage has ended yet.",))
    said = f"After {len(cells)} stages, {steps} steps and {show_flops(flops)} FLOPs the loss is {loss}."
    caption = "Each stage begins with the FLOPs, and from the model, with which the one before it ended."
    x = "training compute, all stages (FLOPs)"
    plot = loss_over_flops(results, "stages", {"": lines}, x, caption, zoom=2.0)
    data = {"steps": steps, "items": items, "flops": flops, "loss": final}
    return Answer(title="All stages", parts=(said, table_of(heads, cells), plot), headline=said, data=data)


def equality(results: Row, *, of: Names, against: Names = ()) -> Answer:
    """Whether the grown models compute what the narrow ones did; and went on to, while both were trained.

    Args:
        results: of the study.
        of: sweeps that grow others, and look (``verify``).
        against: sweeps that continue what they grew, by the same steps; one for each, in this order.
    """
    sweeps = sweeps_of(results, of)
    seen = {sweep["name"]: best_row(sweep) for sweep in sweeps}
    found = {name: dict(row["equality"]) for name, row in seen.items() if row and row["equality"]}
    heads = ["sweep", "equal", "largest difference", "outputs vary by"]
    rows = [
        [name, "yes" if one["equal"] else "no", f"{one['max_abs_diff']:.1e}", f"{one['logits_std']:.2f}"]
        for name, one in found.items()
    ]
    passed = all(one["equal"] for one in found.values()) if found else None
    said = {
        True: "No: on held-out data the narrow and the grown model gave the same outputs, up to rounding.",
        False: "The grown model did not start out equal to the narrow one; unbalanced noise does that.",
        None: "It was not looked at, or nothing is grown yet.",
    }[passed]
    table = table_of(heads, rows)
    parts: list[Part] = [said, table]
    others = [best_row(sweep) for sweep in sweeps_of(results, against)]
    pairs = {
        name: (ours, theirs)
        for (name, ours), theirs in zip(seen.items(), others, strict=False)
        if ours and theirs and name in found
    }
    if pairs and len(pairs) == len(found):
        drifts = {name: _drift(*pair) for name, pair in pairs.items()}
        found = {name: one | {"drift": drifts[name]} for name, one in found.items()}
        stays = max(drifts.values()) <= LARGEST_DRIFT
        passed = passed and stays
        way = f"the same way, up to {LARGEST_DRIFT:g}" if stays else "different ways"
        parts = [
            f"{said} Trained on with the same data, both went {way}.",
            table_of(
                [*heads, "largest difference of the losses"],
                [[*row, f"{drifts[row[0]]:.1e}"] for row in rows],
            ),
            _side_by_side(results, pairs),
        ]
    return Answer(title="Was anything lost?", parts=parts, passed=passed, data=found)


def _drift(ours: Row, theirs: Row) -> float:
    """The largest difference of two points' mean losses: wherever both were looked at, and at the end."""
    mine, other = ({step: mean for step, mean, *_ in row["curve"]} for row in (ours, theirs))
    apart: list[float] = [abs(mine[step] - other[step]) for step in mine.keys() & other.keys()]
    apart.append(abs(ours["loss"] - theirs["loss"]))
    return max(apart)


def _side_by_side(results: Row, pairs: Mapping[str, tuple[Row, Row]]) -> Plot:
    """The grown model's losses as a line, the narrow one's as points on it."""
    panels = {
        name: [
            Line(name="grown", curve=ours["curve"]),
            Line(name="the narrow one, continued", curve=theirs["curve"], style="", marker="o"),
        ]
        for name, (ours, theirs) in pairs.items()
    }
    caption = "Both see the same data from the growth on. Where points lie on the line nothing is lost."
    y, columns = loss_axis(results), ("step", "loss")
    return draw("grown_and_continued", panels, columns=columns, x="step", y=y, caption=caption)


def plan(results: Row, *, of: str) -> Answer:
    """What became of every parameter."""
    said = (
        "Every entry of a weight is copied 'copies' times and multiplied by the weight scale; its gradient "
        "comes out multiplied by the gradient scale. Learning rates and weight decay are multiplied by the "
        "last columns, so that the wide model trains as the narrow one did."
    )
    known = results.get("plans", {}).get(of, [])
    rows = [{head.replace("_", " "): show(value) for head, value in row.items()} for row in known]
    return Answer(title="What became of every parameter", parts=(said, Table(rows)))
