"""When does growing pay? A map over how long the narrow model was trained, and how long the wide one will be.

`cells` has the numbers, `ranking` the rule by which a start is best, `pictures` the map; here are the words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mupscale.study.page.parts import Answer, Part, Table, table_of
from mupscale.study.questions.growing.cells import Cell, Estimate, cells_of, start_of
from mupscale.study.questions.growing.pictures import lead_plot, share_map, times_map
from mupscale.study.questions.growing.ranking import SHORTEST, caught_up, mean_ranks, rivals_of
from mupscale.study.questions.reading import Names, Row, sweep_of, sweeps_of
from mupscale.study.questions.words import several, show_loss
from mupscale.study.spec.space import show

TITLE = "When does growing pay?"
# Tokens per parameter, narrow and wide, at which the best start is held against each other one.
TOLD = ((20.0, 20.0), (320.0, 5.0))
METHOD = (
    "Share: the FLOPs in which a start comes down to the loss that training from scratch ends at with this "
    "budget, over the FLOPs of that budget: the wide training alone, then with the narrow model's training "
    "counted in, then with the tuning, too (of the start, all seeds together). Scratch needs: the other way "
    "round, the FLOPs in which training from scratch comes down to the start's loss, over the start's. Gain: "
    "what the loss from scratch is above the start's at equal FLOPs in total, the narrow model's counted in. "
    "≤, > and <: no more than a bound is known, since no run was shorter, or longer. Every number is found "
    "seed by seed, ± is one standard deviation."
)
RULE = (
    f"The rule, fixed beforehand: in every cell with {SHORTEST:g} tokens per parameter or more that all "
    "starts have, they are ranked by their losses, and the mean rank decides. What lies within a deviation "
    "of the difference, seed by seed, goes to the simpler one: the one that the question names first."
)
CAUGHT_UP = (
    "With > some seeds, or all, are still ahead at the longest budget: not within what was measured. With ≤ "
    "some, or all, were not even at the shortest. –: some seeds say the one, some the other."
)
EDGE = (
    "†: the best {}, where this number goes by it, stands at the edge of what was tried; a better one may "
    "lie beyond, and the number is not to be quoted."
)


def map_(results: Row, *, of: Names, against: str) -> Answer:
    """What each start takes of the FLOPs from scratch, by how long the narrow and the wide model are trained.

    Args:
        results: of the study.
        of: sweeps that grow or continue others, a start each; those of one start, from narrow models trained
            for longer and longer, differ in their names behind the last ``-``. The simplest start first.
        against: from scratch, at several lengths.
    """
    sweeps, scratch = sweeps_of(results, of), sweep_of(results, against)
    cells = cells_of(results, sweeps, scratch)
    known = {cell.start for cell in cells}
    without = [start for start in dict.fromkeys(map(start_of, sweeps)) if start not in known]
    left_out = f"Without a cell: {several(without)}." if without else ""
    if not cells:
        why = "" if scratch["best_ends"] else f": {against} has no run that ended with a loss"
        said = f"There is no map yet{why}."
        return Answer(title=TITLE, parts=(said, left_out), headline=said)
    recipes = {cell.start: cell.recipe for cell in cells}
    ranks, count = mean_ranks(cells)
    best = next(iter(ranks), None)
    shown = [cell for place in TOLD for cell in cells if cell.place == place and cell.start == best]
    told = [(cell, rivals_of(cell, cells)) for cell in shown]
    headline = " ".join([_ranking(ranks, count), *(_at(*one) for one in told)])
    edges = sorted({knob for cell in cells for knob in cell.at_edge})
    rows: dict[tuple[str, float], list[Cell]] = {}
    for cell in cells:
        rows.setdefault((cell.start, cell.narrow_ratio), []).append(cell)
    crossings = {key: caught_up(mine) for key, mine in rows.items()}
    narrows = sorted({cell.narrow_ratio for cell in cells})
    parts: list[Part] = [
        headline,
        left_out,
        share_map(cells),
        times_map(cells),
        lead_plot(results, cells),
        RULE,
        table_of(
            ("start", "mean rank", "mupscale grow …"),
            [(start, f"{rank:.2f}", recipes[start]) for start, rank in ranks.items()],
        ),
        *(_standings(cells, *one) for one in told),
        _catching_up(crossings),
        CAUGHT_UP,
        METHOD,
        EDGE.format(several(edges)) if edges else "",
        *(_table([cell for cell in cells if cell.narrow_ratio == ratio]) for ratio in narrows),
    ]
    return Answer(
        title=TITLE,
        parts=parts,
        headline=headline,
        figures=[
            (_share(cell), f"of the FLOPs from scratch: {best}, {_where(cell.place)}") for cell in shown
        ],
        data={
            "best": best,
            "mean_ranks": ranks,
            "caught_up": [
                {"start": start, "narrow_tokens_per_parameter": ratio, "tokens_per_parameter": at.mean}
                | {"spread": at.spread, "sign": at.sign, "seeds": len(at.by_seed)}
                for (start, ratio), at in crossings.items()
            ],
            "cells": [cell.to_row() for cell in cells],
        },
    )


# ---- sentences ---------------------------------------------------------------------------------------------


def _ranking(ranks: Row, count: int) -> str:
    if not ranks:
        return f"No start is called best: none of the cells from {SHORTEST:g} tokens per parameter has all."
    (best, rank), *others = ranks.items()
    behind = f" (mean rank {rank:.2f}; {', '.join(f'{start} {other:.2f}' for start, other in others)})"
    cells = f"{count} cell{'s' * (count > 1)} with {SHORTEST:g} tokens per parameter or more"
    return f"By the mean rank over {cells} {best} is the best start{behind * bool(others)}."


def _at(ours: Cell, rivals: Mapping[str, bool]) -> str:
    """How the best start does at a place, and which others it is ahead of there."""
    text = (
        f"With {_where(ours.place)}, {ours.start} takes {_share(ours)} of the FLOPs from scratch to the same "
        f"loss, {_share(ours, 'with_narrow')} with the narrow model's training counted in"
    )
    if ours.share.sign:
        text += f"; to its own loss training from scratch takes {_number(ours.times, '.2f')} times its FLOPs"
    ahead, level = ([name for name, is_ahead in rivals.items() if is_ahead == side] for side in (True, False))
    said = [f"ahead of {several(ahead)} by more than a deviation"] if ahead else []
    one = "one" if ahead else "a deviation"
    said += [f"not ahead of {several(level)} by more than {one}"] if level else []
    return f"{text}; it is {', '.join(said)}." if said else f"{text}."


def _where(place: tuple[float, float]) -> str:
    return f"a narrow model at {place[0]:g} and the wide one at {place[1]:g} tokens per parameter"


def _share(cell: Cell, key: str = "share") -> str:
    """A share with its sign; the deviation, which is that of the first; a mark where a knob is at an edge.

    Args:
        key: ``share``, ``with_narrow`` or ``with_tuning``.
    """
    value = cell.share.mean if key == "share" else getattr(cell, key)
    if value is None:
        return "not known"
    spread = "" if cell.share.spread is None or key != "share" else f" ± {cell.share.spread:.0%}"
    return f"{cell.share.sign}{value:.0%}{spread}" + "†" * bool(cell.at_edge)


# ---- tables ------------------------------------------------------------------------------------------------


def _standings(cells: Sequence[Cell], ours: Cell, rivals: Mapping[str, bool]) -> Table:
    """All starts at a place, and which are behind the best one there."""
    heads = ("start", "share", "with the narrow model", "scratch needs ×", "behind by more than a deviation")
    rows = [
        (
            cell.start,
            _share(cell),
            _share(cell, "with_narrow"),
            _number(cell.times, ".2f"),
            "" if cell is ours else "yes" if rivals[cell.start] else "no",
        )
        for cell in cells
        if cell.place == ours.place
    ]
    return table_of(heads, rows, f"Every start against {ours.start}, with {_where(ours.place)}")


def _table(cells: Sequence[Cell]) -> Table:
    """All that is known with one narrow model."""
    heads = ["start", "tokens per parameter", "loss", "from scratch", "share", "with the narrow model"]
    heads += ["with tuning, too", "scratch needs ×", "gain at equal FLOPs in total", "seeds"]
    rows = [
        (
            cell.start,
            show(cell.ratio),
            show_loss(cell.loss.mean, cell.loss.spread, digits=3),
            show_loss(cell.scratch.mean, cell.scratch.spread, digits=3),
            *(_share(cell, key) for key in ("share", "with_narrow", "with_tuning")),
            _number(cell.times, ".2f") + "†" * bool(cell.at_edge),
            _number(cell.gain, "+.3f"),
            str(len(cell.loss.by_seed)),
        )
        for cell in cells
    ]
    return table_of(heads, rows, f"The narrow model at {cells[0].narrow_ratio:g} tokens per parameter")


def _catching_up(crossings: Mapping[tuple[str, float], Estimate]) -> Table:
    """The budgets at which training from scratch catches up; starts below each other."""
    narrows = sorted({ratio for _, ratio in crossings})
    rows = [
        (start, *(_number(crossings.get((start, ratio)), ".1f") for ratio in narrows))
        for start in dict.fromkeys(start for start, _ in crossings)
    ]
    heads = ("start", *(f"narrow model at {ratio:g}" for ratio in narrows))
    return table_of(heads, rows, "Tokens per parameter at which training from scratch catches up")


def _number(estimate: Estimate | None, digits: str) -> str:
    """With its sign and its deviation; – where it is not known."""
    if estimate is None or estimate.mean is None:
        return "–"
    spread = "" if estimate.spread is None else f" ± {estimate.spread:{digits.lstrip('+')}}"
    return f"{estimate.sign}{estimate.mean:{digits}}{spread}"
