"""A study's folder: the page, self-contained; the same as Markdown; the pictures; and the numbers.

Knows the results of a study only as plain data: its title, what is not finished, and a row for every run.
"""

from __future__ import annotations

import base64
import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from mupscale.study.page.parts import Answer, Part, Table, html_table, markdown_table
from mupscale.study.spec.space import json_safe
from mupscale.study.writing import write_json, write_whole

Row = dict[str, Any]


def write(results: Row, answers: Sequence[Answer], out: Path) -> Path:
    """Write the page and all that it shows; return its path.

    Beside `report.html` lie the pictures (PNG) with their numbers (CSV), `report.md` with the sentences and
    tables, `runs.csv` with every point, seed and length, and `results.json`.

    Args:
        results: of a study in any state, or `results.json` read back.
        answers: what `mupscale.study.questions.answers` made of them.
        out: folder to write into.
    """
    write_json(out / "results.json", json_safe(results))
    _write_runs(results, out / "runs.csv")
    write_whole(out / "report.md", markdown(results, answers))
    write_whole(page := out / "report.html", _page(results, answers, out))
    return page


def markdown(results: Row, answers: Sequence[Answer]) -> str:
    """The sentences and tables; the pictures are left out."""
    top = _top(results, answers)
    blocks = [f"# {results['title']}", *top]
    for answer in answers:
        blocks.append(f"## {answer.title}")
        for part in answer.parts:
            if isinstance(part, Table):
                blocks += [part.title and f"### {part.title}", markdown_table(part)]
            elif isinstance(part, str) and part not in top:  # what is said there is not said again
                blocks.append(part)
    return "\n\n".join(filter(None, blocks)) + "\n"


def _top(results: Row, answers: Sequence[Answer]) -> list[str]:
    """The results in a sentence each, and which sweeps they do not know in full."""
    lines = [answer.headline for answer in answers if answer.headline]
    open_sweeps = [sweep for sweep in results["sweeps"] if not sweep["finished"]]
    if left := [f"{sweep['name']} ({sweep['done']} of {sweep['total']} trials)" for sweep in open_sweeps]:
        lines.append(f"Not finished: {', '.join(left)}. What is said here is about the trials done so far.")
    return lines


def _page(results: Row, answers: Sequence[Answer], out: Path) -> str:
    figures = [
        f"<li><b>{escape(value)}</b>{escape(what)}</li>" for one in answers for value, what in one.figures
    ]
    body = [f"<p><b>{escape(line)}</b></p>" for line in _top(results, answers)]
    body += [f'<ul class="figures">{"".join(figures)}</ul>'] if figures else []
    names: dict[str, int] = {}
    for answer in answers:
        body.append(f"<h2>{escape(answer.title)}</h2>")
        body += [_html(part, out, names) for part in answer.parts if part]
    page, css = (
        files("mupscale.study.page").joinpath(f"report.{kind}").read_text(encoding="utf-8")
        for kind in ("html", "css")
    )
    words = {"title": escape(results["title"]), "version": escape(results["mupscale"]), "css": css}
    return Template(page).substitute(words, body="\n".join(filter(None, body)))


def _html(part: Part, out: Path, names: dict[str, int]) -> str:
    """A part of the page; pictures are saved, under names that no other has, and inlined."""
    if isinstance(part, str):
        return f"<p>{escape(part)}</p>"
    if isinstance(part, Table):
        return (f"<h3>{escape(part.title)}</h3>" if part.title else "") + html_table(part)
    count = names[part.name] = names.get(part.name, 0) + 1
    png = (part if count == 1 else replace(part, name=f"{part.name}_{count}")).save(out)
    data, caption = base64.b64encode(png.read_bytes()).decode("ascii"), escape(part.caption)
    image = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _write_runs(results: Row, path: Path) -> None:
    """A row for every sweep, point, seed and length; a point without any seed has one without a loss."""
    knobs = list(dict.fromkeys(k for sweep in results["sweeps"] for k in sweep["knobs"] if k != "seed"))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["sweep", "begin", "from_width", "width", *knobs, "seed", "steps", "loss", "state"])
        for sweep in results["sweeps"]:
            place = [sweep[key] for key in ("name", "begin", "from_width", "width")]
            for row in sweep["points"]:
                values = [row["point"].get(knob) for knob in knobs]
                writer.writerows([*place, *values, *run] for run in _runs(sweep, row))


def _runs(sweep: Row, row: Row) -> Iterator[list[Any]]:
    """Seed, steps, loss and state."""
    for end in row["lengths"] or [{"steps": sweep["steps"], "losses": row["losses"]}]:
        for seed, loss in zip(row["seeds"] or [None], end["losses"] or [None], strict=False):
            known = loss is not None and math.isfinite(loss)
            # Of a point that diverged, some seeds may have a loss.
            state = "complete" if row["state"] == "diverged" and known else row["state"]
            yield [seed, end["steps"], loss if known else None, state]
