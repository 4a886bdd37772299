"""`mupscale doctor` and `coord-check`: what is found out about a model, by its structure and by training.

Knows what the commands take and prints; what is heavy is imported when it runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich import box, progress
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, arg

import mupscale
from mupscale.cli.growing import Source
from mupscale.cli.studying import need_extras
from mupscale.cli.terminal import (
    Json,
    on_terminal,
    print_json,
    print_table,
    print_text,
    quiet_libraries,
    tell,
    unset,
)
from mupscale.errors import GrowthError

if TYPE_CHECKING:  # it imports torch
    from mupscale.layout.base import Layout
    from mupscale.layout.inference.family import Family
    from mupscale.models.skeletons import PreTrainedConfig
    from mupscale.theory.manifest import Plan

Row = dict[str, Any]
WIDTH = "width"  # of all axes together, as --width 2 grows them
COLUMNS = {"copies": "by even copies", "fresh": "by fresh units", "exact": "by expand to the same function"}


def doctor(source: Source, /, *, json: Json = False) -> int:
    """Say what was found out about a model: its axes, what they follow, what can grow, and if not, why.

    SRC may be a checkpoint, a config.json or its folder. Every axis is tried by 2, by itself, and all widths
    together; no weight is read. Exit status 1 where nothing can grow.

    Example: mupscale doctor narrow
    """
    quiet_libraries()
    from mupscale.checkpoint.reader import Checkpoint
    from mupscale.layout.known import family_of
    from mupscale.models.skeletons import class_name, skeleton

    config = Checkpoint.read_config(source)
    model = skeleton(config)
    said: Row = {"model": class_name(type(model)), "model_type": config.model_type}
    try:
        family = family_of(config)
        layout = family.layout(model, config)
    except GrowthError as error:
        said |= {"refused": str(error)}
        if json:
            print_json(said)
        else:
            print_text(f"{said['model']} ({said['model_type']}) is refused: {error}")
        return 1
    growths = _growths(config, family)
    said |= {
        "parameters": sum(p.numel() for p in model.parameters()),
        "axes": [_axis(axis, size, family) for axis, size in layout.sizes.items()],
        "tensors": list(_tensors(layout, family)),
        "ties": dict(layout.ties),
        "growths": growths,
    }
    if json:
        print_json(said)
    else:
        _tell(said)
    return 0 if any(one["copies"] is None or one["fresh"] is None for one in growths) else 1


# ---- what is found -----------------------------------------------------------------------------------------


def _axis(axis: str, size: int, family: Family) -> Row:
    """An axis: how large it is, and the fields of the config that it follows."""
    from mupscale.layout.base import DEPTH
    from mupscale.layout.inference.fields import NO_WIDTH

    if axis == DEPTH:
        return {"axis": axis, "size": size, "follows": "num_hidden_layers"}
    law = family.laws.get(axis)
    return {
        "axis": axis,
        "size": size,
        "follows": str(law) if law and law.powers else NO_WIDTH.get(axis, "no field"),
    }


def _tensors(layout: Layout, family: Family) -> Iterator[Row]:
    """Parameters and buffers, and what is known of them; those that are alike in all layers together."""
    from mupscale.theory.tables import collapse, labels

    alike: dict[tuple[str, str, str], list[str]] = {}
    for name, axes in (*layout.params.items(), *layout.buffers.items()):
        notes = {
            "buffer": name in layout.buffers,
            "readout: gets no noise": name in layout.readouts,
            "not reached by the tiny run: cannot grow": family.twin(name, len(axes.dims)) in family.unused,
        }
        key = collapse(name), str(axes), "; ".join(note for note, holds in notes.items() if holds)
        alike.setdefault(key, []).append(name)
    for ((_, said, note), names), label in zip(alike.items(), labels(list(alike.values())), strict=True):
        yield {"tensor": label, "count": len(names), "axes": said, "note": note}


def _growths(config: PreTrainedConfig, family: Family) -> list[Row]:
    """All widths by 2, and every axis by itself: whether it can, by copies and by fresh units, or why not."""
    from mupscale.layout.base import DEPTH
    from mupscale.layout.inference.fields import NO_WIDTH

    asked: dict[str, Row] = {WIDTH: {"width": 2}}
    asked |= {
        axis: {"axes": {axis: 2}} for axis in (*family.laws, DEPTH) if axis == DEPTH or axis not in NO_WIDTH
    }
    with on_terminal(progress.Progress(console=Console(stderr=True), transient=True)) as bar:
        return [
            _growth(config, what, how) for what, how in bar.track(asked.items(), description="trying growths")
        ]


def _growth(config: PreTrainedConfig, what: str, how: Mapping[str, Any]) -> Row:
    """One growth: the reasons against copies and against fresh units, None where there is none; its folds."""
    row: Row = {"growth": what, **dict.fromkeys(COLUMNS), "folds": [], "grows": {}}
    try:
        plan = mupscale.plan(config, **how)
    except GrowthError as error:
        return row | dict.fromkeys(COLUMNS, str(error))
    row["grows"] = {axis: str(factor) for axis, factor in plan.growth.items()}
    row["folds"] = list(_folds(plan))
    return row | {
        key: _against(plan, op) for key, op in zip(COLUMNS, ("duplicate", "zero_pad", "expand"), strict=True)
    }


def _against(plan: Plan, operator: str) -> str | None:
    """Why an operator cannot grow so; None where it can. Of `expand`: why it does not keep the function."""
    from mupscale.operators.catalogue import operator_named
    from mupscale.planner import prove_operator

    try:
        operator_named(operator).check(plan)
        if operator == "expand":
            prove_operator(plan, operator)
    except GrowthError as error:
        return str(error)
    return None


def _folds(plan: Plan) -> Iterator[Row]:
    """What is scaled to make up for a constant of the architecture, layers together."""
    from mupscale.theory.tables import collapse

    seen = set()
    for name, scaling in plan.params.items():
        by = [f"{fold.axis}^{Fraction(fold.power)}" for fold in plan.layout.folds.get(name, ())]
        key = collapse(name), scaling.fold
        if scaling.fold != 1 and key not in seen:
            seen.add(key)
            yield {"tensor": key[0], "times": scaling.fold, "by": by}


# ---- what is printed ---------------------------------------------------------------------------------------


def _tell(said: Row) -> None:
    from mupscale.theory.tables import count

    print_text(f"{said['model']} ({said['model_type']}), {count(said['parameters'])} parameters")
    axes = _table("Axes", "axis", "size", "follows")
    for row in said["axes"]:
        axes.add_row(row["axis"], str(row["size"]), row["follows"])
    tensors = _table("Tensors; in brackets what the forward pass sums over", "tensor", "axes", "")
    for row in said["tensors"]:
        times = f"  ({row['count']}×)" if row["count"] > 1 else ""
        tensors.add_row(row["tensor"] + times, row["axes"].replace("[", r"\["), row["note"])
    growths = _table("What can grow, by 2", "growth", *(f"{head}?" for head in COLUMNS.values()))
    for row in said["growths"]:
        beside = f" ({', '.join(row['grows'])})" if row["growth"] == WIDTH and row["grows"] else ""
        growths.add_row(row["growth"] + beside, *("yes" if row[key] is None else "no" for key in COLUMNS))
    print_table(lambda roomy: axes)
    print_table(lambda roomy: tensors)
    print_table(lambda roomy: growths)
    for row in said["growths"]:
        for fold in row["folds"]:
            by = ", ".join(fold["by"])
            print_text(f"{row['growth']}: {fold['tensor']} is scaled by {fold['times']:.4g} ({by})")
    for row in said["growths"]:
        reasons: dict[str, list[str]] = {}
        for key, head in COLUMNS.items():
            if row[key] is not None:
                reasons.setdefault(row[key], []).append(head)
        for reason, heads in reasons.items():
            print_text(f"{row['growth']}, not {' nor '.join(heads)}: {reason}")


def _table(title: str, *heads: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold")
    for head in heads:
        table.add_column(head, overflow="fold")
    return table


# ---- the coordinate check ----------------------------------------------------------------------------------

# Optimizers that cannot train the whole of a language model, and why.
NOT_ALONE = {"muon": "it takes hidden matrices alone", "sparseadam": "it takes sparse gradients alone"}


def coord_check(
    source: Annotated[
        Positional[Path], arg(metavar="CONFIG_OR_SRC", help="config.json or checkpoint of the narrow model")
    ],
    /,
    *,
    widths: Annotated[
        tuple[int, ...], unset(help="width factors to train; default: 1 2 4 8, or 1 where there are depths")
    ] = (),
    depths: Annotated[
        tuple[int, ...], unset(help="numbers of layers to train, such as 2 4 8 16; at every width")
    ] = (),
    optimizer: Annotated[str, arg(help="as `mupscale hparams` takes it")] = "adamw",
    lr: Annotated[float, arg(help="learning rate of the narrow model")] = 2e-3,
    steps: Annotated[int, arg(help="steps to train each width")] = 4,
    seeds: Annotated[int, arg(help="repetitions with other weights and tokens")] = 3,
    parametrizations: Annotated[tuple[str, ...], arg(help="some of standard, mup, grown")] = (
        "standard",
        "mup",
        "grown",
    ),
    out: Annotated[Path, arg(help="folder for the CSV and the picture")] = Path("coord-check"),
    json: Json = False,
) -> int:
    """Train a family of widths for a few steps and see whether any activation's size goes with the width.

    Or with the depth, where --depths are given. Exit status 1 where a module grows with either under μP or in
    the grown models (or under the standard parametrization, if that alone is asked for).

    Example: mupscale coord-check narrow --widths 1 2 4 8 --optimizer adamw --lr 2e-3
    Example: mupscale coord-check narrow --depths 2 4 8 16 32 --widths 1 4
    """
    if not parametrizations:
        raise GrowthError(
            "--parametrizations: expected some of standard, mup, grown; name one, or leave it out"
        )
    if optimizer in NOT_ALONE:
        raise GrowthError(
            f"--optimizer {optimizer}: {NOT_ALONE[optimizer]}; check with another, such as adamw"
        )
    if min(steps, seeds) < 1 or not 0 < lr < math.inf:
        raise GrowthError(f"--steps {steps}, --seeds {seeds}, --lr {lr}: expected numbers above 0")
    need_extras()
    from mupscale.study.coordinates import coordinate_check, holds, picture, slopes, verdicts
    from mupscale.study.runs.models import read_config
    from mupscale.study.runs.progress import make_progress, quiet

    with on_terminal(make_progress()) as progress, quiet():
        rows = coordinate_check(
            read_config(source),
            widths=widths or None,
            depths=depths,
            optimizer=optimizer,
            lr=lr,
            steps=steps,
            seeds=seeds,
            parametrizations=parametrizations,
            progress=progress,
        )
    found = slopes(rows)
    picture(rows, found).save(out)
    lines = verdicts(found)
    passed = holds(found)
    result = {
        "passed": passed,
        "verdicts": lines,
        "slopes": [{**asdict(s), "verdict": s.verdict} for s in found],
        "csv": str(out / "coordinates.csv"),
        "picture": str(out / "coordinates.png"),
    }
    tell(json, result, "\n".join([*lines, f"Picture and numbers are in {out}."]))
    return 0 if passed else 1
