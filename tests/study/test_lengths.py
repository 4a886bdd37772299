"""Sweeps over token budgets, sweeps like others, and what is best at each length."""

from types import SimpleNamespace

import optuna
import pytest

from mupscale.errors import GrowthError
from mupscale.study.files import read_study
from mupscale.study.spec.space import Choices
from mupscale.study.spec.sweeps import Search
from mupscale.study.work.board import Board
from mupscale.study.work.queue import Queue
from mupscale.study.work.results import best_ends, points_of

BUDGETS = """
[sweep.narrow]
width = 32
tokens_per_parameter = [20, 2.5]
lr = 0.004

[sweep.grown]
from = "narrow"
growth = 2
lengths = [1, 2]
search_seeds = 1
try = { lr = [0.002, 0.004, 0.008] }

[sweep.padded]
like = "grown"
operator = "zero_pad"
try = { lr = [0.1, 0.2] }

[sweep.padded_whole]
like = "padded"
shrink = 1.0
"""


def read(tmp_path, text):
    path = tmp_path / "study.toml"
    path.write_text(text)
    return read_study(path)


def test_a_list_of_budgets_is_a_sweep_each_and_so_is_what_grows_them(tmp_path):
    study = read(tmp_path, BUDGETS)
    firsts = [name for name, sweep in study.sweeps.items() if not sweep.extends]
    families = ("narrow", "grown", "padded", "padded_whole")
    # Row by row: a study that is stopped early has whole rows.
    assert firsts == [f"{family}-{budget}" for budget in ("20", "2.5") for family in families]
    assert study.sweeps["narrow-2.5"].tokens_per_parameter == 2.5
    assert study.sweeps["grown-2.5"].source == "narrow-2.5"


def test_a_sweep_is_like_another_in_all_that_it_does_not_say(tmp_path):
    sweeps = read(tmp_path, BUDGETS).sweeps
    grown, padded, whole = (sweeps[f"{name}-20"] for name in ("grown", "padded", "padded_whole"))
    assert padded.lengths == whole.lengths == grown.lengths == (1.0, 2.0)
    assert padded.tried == {"operator": Choices(("zero_pad",)), "lr": Choices((0.1, 0.2))}
    assert whole.tried == {**padded.tried, "shrink": Choices((1.0,))}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[20, 2.5]", "[20, 20]", r":4: \[sweep.narrow\] tokens_per_parameter: .*expected different numbers"),
        ("[20, 2.5]", "[]", r":4: \[sweep.narrow\] tokens_per_parameter: .*expected different numbers"),
        ('like = "grown"', 'like = "gron"', r"\[sweep.padded\] like: 'gron': no such sweep before it"),
        ('like = "grown"', 'like = "padded_whole"', r"like: 'padded_whole': no such sweep before it"),
        ('like = "grown"', 'like = "padded"', r"like: 'padded': no such sweep before it"),
    ],
)
def test_each_mistake_is_one_line(tmp_path, old, new, said):
    with pytest.raises(GrowthError, match=said):
        read(tmp_path, BUDGETS.replace(old, new))


LENGTHS = (100, 200)
# By rate and seed: the losses at both lengths. With one seed 0.4 looks best at the first, by luck.
LOSSES = {
    0.1: {0: (3.0, 1.0), 1: (3.0, 1.0)},
    0.2: {0: (2.5, 1.5), 1: (2.5, 1.5)},
    0.4: {0: (2.4, 2.0)},
}


@pytest.fixture
def queue():
    space = {"lr": Choices(tuple(LOSSES)), "seed": Choices((0, 1))}
    queue = Queue(optuna.storages.InMemoryStorage(), "made up", space, Search())
    while (trial := queue.claim()) is not None:
        point = queue.point(trial)
        losses = LOSSES[point["lr"]].get(point["seed"])
        if losses is None:
            continue  # not run
        queue.tell(
            trial,
            float("inf") if losses[-1] is None else losses[-1],
            losses=[losses[-1]],
            curves=[[[0, 9.0], [200, losses[-1]]]],
            ends=[[*map(list, zip(LENGTHS, losses, strict=True))]],
            steps=200,
            seconds=1.0,
        )
    return queue


def board_of(queue):
    board = Board.__new__(Board)
    board.queue = lambda sweep: queue
    board.budget = SimpleNamespace(lengths=lambda sweep: [*LENGTHS])
    return board


def test_further_seeds_run_at_what_was_best_at_any_length(queue):
    board = board_of(queue)
    bests = board.bests(SimpleNamespace(table="sweep.made_up"))
    assert bests == {100: {"lr": 0.4}, 200: {"lr": 0.1}}
    assert board.best(SimpleNamespace(table="sweep.made_up")) == {"lr": 0.1}


def test_what_is_best_at_a_length_is_told_by_the_points_that_all_seeds_ran(queue):
    points = points_of([queue], branches=True)
    ends = best_ends(points, 200, {"lr": queue.space["lr"]})
    found = [(end["steps"], end["point"]["lr"], end["loss"], end["losses"], end["at_edge"]) for end in ends]
    assert found == [(100, 0.2, 2.5, [2.5, 2.5], []), (200, 0.1, 1.0, [1.0, 1.0], ["lr"])]
