"""Scalings and parameter groups as tables, for people. Layers that scale alike share a row."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from mupscale.theory.registry import rule_for
from mupscale.theory.scaling import Scaling

# Columns of text that a plan's table takes with its axes.
FULL_WIDTH = 152
COLUMNS = (
    "m: copies of each entry; s, c: what weights and gradients are multiplied by; lr ×, wd ×: over the "
    "narrow model's (documentation: How it works)"
)


def scaling_rows(params: Mapping[str, Scaling]) -> list[dict[str, Any]]:
    """One row for every kind of parameter: its axes, m, s, c, and what its hyperparameters are multiplied by.

    Layer numbers become ``*``; ``count`` says how many parameters stand behind a row.
    """
    adam, sgd = rule_for(torch.optim.AdamW, {}), rule_for(torch.optim.SGD, {})
    alike: dict[tuple[str, Scaling], list[str]] = {}
    for name, p in params.items():
        alike.setdefault((collapse(name), p), []).append(name)
    return [
        {
            "parameter": label,
            "count": len(names),
            "axes": str(p.axes),
            "copies": float(p.copies),
            "weight_scale": p.weight_scale,
            "grad_scale": p.grad_scale,
            "adam_lr": adam.lr_scale(p),
            "sgd_lr": sgd.lr_scale(p),
            "weight_decay": adam.weight_decay_scale(p),
        }
        for ((_, p), names), label in zip(alike.items(), labels(list(alike.values())), strict=True)
    ]


def scaling_table(
    params: Mapping[str, Scaling], *, title: str, notes: Iterable[str], axes: bool = True
) -> Table:
    """The rows as a `rich` table, with or without the axes; below it what its columns mean, and notes."""
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold")
    if not axes:  # on a narrow terminal
        table.padding, table.pad_edge = (0, 1, 0, 0), False
    table.add_column("parameter", overflow="fold")
    if axes:
        table.add_column(r"axes, \[contracted]", overflow="fold")
    for head in ("copies\nm", "weight\ns", "grad\nc", "Adam\nlr ×", "SGD\nlr ×", "AdamW\nwd ×"):
        table.add_column(head, justify="right")
    for row in scaling_rows(params):
        values = (
            row[k] for k in ("copies", "weight_scale", "grad_scale", "adam_lr", "sgd_lr", "weight_decay")
        )
        times = f"  ({row['count']}×)" if row["count"] > 1 else ""
        notation = [row["axes"].replace("[", r"\[")] if axes else []
        table.add_row(row["parameter"] + times, *notation, *(f"{v:.4g}" for v in values))
    _hold_numbers(table)
    table.caption = "\n".join([COLUMNS, *notes])
    table.caption_justify = "left"
    return table


def groups_table(groups: Iterable[dict[str, Any]]) -> Table:
    """Parameter groups as a `rich` table."""
    table = Table(box=box.SIMPLE_HEAD)
    for head in ("lr", "lr ×", "weight\ndecay", "eps"):
        table.add_column(head, justify="right")
    table.add_column("parameters", overflow="fold")
    for group in groups:
        kinds = list(dict.fromkeys(map(collapse, group["param_names"])))
        values = (group.get(k) for k in ("lr", "lr_scale", "weight_decay", "eps"))
        table.add_row(*("–" if v is None else f"{v:.4g}" for v in values), ", ".join(kinds))
    _hold_numbers(table)
    return table


def _hold_numbers(table: Table) -> None:
    """Give columns of numbers their room, however narrow the terminal is: a cut one is another number."""
    for column in table.columns:
        if column.justify == "right":
            lines = [line for cell in (column.header, *column.cells) for line in str(cell).split("\n")]
            column.no_wrap, column.min_width = True, max(map(len, lines))


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


def labels(groups: Sequence[Sequence[str]]) -> list[str]:
    """What to call tensors that are alike: their name without the layer's number, if no others have it, too.

    >>> labels([["layers.0.weight", "layers.1.weight"], ["mlp.0.weight"], ["mlp.1.weight"]])
    ['layers.*.weight', 'mlp.0.weight', 'mlp.1.weight']
    """
    patterns = [collapse(names[0]) for names in groups]
    return [
        names[0] if len(names) == 1 and patterns.count(pattern) > 1 else pattern
        for names, pattern in zip(groups, patterns, strict=True)
    ]


def as_text(table: Table) -> str:
    """A table as plain text."""
    console = Console(width=FULL_WIDTH, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get()
