"""The pages of the evidence and the table that `mupscale advise` goes by, from its studies' results alone."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from claims import Claim

from mupscale.study.files import read_study
from mupscale.study.page import Answer, Table, markdown_table
from mupscale.study.page.parts import table_of
from mupscale.study.page.plots import BLUE, ORANGE, Line, Plot, draw
from mupscale.study.questions import answers
from mupscale.study.questions.words import several, size
from mupscale.theory.tables import count

if TYPE_CHECKING:
    from evidence import Study

GROWING, RESULTS = "growing-pays.md", "results.md"
# The studies of the table: of widths, of larger ones and of growth by 4 beside these, of layers.
MAPS = {
    "width": "growing_pays",
    "larger": "growing_pays_128",
    "by4": "growing_pays_by4",
    "layers": "depth_growing_pays",
}
SHOWN = (20, 320)  # tokens per parameter of the narrow models in the picture of loss over compute
RANKED_FROM = 5.0  # tokens per parameter of the wide model, from which on recipes are ranked
Row = dict[str, Any]


@dataclass(frozen=True)
class Told:
    """What a finished study answers; pictures have names that no other of its pictures has."""

    study: Study
    answered: Sequence[tuple[Mapping[str, Any], Answer]]

    @classmethod
    def of(cls, study: Study, results: Row) -> Told:
        """The answers to all that it asks, and how it was measured."""
        seen: Counter[str] = Counter()
        questions = [*results["questions"], {"ask": "method"}]
        return cls(
            study,
            [(q, _renamed(a, seen)) for q, a in zip(questions, answers(results), strict=True)],
        )

    def answer(self, asked: Mapping[str, Any]) -> Answer | None:
        """The answer to the first question that says all of this."""
        return next((answer for question, answer in self.answered if asked.items() <= question.items()), None)


def _renamed(answer: Answer, seen: Counter[str]) -> Answer:
    parts = []
    for part in answer.parts:
        if isinstance(part, Plot):
            seen[part.name] += 1
            if seen[part.name] > 1:
                part = replace(part, name=f"{part.name}_{seen[part.name]}")
        parts.append(part)
    return replace(answer, parts=parts)


def write_pages(
    studies: Sequence[Study], claims: Sequence[Claim], out: Path, docs: Path, table: Path
) -> None:
    """Both pages, the pictures and numbers that they show, and the table, from the results alone.

    They are those of where the studies ran, or else what was kept beside the pages. Of a study without any,
    what the page on when growing pays tells stays, and so does its part of the table.
    """
    docs.mkdir(parents=True, exist_ok=True)
    known = {study: _better(study.results(out), study.kept(docs)) for study in studies}
    for study, results in known.items():
        if results is not None:
            shutil.rmtree(study.kept_at(docs).parent, ignore_errors=True)
    for study, results in known.items():  # the transfer check of a study lies in the study's own folder
        if results is not None:
            study.keep(results, docs)
    told = {s.name: Told.of(s, part) for s, results in known.items() if (part := _told_part(s, results))}
    growing = [study for study in studies if study.page == GROWING]
    (docs / GROWING).write_text(_growing_page(growing, known, told, docs), encoding="utf-8")
    (docs / RESULTS).write_text(_results_page(known, told, claims, docs), encoding="utf-8")
    found = json.loads(table.read_text(encoding="utf-8")) if table.exists() else {}
    tables = {key: made for key, name in MAPS.items() if name in told and (made := _table(told[name], known))}
    found |= tables.pop("width", {}) | tables
    if "cells" in found:
        table.write_text(f"{json.dumps(found, indent=1, allow_nan=False)}\n", encoding="utf-8")
        if plot := _over_compute(found):
            plot.save(docs)


def _over_compute(table: Row) -> Plot | None:
    """Loss over compute: the table's best start against from scratch and the narrow model, continued.

    None where none of the narrow models to show is in it.
    """
    cells = [cell for cell in table["cells"] if cell["factor"] == table["cells"][0]["factor"]]
    longest = max(cell["tokens_per_parameter"] for cell in cells)

    def line(mine: Sequence[Row], loss: str, name: str, *, counted: bool = False, **look: Any) -> Line:
        """Of losses; with the FLOPs of the narrow model's own training before, where these are counted."""
        curve = []
        for cell in mine:
            before = (cell["with_narrow"] or cell["share"]) - cell["share"] if counted else 0.0
            mean, spread = cell[f"{loss}loss"], cell[f"{loss or 'loss_'}spread"] or 0.0
            flops = cell["tokens_per_parameter"] / longest * (1 + before)
            curve.append([flops, mean, mean - spread, mean + spread])
        return Line(name=name, curve=curve, marker="o", **look)

    panels = {}
    for narrow in SHOWN:
        here = [cell for cell in cells if cell["narrow_tokens_per_parameter"] == narrow]
        grown = [cell for cell in here if cell["start"] == table["best"]]
        continued = [cell for cell in here if cell["begin"] == "continue"]
        if not grown or not continued:
            continue
        panels[f"narrow model trained on {narrow:g} tokens per parameter"] = [
            line(grown, "scratch_", "from scratch under μP", colour="#7F7F7F"),
            line(grown, "", f"grown ({grown[0]['recipe']})", colour=BLUE),
            line(
                grown,
                "",
                "the same, narrow model's training counted in",
                counted=True,
                colour=BLUE,
                style="--",
            ),
            line(continued, "", "narrow model, simply continued", colour=ORANGE),
        ]
    if not panels:
        return None
    plot = draw(
        "loss_over_compute",
        panels,
        columns=("flops", "loss"),
        x=f"FLOPs, over those of {longest:g} tokens per parameter from scratch",
        y="held-out loss (nats per token)",
        caption="",
        values=True,
        same_scale=True,
        panel_size=(5.4, 4.6),
    )
    for axes in plot.figure.axes:
        axes.set_xticks([0.125, 0.25, 0.5, 1, 2])
    return plot


def _table(told: Told, known: Mapping[Study, Row | None]) -> Row:
    """What was measured of growing, as `mupscale.study.growing_pays` reads it; nothing until it has cells."""
    answer = told.answer({"ask": "map"})
    if not answer or not answer.data.get("cells"):
        return {}
    sweeps = (known[told.study] or {})["sweeps"]
    sizes = sorted({(sweep["parameters"], size(sweep)) for sweep in sweeps})
    said = several([f"{count(parameters)} (d_model {shape})" for parameters, shape in sizes])
    return {
        "about": "Measured by this project, seeds and bands in docs/growing-pays.md:",
        "narrow": sizes[0][0],
        "model": f"Llamas of {said} parameters",
        "command": f"`{told.study.command}`",
        "best": answer.data["best"],
        "cells": answer.data["cells"],
    }


def _better(ran: Row | None, kept: Row | None) -> Row | None:
    """What ran here, unless it is not finished and what was kept is."""
    if ran is None or (kept is not None and is_finished(kept) and not is_finished(ran)):
        return kept
    return ran


def _told_part(study: Study, results: Row | None) -> Row | None:
    """What may be told: a whole study; of one on when growing pays, what is asked of its finished sweeps."""
    if results is None or is_finished(results):
        return results
    if study.page != GROWING:
        return None
    done = {sweep["name"] for sweep in results["sweeps"] if sweep["finished"]}
    asked = [
        {**question, "of": of}
        for question in results["questions"]
        if (of := [name for name in _names(question, "of") if name in done])
        and done.issuperset(_names(question, "against"))
    ]
    return results | {"questions": asked} if asked else None


def _names(question: Mapping[str, Any], key: str) -> list[str]:
    """The sweeps that a question names, one or a list of them."""
    given = question.get(key, [])
    return [given] if isinstance(given, str) else given


def is_finished(results: Row) -> bool:
    """Whether every trial of a study is done."""
    return all(sweep["finished"] for sweep in results["sweeps"])


def _unfinished(study: Study, results: Row | None) -> str:
    """How far it is, and how it goes on."""
    if results is None:
        planned = read_study(study.file, check_transfer=study.check_transfer)
        done, total = 0, sum(map(planned.trials, planned.sweeps.values()))
    else:
        done, total = (sum(sweep[key] for sweep in results["sweeps"]) for key in ("done", "total"))
    return f"Not finished: {done} of {total} trials{', needs a GPU' * study.gpu}; `{study.command}`"


def _growing_page(
    studies: Sequence[Study], known: Mapping[Study, Row | None], told: Mapping[str, Told], docs: Path
) -> str:
    blocks = [
        "# When growing pays",
        "Written by `make evidence` from the results of the studies that it names; nothing is typed by hand. "
        "The rule by which a start is called best was written down before the runs were looked at, at the "
        "head of [growing_pays.toml](../examples/studies/growing_pays.toml).",
    ]
    before = _sections(docs / GROWING)
    for study in studies:
        results = known[study]
        title = results["title"] if results else read_study(study.file).title
        if results is None and title in before:
            blocks.append(before[title])
            continue
        blocks.append(f"## {title}")
        finished = results is not None and is_finished(results)
        blocks.append(f"`{study.command}`" if finished else f"{_unfinished(study, results)}.")
        if study.name not in told or results is None:
            continue
        if not finished:
            blocks.append("What follows is of its sweeps that are finished.")
        elif not any(question["ask"] == "map" for question, _ in told[study.name].answered):
            blocks += ["### What was tried, and lost", *_tried(results)]
        for question, answer in told[study.name].answered:
            if question["ask"] not in ("points", "tuned"):
                blocks += [f"### {answer.title}", *_parts(answer, docs, study)]
    return "\n\n".join(filter(None, blocks)) + "\n"


def _sections(page: Path) -> dict[str, str]:
    """What a page says below each of its titles of the second order, with the title."""
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    sections = (f"## {part}".strip() for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:])
    return {section.partition("\n")[0].removeprefix("## "): section for section in sections}


def _parts(answer: Answer, docs: Path, study: Study) -> list[str]:
    """The parts of an answer as Markdown; pictures are saved."""
    blocks = []
    for part in answer.parts:
        if isinstance(part, Plot):
            blocks.append(_shown(part, docs, study))
        elif isinstance(part, Table):
            blocks += [f"**{part.title}**" if part.title and part.rows else "", markdown_table(part)]
        else:
            blocks.append(part)
    return blocks


def _shown(plot: Plot, docs: Path, study: Study) -> str:
    """A picture with its caption and numbers; it is saved."""
    place = plot.save(docs / "evidence" / study.name).relative_to(docs)
    return (
        f"![{plot.name.replace('_', ' ')}]({place})\n\n{plot.caption} [Numbers]({place.with_suffix('.csv')})"
    )


def _tried(results: Row) -> list[str]:
    """Every recipe with its loss at each length, its rate tuned; the best by the mean rank first."""
    ends: dict[str, dict[float, float]] = {}
    for sweep in results["sweeps"]:
        for name, rows in groupby(sorted(sweep["points"], key=_recipe), key=_recipe):
            for end in (end for row in rows for end in row["lengths"] if end["loss"] is not None):
                ratio = float(f"{end['steps'] * sweep['items_per_step'] / sweep['parameters']:.2g}")
                mine = ends.setdefault(", ".join(filter(None, (sweep["name"], name))), {})
                mine[ratio] = min(end["loss"], mine.get(ratio, end["loss"]))
    if not ends:
        return []
    ratios = sorted({ratio for losses in ends.values() for ratio in losses})
    ranked = [ratio for ratio in ratios if ratio >= RANKED_FROM] or ratios
    order = {ratio: sorted(losses[ratio] for losses in ends.values() if ratio in losses) for ratio in ratios}
    ranks = {
        name: fmean(1 + order[ratio].index(losses[ratio]) for ratio in ranked if ratio in losses)
        for name, losses in ends.items()
        if losses.keys() & set(ranked)
    }
    names = sorted(ranks, key=ranks.__getitem__)
    heads = ("recipe", *(f"loss at {ratio:g}" for ratio in ratios), "mean rank")
    cells = [
        (name, *(f"{ends[name][r]:.3f}" if r in ends[name] else "–" for r in ratios), f"{ranks[name]:.1f}")
        for name in names
    ]
    seeds = max(sweep["seeds"] for sweep in results["sweeps"])
    said = (
        f"Every recipe with the best of its rates at each length, in tokens per parameter of the wide model; "
        f"by the mean rank from {RANKED_FROM:g} on {names[0]} is first, all others lost to it. "
        f"{seeds} seed{'s' * (seeds > 1)}."
    )
    return [said, markdown_table(table_of(heads, cells))]


def _recipe(row: Row) -> str:
    """What tells a point from others of its sweep, but for the rate and words that all of them share."""
    own = {k: v for k, v in row["point"].items() if isinstance(v, int | float) and k not in ("lr", "seed")}
    return ", ".join(f"{knob} {value:g}" for knob, value in own.items())


def _results_page(
    known: Mapping[Study, Row | None], told: Mapping[str, Told], claims: Sequence[Claim], docs: Path
) -> str:
    blocks = [
        "# The papers, figure by figure",
        "Written by `make evidence` from the results of the studies that it names, at sizes that a CPU "
        "trains in minutes. What the papers say is told in our words; whether a study agrees is computed "
        "from its answers, by `examples/claims.py`.",
        "*Transfers*: at the widest pair the optimum of the narrowest costs at most 0.5 % of the loss, "
        "and no number moved by more than a factor of 2, to or from zero being more. *Not known*: an optimum "
        "stands at the edge of what was tried, or what should differ does so by less than a deviation.",
    ]
    by_name = {study.name: study for study in known}
    for paper, group in groupby(claims, key=lambda claim: claim.paper):
        mine = list(group)
        verdicts = [_verdict(claim, by_name[claim.study], known, told) for claim in mine]
        heads = ("claim", "the paper", "measured here", "agrees", "picture", "command")
        rows: list[tuple[str, ...]] = []
        shown: dict[tuple[Study, str], tuple[Plot, list[str]]] = {}  # a picture may stand for several claims
        for claim, (said, agrees) in zip(mine, verdicts, strict=True):
            study, picture = by_name[claim.study], ""
            plot = _picture(claim, told)
            if plot is not None:
                shown.setdefault((study, plot.name), (plot, []))[1].append(claim.title)
                picture = f"[picture](evidence/{study.name}/{plot.name}.png)"
            rows.append((claim.title, claim.says, said, agrees, picture, f"`{study.command}`"))
        blocks += [f"## {paper}", markdown_table(table_of(heads, rows))]
        for (study, _), (plot, titles) in shown.items():
            blocks.append(f"### {'; '.join(titles)}\n\n{_shown(plot, docs, study)}")
    blocks += ["## What it cost", markdown_table(_spent(known))]
    return "\n\n".join(blocks) + "\n"


def _verdict(
    claim: Claim, study: Study, known: Mapping[Study, Row | None], told: Mapping[str, Told]
) -> tuple[str, str]:
    """What was measured, and whether it agrees, in words."""
    if claim.study not in told:
        return _unfinished(study, known[study]).partition(";")[0], "–"
    found = [told[claim.study].answer(asked) for asked in claim.asks]
    if None in found:
        return f"Not asked when it ran; `{study.command}`", "–"
    said, agrees = claim.judge(*found)
    return said, {True: "yes", False: "no", None: "not known"}[agrees]


def _picture(claim: Claim, told: Mapping[str, Told]) -> Plot | None:
    if claim.study not in told:
        return None
    parts = [part for _, answer in told[claim.study].answered for part in answer.parts]
    return next((part for part in parts if isinstance(part, Plot) and part.name == claim.picture), None)


def _spent(known: Mapping[Study, Row | None]) -> Table:
    """Workers' time and trials of every study."""
    rows = [
        (
            study.name,
            f"{sum(s['done'] for s in results['sweeps'])} of {sum(s['total'] for s in results['sweeps'])}",
            f"{results['seconds'] / 3600:.2f}",
        )
        for study, results in known.items()
        if results
    ]
    return table_of(("study", "trials", "hours of its workers"), rows)
