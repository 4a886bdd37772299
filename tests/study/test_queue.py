"""The queue of trials: none lost, none doubled, whatever becomes of the workers."""

import json
import math
import os
import subprocess
import tempfile
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState
from queue_worker import finish_grid, wait_for

from mupscale.errors import GrowthError
from mupscale.study.spec.space import Choices, Range, at_edge, grid, read_knob
from mupscale.study.spec.sweeps import Search
from mupscale.study.work import queue as queue_module
from mupscale.study.work.queue import LEASE, Queue
from mupscale.study.work.storage import open_storage

RATES = {"lr": Choices((0.1, 0.2, 0.3))}
ELSEWHERE = {"host": "another machine", "pid": 1, "since": 0.0, "beat": 0}


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(queue_module, "SIGN_SECONDS", 0.0)


@pytest.fixture
def make(tmp_path):
    """Another worker's queue, on the same file."""
    return partial(make_queue, tmp_path / "trials.journal")


def make_queue(place, space=RATES, search=None, final=False, **settings):
    return Queue(open_storage(place), "sweep", space, search or Search(), settings=settings, final=final)


def set_lease(queue, trial, lease):
    queue.storage.set_trial_user_attr(queue._id(trial.number), LEASE, lease)


def kill_worker(queue, trial):
    """As if the process that runs the trial were gone, and its id given to another."""
    lease = trial.user_attrs[LEASE]
    set_lease(queue, trial, {**lease, "since": lease["since"] - 1000})


def state(queue, number):
    return queue.study.get_trials()[number].state


def finish(queue):
    while (trial := queue.claim()) is not None:
        queue.tell(trial, 1.0)


# ---- knobs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_value", "knob"),
    [
        (0.5, Choices((0.5,))),
        ([3, 1, 2], Choices((1, 2, 3))),
        (["balanced", "free"], Choices(("balanced", "free"))),
        ({"low": 1, "high": 2}, Range(1.0, 2.0, False)),
        ({"low": 1e-4, "high": 1e-2, "log": True}, Range(1e-4, 1e-2, True)),
    ],
)
def test_a_knob_is_read(given_value, knob):
    assert read_knob(given_value) == knob


@pytest.mark.parametrize(
    ("given_value", "positive", "complaint"),
    [
        ([], False, "expected at least one value"),
        ([1, 1], False, "the same value twice"),
        ([1, "free"], False, "expected numbers alone or words alone"),
        ([True], False, "expected numbers alone or words alone"),
        (["free"], True, "expected numbers"),
        ([-1], False, "-1: expected numbers of 0 or more"),
        ([0], True, "0: expected numbers above 0"),
        ([math.inf], False, "inf: expected numbers"),
        ([math.nan], False, "nan: expected numbers"),
        ({"low": 1}, False, "low = …, high = …"),
        ({"low": 1, "high": 2, "step": 1}, False, "low = …, high = …"),
        ({"low": 2, "high": 1}, False, "the lower one first"),
        ({"low": "a", "high": "b"}, False, "two numbers"),
        ({"low": 0, "high": 1, "log": True}, False, "low is 0, expected more than 0"),
        ({"low": 0, "high": 1}, True, "low is 0, expected more than 0"),
    ],
)
def test_a_knob_that_cannot_be_is_refused(given_value, positive, complaint):
    with pytest.raises(GrowthError, match=complaint):
        read_knob(given_value, positive=positive)


def test_the_edge_of_what_was_tried():
    space = {
        "lr": Choices((1, 2, 3)),
        "noise": Choices((0, 1)),
        "shrink": Range(0.01, 1.0, True),
        "operator": Choices(("a", "b", "c")),
    }
    inside = {"lr": 2, "noise": 0, "shrink": 0.1, "operator": "a"}
    assert at_edge(inside, space) == []
    assert at_edge({**inside, "lr": 3}, space) == ["lr"]
    assert at_edge({**inside, "lr": 1, "shrink": 0.0101}, space) == ["lr", "shrink"]


# ---- handing out -------------------------------------------------------------------------------------------


def test_a_grid_is_handed_out_in_order_with_numbers_for_numbers(make):
    space = {
        "lr": Choices((0.1, 0.2)),
        "noise": Choices((0, 2)),
        "operator": Choices(("duplicate", "zero-pad")),
    }
    queue = make(space=space)
    assert not queue.finished
    finish(queue)
    assert queue.finished
    assert [queue.point(trial) for trial in queue.results()] == grid(space)
    kinds = {name: type(kind) for name, kind in queue.results()[0].distributions.items()}
    assert kinds == {"lr": FloatDistribution, "noise": IntDistribution, "operator": CategoricalDistribution}


def test_diverged_counts_as_worst_and_pruned_as_done(make):
    queue = make()
    for value in (math.nan, 2.0, None):
        queue.tell(queue.claim(), value, losses=[None], seconds=1.5)
    assert queue.claim() is None
    assert [(trial.state, trial.value) for trial in queue.results()] == [
        (TrialState.COMPLETE, math.inf),
        (TrialState.COMPLETE, 2.0),
        (TrialState.PRUNED, None),
    ]
    assert queue.finished
    assert queue.results()[0].user_attrs["losses"] == [None]
    assert queue.study.best_trial.number == 1


def test_it_goes_on_with_what_is_left(make):
    first = make()
    first.tell(first.claim(), 7.0)
    second = make()
    finish(second)
    assert [trial.value for trial in second.results()] == [7.0, 1.0, 1.0]
    assert first.finished


def test_other_settings_are_refused_with_the_first_difference(make):
    make_final = partial(make, final=True)
    space = {"lr": Choices((0.1, 0.2)), "noise": Choices((1,))}
    make(space, config={"steps": 10, "lr": 0.1})
    make(space, config={"steps": 10, "lr": 0.1})
    with pytest.raises(GrowthError, match=r"settings\.config\.steps was 10, now 20.*another folder"):
        make(space, config={"steps": 20, "lr": 0.1})
    # Knobs have fields of the same name.
    with pytest.raises(GrowthError, match=r"space\.lr\.values was \[0\.1, 0\.2\], now \[0\.1, 0\.3\]"):
        make_final({**space, "lr": Choices((0.1, 0.3))}, config={"steps": 10, "lr": 0.1})
    with pytest.raises(GrowthError, match=r"settings\.more was nothing, now None"):
        make(space, config={"steps": 10, "lr": 0.1}, more=None)


def test_a_grid_may_get_more_numbers(make):
    """Where the best one stood at the edge, say: what was tried is not tried again, nor lost."""
    first, late = make(), make()
    while (trial := first.claim()) is not None:
        first.tell(trial, 10 * first.point(trial)["lr"])
    late.study.ask(late._distributions())  # has taken a number that there is no place for
    for rates in ((0.05, 0.1, 0.2, 0.3), (0.05, 0.1, 0.3, 0.6)):
        wider = make({"lr": Choices(rates)})
        assert not wider.finished
        while (trial := wider.claim()) is not None:
            assert wider.point(trial)["lr"] in (0.05, 0.6)
            wider.tell(trial, 10 * wider.point(trial)["lr"])
        assert wider.finished
        assert make({"lr": Choices(rates)}).finished
    assert wider.space == {"lr": Choices((0.05, 0.1, 0.2, 0.3, 0.6))}
    found = {wider.point(trial)["lr"]: trial.value for trial in wider.results()}
    assert found == pytest.approx({0.05: 0.5, 0.1: 1, 0.2: 2, 0.3: 3, 0.6: 6})


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"kind": Choices(("a", "b"))}, {"kind": Choices(("a", "b", "c"))}),
        ({"noise": Choices((1, 2))}, {"noise": Choices((0.5, 1, 2))}),
        ({"lr": Choices((0.1, 0.2))}, {"lr": Choices((0.1, 0.2)), "noise": Choices((1, 2))}),
    ],
)
def test_what_a_grid_may_not_become(before, after, make):
    make(before)
    with pytest.raises(GrowthError, match="begun with other settings"):
        make(after)


def test_of_two_who_ask_for_the_last_place_one_gets_it(make, monkeypatch):
    quick, late = make(), make()
    quick.tell(quick.claim(), 1.0)
    quick.tell(quick.claim(), 1.0)
    distributions = late._distributions
    last = []
    # After one has seen that a place is free, the other takes it.
    monkeypatch.setattr(late, "_distributions", lambda: last.append(quick.claim()) or distributions())
    assert late.claim() is None
    quick.tell(last[0], 1.0)
    assert [trial.number for trial in late.results()] == [0, 1, 2]
    assert late.finished
    assert state(late, 3) == TrialState.FAIL


def test_of_two_who_widen_a_grid_at_once_both_go_on_with_the_same_one(make, monkeypatch):
    quick, late = make(), make()
    while (trial := quick.claim()) is not None:
        quick.tell(trial, 1.0)
    more = {"lr": Choices((0.05, 0.1, 0.2, 0.4))}
    taken = []

    def in_between(space):
        """After one has read the points, the other widens them and takes the first that is new."""
        monkeypatch.undo()
        quick.widen(more)
        taken.append(quick.claim())
        return grid(space)

    monkeypatch.setattr("mupscale.study.work.queue.grid", in_between)
    late.widen(more)
    quick.tell(taken[0], 1.0)
    while (trial := late.claim()) is not None:
        late.tell(trial, 1.0)
    for queue in (quick, late):
        queue.look_again()
        assert queue.finished
        assert sorted(queue.point(trial)["lr"] for trial in queue.results()) == [0.05, 0.1, 0.2, 0.3, 0.4]


@settings(max_examples=30)
@given(data=st.data())
def test_whatever_workers_do_every_point_is_done_exactly_once(data):
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3), label="grid")
    space = {f"knob{i}": Choices(tuple(range(size))) for i, size in enumerate(sizes)}
    with tempfile.TemporaryDirectory() as folder:
        workers = data.draw(st.integers(1, 4), label="workers")
        play(data, [make_queue(Path(folder) / "trials.journal", space) for _ in range(workers)])


def play(data, queues):
    held = [[] for _ in queues]
    lost, finished = [], []

    def tell(queue, trial):
        if state(queue, trial.number) != TrialState.COMPLETE:
            finished.append(trial.number)
        queue.tell(trial, float(len(finished)))

    moves = st.tuples(
        st.integers(0, len(queues) - 1), st.sampled_from(["claim", "claim", "tell", "die", "fail", "wake"])
    )
    for index, move in data.draw(st.lists(moves, max_size=40), label="moves"):
        queue, mine = queues[index], held[index]
        if move == "claim" and (trial := queue.claim()) is not None:
            assert trial.number not in [other.number for trials in held for other in trials]
            mine.append(trial)
        elif move == "tell" and mine:
            tell(queue, mine.pop())
        elif move == "die" and mine:
            lost.append((queue, mine.pop()))
            with suppress(UpdateFinishedTrialError):  # one who woke has finished it
                kill_worker(*lost[-1])
        elif move == "fail" and mine:
            with pytest.raises(ZeroDivisionError), queue.working_on([mine.pop()]):
                raise ZeroDivisionError
        elif move == "wake" and lost:
            tell(*lost.pop())
    for queue, mine in zip(queues, held, strict=True):
        for trial in mine:
            tell(queue, trial)
    while not queues[0].finished:
        trial = queues[0].claim()
        assert trial is not None
        tell(queues[0], trial)

    results = queues[-1].results()
    assert [queues[-1].point(trial) for trial in results] == grid(queues[-1].space)
    assert {trial.state for trial in results} == {TrialState.COMPLETE}
    # The first answer stands.
    assert [finished[int(trial.value) - 1] for trial in results] == list(range(len(results)))
    assert len(finished) == len(results)


# ---- workers that go ---------------------------------------------------------------------------------------


def test_the_trial_of_a_dead_process_goes_back_under_its_number(make):
    process = subprocess.Popen(["true"])
    dead, alive = make(), make()
    trial = dead.claim()
    alive.claim()
    set_lease(dead, trial, {**dead._lease(), "pid": process.pid})
    process.wait()
    again = alive.claim()
    assert again.number == trial.number
    assert alive.point(again) == {"lr": 0.1}
    assert alive.claim().number == 2


def test_a_worker_that_lives_keeps_its_trial(make):
    first, second = make(), make()
    first.claim()
    assert [second.claim().number, second.claim().number, second.claim()] == [1, 2, None]


def test_the_same_process_id_in_another_container_is_another_process(make):
    first, second = make(), make()
    trial = first.claim()
    set_lease(
        first, trial, {**trial.user_attrs[LEASE], "host": "same name, other processes", "pid": 2**22 + 1}
    )
    second.give_back_abandoned()
    assert state(second, 0) == TrialState.RUNNING


def test_an_error_gives_trials_back_at_once(make):
    queue = make()
    trials = [queue.claim(), queue.claim()]
    queue.tell(trials[1], 1.0)
    with pytest.raises(KeyboardInterrupt), queue.working_on(trials):
        raise KeyboardInterrupt
    assert [state(queue, 0), state(queue, 1)] == [TrialState.WAITING, TrialState.COMPLETE]


def test_an_error_does_not_give_back_what_another_worker_has_by_now(make):
    slow, quick = make(), make()
    trial = slow.claim()
    work = slow.working_on([trial])
    work.__enter__()
    kill_worker(slow, trial)
    assert quick.claim().number == 0
    with pytest.raises(KeyboardInterrupt):
        work.gen.throw(KeyboardInterrupt())
    assert state(quick, 0) == TrialState.RUNNING


@pytest.fixture
def clock(monkeypatch):
    """The queue's clock, set by hand."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(
        queue_module,
        "time",
        SimpleNamespace(monotonic=lambda: clock.now, time=lambda: clock.now, sleep=lambda _: None),
    )
    return clock


@pytest.mark.parametrize("lease", [ELSEWHERE, None])
def test_after_silence_the_trial_of_another_machine_goes_back(make, clock, lease):
    far, near = make(), make()
    trial = far.claim()
    set_lease(far, trial, lease)
    near.give_back_abandoned()
    clock.now = queue_module.SILENCE_SECONDS - 1
    near.give_back_abandoned()
    assert state(near, 0) == TrialState.RUNNING
    clock.now += 2
    assert near.claim().number == 0


def test_a_trial_of_another_machine_that_beats_stays(make, clock):
    far, near = make(), make()
    trial = far.claim()
    for beat in range(10):
        set_lease(far, trial, {**ELSEWHERE, "beat": beat})
        near.give_back_abandoned()
        clock.now += queue_module.SILENCE_SECONDS - 1
    near.give_back_abandoned()
    assert state(near, 0) == TrialState.RUNNING


def test_a_worker_beats_while_it_works_though_the_storage_fails_for_a_while(make, monkeypatch):
    monkeypatch.setattr(queue_module, "BEAT_SECONDS", 0.01)
    queue = make()
    trial = queue.claim()

    def beat():
        return queue.study.get_trials()[0].user_attrs[LEASE]["beat"]

    first = beat()
    with queue.working_on([trial]):
        wait_for(lambda: beat() > first)
        with monkeypatch.context() as broken:
            failed = threading.Event()

            def fail(*_):
                failed.set()
                raise OSError("gone")

            broken.setattr(queue, "_is_mine", fail)
            assert failed.wait(60)
        before = beat()
        wait_for(lambda: beat() > before)


def test_who_was_taken_for_dead_no_longer_beats(make, monkeypatch):
    monkeypatch.setattr(queue_module, "BEAT_SECONDS", 0.01)
    queue = make()
    trial = queue.claim()
    looked = threading.Semaphore(0)
    is_mine = queue._is_mine
    monkeypatch.setattr(queue, "_is_mine", lambda number: [is_mine(number), looked.release()][0])
    with queue.working_on([trial]):
        set_lease(queue, trial, ELSEWHERE)
        while looked.acquire(blocking=False):
            pass
        for _ in range(3):  # the first look may have begun before
            assert looked.acquire(timeout=60)
        set_lease(queue, trial, ELSEWHERE)
        for _ in range(3):
            assert looked.acquire(timeout=60)
        assert queue.study.get_trials()[0].user_attrs[LEASE] == ELSEWHERE


def test_of_two_who_find_a_dead_worker_at_once_one_gives_its_trial_back(make, monkeypatch):
    monkeypatch.setattr(queue_module, "SIGN_SECONDS", 2.0)
    dead, *finders = (make() for _ in range(3))
    kill_worker(dead, dead.claim())
    together = threading.Barrier(2)
    given_back = []

    def look(finder, number, looked=set()):  # noqa: B006
        found = Queue._look(finder, number)
        if finder not in looked:
            looked.add(finder)
            together.wait(60)  # neither has signed
        return found

    for finder in finders:
        monkeypatch.setattr(finder, "_look", partial(look, finder))
        monkeypatch.setattr(finder, "_give_back", lambda number: given_back.append(number))
    threads = [threading.Thread(target=finder.give_back_abandoned) for finder in finders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert given_back == [0]


@pytest.mark.parametrize("workers", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_on_one_file_finish_a_grid_though_one_is_killed(tmp_path, workers):
    finish_grid(str(tmp_path / "trials.journal"), tmp_path, workers)
    for line in (tmp_path / "trials.journal").read_bytes().splitlines():
        json.loads(line)


# ---- samplers and pruners ----------------------------------------------------------------------------------

RANGES = {
    "lr": Range(1e-4, 1e-1, True),
    "noise": Range(0.0, 2.0, False),
    "operator": Choices(("duplicate", "zero-pad")),
    "warmup": Choices((0, 10)),
}


@pytest.mark.parametrize("sampler", ["random", "tpe"])
@pytest.mark.parametrize("diverges", [False, True])
def test_samplers_draw_within_ranges_also_where_all_diverges(make, sampler, diverges):
    queues = [make(RANGES, Search(sampler=sampler, trials=16)) for _ in range(2)]
    turn = 0
    while (trial := queues[turn % 2].claim()) is not None:
        queue = queues[turn % 2]
        point = queue.point(trial)
        assert 1e-4 <= point["lr"] <= 1e-1
        assert 0 <= point["noise"] <= 2
        assert point["operator"] in ("duplicate", "zero-pad")
        assert point["warmup"] in (0, 10)
        queue.tell(trial, math.inf if diverges else point["noise"])
        turn += 1
    assert queues[0].finished
    assert len({trial.params["lr"] for trial in queues[0].results()}) == 16  # they do not draw the same


@pytest.mark.parametrize("pruner", ["median", "asha"])
def test_pruners_give_up_the_worst(make, pruner):
    queue = make(space=RANGES, search=Search(sampler="random", trials=8, pruner=pruner))
    for number in range(8):
        trial = queue.claim()
        loss = math.nan if number == 7 else float(number)  # each is worse than those before
        given_up = any(queue.report(trial, step, loss) for step in range(1, 6))
        queue.tell(trial, None if given_up else loss)
    states = [trial.state for trial in queue.results()]
    assert states[0] == TrialState.COMPLETE
    assert states[7] == TrialState.PRUNED
    assert queue.finished
    assert queue.results()[7].intermediate_values[1] == math.inf


def test_without_a_pruner_nothing_is_noted(make):
    queue = make()
    trial = queue.claim()
    assert not queue.report(trial, 1, 5.0)
    queue.tell(trial, 1.0)
    assert queue.results()[0].intermediate_values == {}


def test_a_repeated_trial_reports_steps_that_were_noted_before(make):
    queue = make(search=Search(pruner="median"))
    trial = queue.claim()
    queue.report(trial, 1, 5.0)
    kill_worker(queue, trial)
    again = queue.claim()
    assert again.number == trial.number
    assert not queue.report(again, 1, 6.0)
    assert not queue.report(again, 2, 4.0)
    queue.tell(again, 4.0)
    assert queue.results()[0].intermediate_values == {1: 5.0, 2: 4.0}
    assert queue.report(trial, 3, 4.0)  # who had it first hears that it is done
    queue.tell(trial, 9.0)
    assert queue.results()[0].value == 4.0


# ---- storages ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rest", [b'{"op_code":8,"wor', b"{", b'{"op_code":8}' * 4000])
def test_a_half_written_line_is_cut_off_at_the_next_write(make, tmp_path, rest):
    path = tmp_path / "trials.journal"
    beside = make()  # open already when the writer is killed
    trial = beside.claim()
    whole = path.read_bytes()
    path.write_bytes(whole + rest)
    later = make()
    beside.tell(trial, 3.0)
    finish(later)
    assert path.read_bytes().startswith(whole)
    for line in path.read_bytes().splitlines():
        json.loads(line)
    assert [trial.value for trial in make().results()] == [3.0, 1.0, 1.0]


def test_a_half_written_first_line_is_cut_off(make, tmp_path):
    path = tmp_path / "trials.journal"
    path.write_bytes(b'{"op_code":0,')
    finish(make())
    assert make().finished


def test_the_lock_of_a_killed_writer_is_broken_also_with_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    queue = make_queue(Path("out/trials.journal"))
    lock = queue.storage._backend._lock
    lock.acquire()
    assert os.path.exists(
        "out/trials.journal.lock"
    )  # a link that leads nowhere would be waited for without end
    lock.grace_period = 1
    finish(queue)
    assert queue.finished


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("mysql://tuner:secret@localhost/trials", "No module named 'MySQLdb'"),
        ("nonsense://tuner:secret@localhost/trials", "nonsense"),
        ("sqlite:////nowhere/at/all.db", "unable to open database file"),
    ],
)
def test_a_storage_that_cannot_be_opened_is_one_clear_line(place, said, monkeypatch):
    monkeypatch.setattr(queue_module.time, "sleep", lambda _: None)
    with pytest.raises(GrowthError, match="cannot be opened") as caught:
        open_storage(place)
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_journal(tmp_path):
    with pytest.raises(GrowthError, match="cannot be opened"):
        open_storage(tmp_path)


def test_others_read_the_journal_with_optuna_alone(make, tmp_path):
    queue = make()
    queue.tell(queue.claim(), math.inf, losses=[None])
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "trials.journal"))
    study = optuna.load_study(study_name="sweep", storage=optuna.storages.JournalStorage(backend))
    assert [(trial.params, trial.value) for trial in study.trials] == [({"lr": 0.1}, math.inf)]
