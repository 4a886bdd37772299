"""Plans and parameter groups as tables, for people. Layers that scale alike share a row.

Knows plans and optimizer rules; decides nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from mupscale.layout import DEPTH
from mupscale.optim import rule_for
from mupscale.planning import Plan

# Columns of text that a plan's table takes with its axes.
FULL_WIDTH = 152


def plan_rows(plan: Plan) -> list[dict[str, Any]]:
    """One row for every kind of parameter: its axes, m, s, c, and what its hyperparameters are multiplied by.

    Layer numbers become ``*``; ``count`` says how many parameters stand behind a row.
    """
    adam, sgd = rule_for(torch.optim.AdamW, {}), rule_for(torch.optim.SGD, {})
    rows: dict[Any, dict[str, Any]] = {}
    for name, p in plan.params.items():
        pattern = collapse(name)
        row = rows.setdefault(
            (pattern, p),
            {
                "parameter": pattern,
                "count": 0,
                "axes": str(p.axes),
                "copies": float(p.copies),
                "weight_scale": p.weight_scale,
                "grad_scale": p.grad_scale,
                "adam_lr": adam.lr_scale(p),
                "sgd_lr": sgd.lr_scale(p),
                "weight_decay": adam.weight_decay_scale(p),
            },
        )
        row["count"] += 1
    return list(rows.values())


def plan_table(plan: Plan, axes: bool = True) -> Table:
    """The plan as a `rich` table, with or without the axes."""
    table = Table(box=box.SIMPLE_HEAD, title=describe(plan), title_justify="left", title_style="bold")
    table.add_column("parameter", no_wrap=True)
    if axes:
        table.add_column(r"axes, \[contracted]", no_wrap=True)
    for head in ("copies\nm", "weight\ns", "grad\nc", "Adam\nlr ×", "SGD\nlr ×", "AdamW\nwd ×"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in plan_rows(plan):
        values = (
            row[k] for k in ("copies", "weight_scale", "grad_scale", "adam_lr", "sgd_lr", "weight_decay")
        )
        times = f"  ({row['count']}×)" if row["count"] > 1 else ""
        notation = [row["axes"].replace("[", r"\[")] if axes else []
        table.add_row(row["parameter"] + times, *notation, *(f"{v:.4g}" for v in values))
    if notes := _notes(plan):
        table.caption = "\n".join(notes)
        table.caption_justify = "left"
    return table


def _notes(plan: Plan) -> list[str]:
    """What is to be known of a plan beside its numbers."""
    notes = [f"{axis}: {reason}" for axis, reason in plan.inexact.items()]
    if plan.inexact and DEPTH not in plan.growth:
        notes.append("not by even copies, the default: choose other sizes, or grow(..., operator='zero_pad')")
    if not plan.proved and not plan.inexact and plan.growth:
        why = plan.unproved_because or "read off shapes alone; plan(..., inputs=x) proves it on a run"
        notes.append(f"not proved: {why}")
    without = dict.fromkeys(collapse(name) for name, p in plan.params.items() if not p.linear)
    notes += [f"{name}: no noise, which would change the function" for name in without]
    apart = dict.fromkeys(collapse(name) for name, p in plan.params.items() if p.offset)
    return notes + [
        f"{name}: stored as a difference; keep it out of weight decay, which would pull it elsewhere"
        for name in apart
    ]


def groups_table(groups: Iterable[dict[str, Any]]) -> Table:
    """Parameter groups as a `rich` table."""
    table = Table(box=box.SIMPLE_HEAD)
    for head in ("lr", "lr ×", "weight decay", "eps"):
        table.add_column(head, justify="right")
    table.add_column("parameters", overflow="fold")
    for group in groups:
        kinds = list(dict.fromkeys(map(collapse, group["param_names"])))
        values = (group.get(k) for k in ("lr", "lr_scale", "weight_decay", "eps"))
        table.add_row(*("–" if v is None else f"{v:.4g}" for v in values), ", ".join(kinds))
    return table


def describe(plan: Plan) -> str:
    """One line: what grows and how many parameters that makes."""
    sizes = plan.layout.sizes
    axes = ", ".join(f"{axis} {sizes[axis]} → {int(sizes[axis] * g)}" for axis, g in plan.growth.items())
    narrow = sum(math.prod(p.axes.shape(sizes)) for p in plan.params.values())
    wide = sum(
        math.prod(plan.wide_shape(name)) for name, source in plan.wide_names.items() if source in plan.params
    )
    return f"{axes or 'nothing grows'}: {count(narrow)} → {count(wide)} parameters"


def count(n: float) -> str:
    """A number of parameters or tokens, short.

    >>> count(124_439_808), count(1.4e9)
    ('124M', '1.4B')
    """
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if n >= 0.9995 * size:
            return f"{n / size:.3g}{unit}"
    return f"{n:.3g}"


def collapse(name: str) -> str:
    """A parameter's name without its layer number.

    >>> collapse("model.layers.12.mlp.up_proj.weight")
    'model.layers.*.mlp.up_proj.weight'
    """
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)


def plan_text(plan: Plan) -> str:
    """The table as plain text."""
    console = Console(width=FULL_WIDTH, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(plan_table(plan))
    return capture.get()
