"""A study's page, `report.html`, with the pictures, tables and numbers beside it.

Knows the results of `mupscale.study.tune.results`, HTML and files; every sentence comes from `words` and
`outcome`.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from mupscale.study.history import write_json
from mupscale.study.html_page import (
    html_figures,
    html_list,
    html_page,
    html_paragraphs,
    html_plot,
    html_table,
    write_page,
)
from mupscale.study.plots import Plot
from mupscale.study.tune import outcome, tables, words
from mupscale.study.tune.pictures import all_pictures
from mupscale.study.tune.reading import Row, checks_transfer, show, show_loss, width_word
from mupscale.theory.tables import count

REPORT_FILE = "report.html"


def write_report(results: Row, out: Path) -> Path:
    """Write the page and all that it shows; return its path.

    Beside `report.html` lie the pictures (PNG) with their numbers (CSV), `results.json`, `trials.csv` with
    every point and seed, and `tables.md`.

    Args:
        results: what `collect` returned, of the procedure or of the transfer check, finished or not; or
            `results.json` read back.
        out: folder to write into.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "results.json", json_safe(results))
    write_trials(results, out / "trials.csv")
    (out / "tables.md").write_text(tables.tables(results), encoding="utf-8")
    pictures = [(plot, plot.save(out)) for plot in all_pictures(results)]
    return write_page(out / REPORT_FILE, page(results, pictures))


def page(results: Row, pictures: Sequence[tuple[Plot, Path]]) -> str:
    """The page's HTML."""
    body = [
        f"<h1>{escape(words.title(results))}</h1>",
        f'<p class="soft">mupscale {escape(results["mupscale"])}</p>',
        f"<p><b>{escape(words.headline(results))}</b></p>",
        *html_paragraphs(words.unfinished(results)),
        _figures(results),
        "<h2>Tuned values</h2>",
        *_table(tables.tuned_rows(results)),
        *html_paragraphs(words.tuned(results)),
    ]
    if pictures:
        body += ["<h2>The curves</h2>", *(html_plot(plot, path) for plot, path in pictures)]
    if not checks_transfer(results):
        body += [
            "<h2>Grown against from scratch</h2>",
            *html_paragraphs(outcome.final(results)),
            *_table(tables.reach_rows(results)),
            *_table(tables.length_rows(results)),
        ]
    if results["transfer"]:
        body += [
            "<h2>Does the optimum transfer?</h2>",
            *html_paragraphs(outcome.transfer(results)),
            *_table(tables.transfer_rows(results)),
        ]
    body += [
        "<h2>What it cost</h2>",
        *html_paragraphs(words.cost(results)),
        *_table(tables.cost_rows(results)),
        "<h2>All points</h2>",
    ]
    for sweep in tables.tuned_sweeps(results):
        body += [
            f"<h3>{escape(words.sweep_title(sweep))}</h3>",
            f"<p>{escape(' '.join(words.sweep(sweep)))}</p>",
            *_table(tables.point_rows(sweep)),
        ]
    body += ["<h2>How it was measured</h2>", html_list([_model(results), *words.method(results)])]
    return html_page(words.title(results), [part for part in body if part])


def write_trials(results: Row, path: Path) -> None:
    """A row for every point and seed of every sweep; a point without any seed has one without a loss."""
    knobs = list(dict.fromkeys(k for sweep in results["sweeps"] for k in sweep["knobs"] if k != "seed"))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["sweep", "width", "to", *knobs, "seed", "loss", "state"])
        for sweep in results["sweeps"]:
            for row in sweep["points"]:
                values = [row["point"].get(knob, "") for knob in knobs]
                for seed, loss in enumerate(row["losses"] or [None]):
                    # Of a point that diverged, some seeds may have a loss.
                    state = "complete" if row["state"] == "diverged" and loss is not None else row["state"]
                    place = [sweep["name"], sweep["width"], sweep["to"]]
                    writer.writerow([*place, *values, seed, "" if loss is None else loss, state])


def json_safe(value: Any) -> Any:
    """Plain data without infinities, which JSON does not know: they become None.

    A row whose loss was infinite says ``"state": "diverged"``.

    >>> json_safe({"loss": math.inf, "curve": [1.5, math.nan]})
    {'loss': None, 'curve': [1.5, None], 'state': 'diverged'}
    """
    if isinstance(value, dict):
        state = {"state": "diverged"} if value.get("loss") == math.inf else {}
        return {key: json_safe(inner) for key, inner in value.items()} | state
    if isinstance(value, list | tuple):
        return [json_safe(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---- parts -------------------------------------------------------------------------------------------------


def _figures(results: Row) -> str:
    """The few numbers at the top."""
    found: list[tuple[str, str]] = []
    best = results["tuned"]["grow"]
    if best:
        named = [(k, v) for k, v in best["point"].items() if k in ("lr", "noise")]
        found += [(show(value), f"best {knob} of growth") for knob, value in named]
    final = results["final"] and results["final"]["transferred"]
    if final:
        sign = outcome.BOUND_SIGNS[final["steps_to_reach"]["bound"]]
        found += [
            (f"{sign}{final['ratio']:.0%}", "of the FLOPs from scratch to reach its loss"),
            (f"{sign}{final['ratio_with_narrow']:.0%}", "counting the base model's training"),
            (f"{sign}{final['ratio_with_narrow_and_tuning']:.0%}", "counting the tuning, too"),
        ]
    if results["transfer"]:
        last, holds = results["transfer"]["rows"][-1], outcome.transfers(results)
        found.append(({True: "yes", False: "no", None: "?"}[holds], "does the optimum transfer?"))
        where = f"{last['from']} → {last['to']}"
        found.append((show_loss(last["loss"], digits=3), f"best loss at {where}"))
        regret = outcome.regret(last)
        if regret != "–":
            found.append((regret, f"at {where} with the narrowest optimum, above the best loss there"))
    return html_figures(found) if found else ""


def _table(rows: Sequence[tables.Cells]) -> list[str]:
    return [html_table(rows)] if rows else []


def _model(results: Row) -> str:
    sizes = ", ".join(f"{width} ({count(n)} parameters)" for width, n in results["parameters"].items())
    model = results["model"]
    layers = f", layers: {model['layers']}" if model["layers"] is not None else ""
    return f"Model: {model['family']}{layers}; width is its {width_word(results)}: {sizes}."
