"""Which start is best on the map, by a rule fixed beforehand; where training from scratch catches up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from mupscale.study.questions.growing.cells import Bounded, Cell, Estimate, is_below

SHORTEST = 5.0  # tokens per parameter of the wide model, from which on cells count in the ranking


def caught_up(cells: Sequence[Cell]) -> Estimate:
    """The budget from which on a start is not ahead of training from scratch any more.

    Linear in its logarithm. At most ("≤ ") the shortest where it never was, more than ("> ") the longest
    where it still is.

    Args:
        cells: of one start and one narrow model.
    """
    cells = sorted(cells, key=lambda cell: cell.ratio)
    return Estimate.of({seed: _crossing(cells, seed) for seed in cells[0].loss.by_seed})


def _crossing(cells: Sequence[Cell], seed: int) -> Bounded:
    behind = [cell.loss.by_seed[seed] - cell.scratch.by_seed[seed] for cell in cells]
    ahead = [place for place, difference in enumerate(behind) if difference < 0]
    if not ahead or ahead[-1] == len(cells) - 1:
        return (cells[-1].ratio, "> ") if ahead else (cells[0].ratio, "≤ ")
    last = ahead[-1]
    way = behind[last] / (behind[last] - behind[last + 1])
    return cells[last].ratio * (cells[last + 1].ratio / cells[last].ratio) ** way, ""


def mean_ranks(cells: Sequence[Cell]) -> tuple[dict[str, float], int]:
    """The rule by which one start is best: its mean rank, over the cells from `SHORTEST` on that all have.

    In a cell a start's rank is one more than the number of those that are ahead of it: whose loss is lower by
    more than a deviation (`is_below`), or no higher by more than one, and the start simpler.

    Args:
        cells: in the order of simplicity of their starts.

    Returns:
        By start, the best first, the simpler before its equals; and the number of these cells.
    """
    starts = [*dict.fromkeys(cell.start for cell in cells)]
    by_place: dict[tuple[float, float], dict[str, Estimate]] = {}
    for cell in cells:
        if cell.ratio >= SHORTEST:
            by_place.setdefault(cell.place, {})[cell.start] = cell.loss
    whole = [losses for losses in by_place.values() if len(losses) == len(starts)]
    if not whole:
        return {}, 0
    ranks = {start: fmean(_rank(start, losses, starts) for losses in whole) for start in starts}
    return dict(sorted(ranks.items(), key=lambda item: item[1])), len(whole)


def rivals_of(best: Cell, cells: Sequence[Cell]) -> dict[str, bool]:
    """The other starts at its place, and whether it is ahead of each by more than a deviation.

    By their shares; where one of these is but a bound, by the losses.
    """
    found = {}
    for rival in cells:
        if rival.place == best.place and rival is not best:
            bounds = best.share.sign or rival.share.sign
            pair = (best.loss, rival.loss) if bounds else (best.share, rival.share)
            found[rival.start] = is_below(*pair)
    return found


def _rank(start: str, losses: Mapping[str, Estimate], starts: Sequence[str]) -> int:
    own = losses[start]
    simpler = starts[: starts.index(start)]
    ahead = [not is_below(own, losses[other]) for other in simpler]
    ahead += [is_below(losses[other], own) for other in starts[len(simpler) + 1 :]]
    return 1 + sum(ahead)
