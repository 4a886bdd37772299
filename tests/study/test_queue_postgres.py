"""The queue on a PostgreSQL server, which the test starts for itself."""

import math
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import uuid
from pathlib import Path

import pytest
from queue_worker import PATIENCE, finish_grid, wait_for

from mupscale.study.spec.space import Choices
from mupscale.study.spec.sweeps import Search
from mupscale.study.work.queue import Queue
from mupscale.study.work.storage import open_storage

psycopg = pytest.importorskip("psycopg")
pytestmark = pytest.mark.slow


def find_binaries() -> Path | None:
    """The folder of the server's programs; Debian keeps them off the PATH."""
    found = shutil.which("initdb")
    places = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return next((place for place in reversed(places) if (place / "postgres").exists()), None)


@pytest.fixture(scope="module")
def server():
    """A server of its own that listens on a socket in its folder; yields that folder."""
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL server here; `make postgres` installs Debian's")
    # Not in pytest's folder: the name of a socket must be short, and the server's user must get there.
    folder = Path(tempfile.mkdtemp(prefix="queue-"))
    account = {}
    if os.geteuid() == 0:  # as root the server refuses to run
        nobody = pwd.getpwnam("nobody")
        account = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    process = None
    try:
        make = [binaries / "initdb", "-D", folder / "data", "-U", "tuner", "-A", "trust", "--no-sync"]
        subprocess.run(make, check=True, cwd=folder, stdout=subprocess.DEVNULL, **account)
        serve = [binaries / "postgres", "-D", folder / "data", "-k", folder, "-c", "listen_addresses="]
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(serve, cwd=folder, stdout=log, stderr=log, **account)

        def answers():
            assert process.poll() is None, (folder / "log").read_text()
            try:
                connect(folder).close()
            except psycopg.OperationalError:
                return False
            return True

        wait_for(answers)
        yield folder
    finally:
        if process is not None:
            process.send_signal(signal.SIGINT)  # end, without waiting for clients to leave
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(PATIENCE)
        shutil.rmtree(folder)


def connect(folder):
    return psycopg.connect(host=str(folder), user="tuner", dbname="postgres", autocommit=True)


@pytest.fixture
def empty_database(server):
    name = f"trials_{uuid.uuid4().hex}"
    with connect(server) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"postgresql+psycopg://tuner@/{name}?host={server}"


@pytest.mark.parametrize("workers", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_finish_a_grid_though_one_is_killed(empty_database, tmp_path, workers):
    finish_grid(empty_database, tmp_path, workers)


def test_values_come_back_as_they_were_told(empty_database):
    space = {"lr": Choices((0.1, 1 / 3)), "operator": Choices(("duplicate",))}
    queue = Queue(open_storage(empty_database), "sweep", space, Search(pruner="median"))
    first, second = queue.claim(), queue.claim()
    queue.report(first, 1, math.nan)
    queue.tell(first, math.nan, losses=[None, 1 / 3])
    queue.report(second, 1, 2.5)
    queue.tell(second, None)
    again = Queue(open_storage(empty_database), "sweep", space, Search(pruner="median"))
    assert again.finished
    diverged, pruned = again.results()
    assert (diverged.value, diverged.intermediate_values) == (math.inf, {1: math.inf})
    assert diverged.user_attrs["losses"] == [None, 1 / 3]
    assert (pruned.value, pruned.intermediate_values) == (None, {1: 2.5})
    assert again.point(pruned) == {"lr": 1 / 3, "operator": "duplicate"}
