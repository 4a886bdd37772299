"""Worker processes for the tests of the queue: tiny trials, and one worker that is killed in the middle of one."""

import json
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from optuna.trial import TrialState

from mupscale.study.spec.space import Choices, Point, grid
from mupscale.study.spec.sweeps import Search
from mupscale.study.work.queue import Queue
from mupscale.study.work.storage import open_storage

SPACE = {"lr": Choices((0.001, 0.003, 0.01, 0.03, 0.1, 0.3)), "noise": Choices((0, 1, 2, 4))}
POINTS = grid(SPACE)
PATIENCE = 240.0  # seconds


def open_queue(storage: str) -> Queue:
    return Queue(open_storage(storage), "sweep", SPACE, Search())


def loss(point: Point) -> float:
    return float("inf") if point["lr"] == 0.3 else float(point["lr"]) + float(point["noise"])


def work(storage: str, folder: Path, name: str) -> None:
    """Work until the grid is finished; the one named ``victim`` takes a trial and stays in it."""
    (folder / f"{name}.ready").touch()
    wait_for((folder / "go").exists)
    queue = open_queue(storage)  # all at the same moment
    if name != "victim":
        wait_for((folder / "hanging").exists)
    log = os.open(folder / "log", os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    while not queue.finished:
        trial = queue.claim()
        if trial is None:
            time.sleep(0.05)
            continue
        with queue.working_on([trial]):
            if name == "victim":
                (folder / "number").write_text(str(trial.number))
                (folder / "hanging").touch()
                time.sleep(PATIENCE)
            time.sleep(0.02)
            point = queue.point(trial)
            os.write(log, f"{json.dumps([name, trial.number, point])}\n".encode())
            queue.tell(trial, loss(point), curve=[[1, 2.0], [2, None]])


def finish_grid(storage: str, folder: Path, workers: int) -> None:
    """Some workers finish the grid beside one that is killed; check that no trial is lost or doubled."""
    context = multiprocessing.get_context("forkserver")  # each starts clean, but with the imports done
    context.set_forkserver_preload([Queue.__module__])
    names = ["victim", *(f"worker-{index}" for index in range(workers))]
    processes = {
        name: context.Process(target=work, args=(storage, folder, name), daemon=True) for name in names
    }
    log = folder / "log"
    try:
        for process in processes.values():
            process.start()
        wait_for(lambda: all((folder / f"{name}.ready").exists() for name in names), processes)
        (folder / "go").touch()
        wait_for(lambda: log.exists() and len(log.read_text().splitlines()) >= 3, processes)
        processes["victim"].kill()
        for process in processes.values():
            process.join(PATIENCE)
    finally:
        for process in processes.values():
            process.kill()
    assert [process.exitcode for process in processes.values()] == [-9, *[0] * workers]

    done = [json.loads(line) for line in log.read_text().splitlines()]
    assert Counter(number for _, number, _ in done) == Counter(range(len(POINTS)))
    assert sorted(map(str, (point for *_, point in done))) == sorted(map(str, POINTS))
    assert "victim" not in {name for name, *_ in done}
    assert int((folder / "number").read_text()) in {number for _, number, _ in done}
    assert len({name for name, *_ in done}) > 1  # they did work side by side

    queue = open_queue(storage)
    assert queue.finished
    assert [trial.number for trial in queue.results()] == list(range(len(POINTS)))
    assert [queue.point(trial) for trial in queue.results()] == POINTS
    assert [trial.value for trial in queue.results()] == [loss(point) for point in POINTS]
    assert all(trial.user_attrs["curve"] == [[1, 2.0], [2, None]] for trial in queue.results())
    states = Counter(trial.state for trial in queue.study.get_trials())
    assert states[TrialState.COMPLETE] == len(POINTS)
    assert not states[TrialState.RUNNING]
    assert not states[TrialState.WAITING]


def wait_for(condition: Callable[[], bool], processes: dict | None = None) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        for name, process in (processes or {}).items():
            assert process.exitcode is None, f"{name} ended early"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
