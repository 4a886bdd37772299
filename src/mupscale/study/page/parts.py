"""What a page is made of: answers, and in them paragraphs, plots and tables; a table in Markdown and HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from mupscale.study.page.plots import Plot

Cells = dict[str, str]


@dataclass(frozen=True)
class Table:
    """Rows that all have the same columns."""

    rows: Sequence[Cells]
    title: str = ""

    @property
    def numeric(self) -> dict[str, bool]:
        """By column, whether it holds numbers, which stand at the right."""
        columns = {head: [row[head] for row in self.rows] for head in self.rows[0]}
        return {head: any(cells) and all(map(_is_number, cells)) for head, cells in columns.items()}


Part = str | Table | Plot  # a string is a paragraph; an empty one, or a table without rows, is left out


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A section of the page.

    Attributes:
        title: its head.
        parts: what it shows, in this order.
        headline: the result in a sentence, for the top of the page.
        figures: a few numbers for the top of the page, each with the words under it.
        passed: the answer, where the question can be answered with yes or no and enough is known.
        data: the numbers as plain data.
    """

    title: str
    parts: Sequence[Part]
    headline: str = ""
    figures: Sequence[tuple[str, str]] = ()
    passed: bool | None = None
    data: Mapping[str, Any] = field(default_factory=dict)


def table_of(heads: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> Table:
    """A table from its heads and the cells below them."""
    return Table([dict(zip(heads, row, strict=True)) for row in rows], title)


def markdown_table(table: Table) -> str:
    """Markdown whose columns line up; empty without rows.

    >>> print(markdown_table(Table([{"lr": "0.1", "loss": "2.5"}, {"lr": "0.25", "loss": "–"}])))
    |   lr | loss |
    | ---: | ---: |
    |  0.1 |  2.5 |
    | 0.25 |    – |
    """
    if not table.rows:
        return ""
    columns = []
    for head, right in table.numeric.items():
        cells = [head, *(row[head] for row in table.rows)]
        width = max(2, *map(len, cells))  # a ruler needs two characters to say that it stands at the right
        cells.insert(1, "-" * (width - 1) + ":" if right else "-" * width)
        columns.append([cell.rjust(width) if right else cell.ljust(width) for cell in cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in zip(*columns, strict=True))


def html_table(table: Table) -> str:
    """The same in HTML; empty without rows."""
    if not table.rows:
        return ""
    kind = {head: ' class="number"' if right else "" for head, right in table.numeric.items()}
    head = "".join(f"<th{kind[column]}>{escape(column)}</th>" for column in kind)
    lines = "".join(
        "<tr>" + "".join(f"<td{kind[column]}>{escape(row[column])}</td>" for column in kind) + "</tr>"
        for row in table.rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'


def _is_number(cell: str) -> bool:
    return cell in ("–", "") or cell.lstrip("+-")[:1].isdigit() or cell[:2] in ("> ", "≤ ", "< ", "≥ ")
