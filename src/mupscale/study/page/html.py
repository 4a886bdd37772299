"""The frame of the reports: one self-contained page, its pictures inlined, and the tables on it.

Knows HTML and saved plots; nothing of what a report is about.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from mupscale.study.page.plots import Plot


def html_page(title: str, body: Sequence[str]) -> str:
    """A whole page, its style sheet inside."""
    css = files("mupscale.study.page").joinpath("report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{css}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def write_page(path: Path, html: str) -> Path:
    """Write a page under a temporary name and move it into place."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(html, encoding="utf-8")
    os.replace(temporary, path)
    return path


def html_figures(figures: Iterable[tuple[str, str]]) -> str:
    """The few numbers at the top of a page, each with the words under it."""
    items = "".join(f"<li><b>{escape(value)}</b>{escape(what)}</li>" for value, what in figures)
    return f'<ul class="figures">{items}</ul>'


def html_plot(plot: Plot, path: Path) -> str:
    """A saved picture with its caption, the PNG inlined."""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return (
        f'<figure><img alt="{escape(plot.caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(plot.caption)}</figcaption></figure>"
    )


def html_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows that all have the same columns; numbers stand at the right."""
    rows = list(rows)
    head = "".join(f"<th>{escape(str(column)).replace('_', ' ')}</th>" for column in rows[0])
    lines = "".join(
        "<tr>" + "".join(f"<td{_kind(value)}>{escape(_show(value))}</td>" for value in row.values()) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'


def html_list(lines: Iterable[str]) -> str:
    """Sentences as a list."""
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def html_paragraphs(sentences: Iterable[str]) -> list[str]:
    """A paragraph each."""
    return [f"<p>{escape(sentence)}</p>" for sentence in sentences]


def _kind(value: Any) -> str:
    return ' class="number"' if isinstance(value, int | float) and not isinstance(value, bool) else ""


def _show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(_show(v) for v in value)
    return str(value)
