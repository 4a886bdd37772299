"""A growth that was stopped goes on when its command is given again, and comes to the same bytes."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mupscale
from models import batch, build, loss_of
from mupscale import GrowthError
from mupscale.checkpoint.journal import JOURNAL
from mupscale.checkpoint.reader import Checkpoint
from mupscale.checkpoint.regrowth import regrow
from mupscale.cli import main
from mupscale.growth import grow_checkpoint
from mupscale.operators.any_tensor import Grower

HOW = {"width": 2, "max_shard_size": "60KB", "operator": "duplicate"}
ARGV = ["--width", "2", "--max-shard-size", "60KB", "--operator", "duplicate"]


class Stopped(BaseException):
    pass


def after(count):
    """A progress that stops the run when so many tensors are in place."""

    def progress(done, total):
        nonlocal count
        count -= 1
        if count < 0:
            raise Stopped

    return progress


def contents(folder):
    """Every file's SHA-256, but for where the source lies, which is a copy here and there."""
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.iterdir()
        if p.name != "mupscale.json"
    } | {"sha256": json.loads((folder / "mupscale.json").read_text())["sha256"]}


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "narrow"
    model = build("llama").float()
    optimizer = torch.optim.AdamW(list(model.named_parameters()), lr=3e-3)
    loss_of(model, batch("llama", 0)).backward()
    optimizer.step()
    model.save_pretrained(path)
    torch.save(optimizer.state_dict(), path / "optimizer.pt")
    return path


@pytest.fixture(scope="module")
def whole(narrow, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "wide"
    grow_checkpoint(narrow, path, **HOW)
    return contents(path)


def test_every_tensor_has_its_checksum_in_the_manifest(narrow, whole):
    assert len(whole["sha256"]) == 21 + 3 * 21


@settings(max_examples=12)
@given(stops=st.lists(st.integers(0, 90), min_size=1, max_size=3), overwrite=st.booleans())
def test_stopped_anywhere_and_as_often_it_ends_in_the_same_bytes(
    stops, overwrite, narrow, whole, tmp_path_factory
):
    path = tmp_path_factory.mktemp("stopped") / "wide"
    if overwrite:
        shutil.copytree(narrow, path)
    for stop in stops:
        try:
            grow_checkpoint(narrow, path, **HOW, progress=after(stop), overwrite=overwrite)
            overwrite = True
        except Stopped:
            assert path.exists() == overwrite
    grow_checkpoint(narrow, path, **HOW, overwrite=overwrite)
    assert contents(path) == whole
    assert [p.name for p in path.parent.iterdir()] == ["wide"]
    assert regrow(narrow, path)


def test_what_is_done_is_not_done_again(narrow, whole, tmp_path, monkeypatch):
    with pytest.raises(Stopped):
        grow_checkpoint(narrow, tmp_path / "wide", **HOW, progress=after(70))
    made, call = [], Grower.blocks
    monkeypatch.setattr(
        Grower, "blocks", lambda self, name, dtype, **how: made.append(name) or call(self, name, dtype, **how)
    )
    grow_checkpoint(narrow, tmp_path / "wide", **HOW)
    assert len(made) == 84 - 71
    assert contents(tmp_path / "wide") == whole


@pytest.mark.parametrize(
    "lost", ["weights", "optimizer", "end of the journal", "journal", "line in the journal"]
)
def test_what_a_power_cut_has_lost_is_made_again(lost, narrow, whole, tmp_path):
    """Lines are there and bytes are not, or the other way round."""
    with pytest.raises(Stopped):
        grow_checkpoint(narrow, tmp_path / "wide", **HOW, progress=after(80))
    partial = tmp_path / ".wide.partial"
    if lost == "weights":
        path = sorted(partial.glob("*.safetensors"))[0]
        path.write_bytes(path.read_bytes()[:5000])
    elif lost == "optimizer":
        path, size = partial / "optimizer.pt", (partial / "optimizer.pt").stat().st_size
        with path.open("r+b") as file:
            file.seek(size // 2)
            file.write(bytes(3000))
    else:
        lines = (partial / JOURNAL).read_bytes().splitlines(keepends=True)
        cut = {
            "end of the journal": [*lines[:-1], lines[-1][:10]],
            "journal": [],
            "line in the journal": [*lines[:3], b"\0" * 50 + b"\n", *lines[4:]],
        }
        (partial / JOURNAL).write_bytes(b"".join(cut[lost]))
    if "line" not in lost and lost != "journal":  # what is written into it from now on can be read
        with pytest.raises(Stopped):
            grow_checkpoint(narrow, tmp_path / "wide", **HOW, progress=after(82))
        assert all(json.loads(line) for line in (partial / JOURNAL).read_text().splitlines())
    grow_checkpoint(narrow, tmp_path / "wide", **HOW)
    assert contents(tmp_path / "wide") == whole


@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_signal_leaves_one_line_and_a_state_to_go_on_from(
    number, status, word, narrow, whole, tmp_path, capsys, monkeypatch
):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
    with monkeypatch.context() as patch:
        patch.setattr(
            "mupscale.checkpoint.staging.copy_companions", lambda *args, **how: os.kill(os.getpid(), number)
        )
        assert main(["grow", str(narrow), str(tmp_path / "wide"), *ARGV]) == status
    signal.signal(signal.SIGINT, before)
    said = capsys.readouterr().err
    assert said.startswith(
        f"mupscale: {word}; what is done stays in {tmp_path}/.wide.partial: give the same command"
    )
    assert said.count("\n") == 1
    assert not (tmp_path / "wide").exists()
    assert main(["grow", str(narrow), str(tmp_path / "wide"), *ARGV]) == 0
    assert contents(tmp_path / "wide") == whole


def test_other_arguments_do_not_go_on_with_it(narrow, whole, tmp_path):
    source = shutil.copytree(narrow, tmp_path / "narrow")
    with pytest.raises(Stopped):
        grow_checkpoint(source, tmp_path / "wide", **HOW, progress=after(50))
    for other, said in (
        ({"seed": 1}, r"other settings \(seed 0\) was stopped here; give its command again"),
        ({"width": 3}, r"other settings \(growth d_model"),
        ({"noise": None}, r"other settings \(noise balanced:1\) was"),
        ({"max_shard_size": "5GB"}, r"other settings \(max_shard_size 60KB\) was"),
        ({"dtype": torch.bfloat16}, r"other settings \(dtype None\) was"),
    ):
        with pytest.raises(GrowthError, match=said):
            grow_checkpoint(source, tmp_path / "wide", **{**HOW, **other})
    os.utime(source / "model.safetensors")
    with pytest.raises(GrowthError, match=r"other settings \(source\) was stopped here; give its command"):
        grow_checkpoint(source, tmp_path / "wide", **HOW)
    shutil.rmtree(tmp_path / ".wide.partial")
    grow_checkpoint(source, tmp_path / "wide", **HOW)
    assert contents(tmp_path / "wide") == whole


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ({"shrink": 0.33333351}, {"shrink": 0.33333449}, "shrink 0.33333351"),
        ({"noise": "fresh:0.33333351"}, {"noise": "fresh:0.33333449"}, "noise fresh:0.33333351"),
        ({"allow_nonfinite": True}, {}, "allow_nonfinite True"),
    ],
)
def test_nor_do_such_as_differ_by_little(one, other, said, narrow, tmp_path):
    how = {"width": 2, "operator": "zero_pad"}
    with pytest.raises(Stopped):
        grow_checkpoint(narrow, tmp_path / "wide", **how, **one, progress=after(10))
    with pytest.raises(GrowthError, match=rf"other settings \({said}\) was stopped here"):
        grow_checkpoint(narrow, tmp_path / "wide", **how, **other)


def test_nor_does_another_order_of_the_layers(narrow, tmp_path):
    config = Checkpoint(narrow).config
    repeat, cycle = (mupscale.plan(config, axes={"layers": 2}, order=order) for order in ("repeat", "cycle"))
    with pytest.raises(Stopped):
        grow_checkpoint(narrow, tmp_path / "deep", repeat, progress=after(40))
    with pytest.raises(GrowthError, match=r"other settings \(plan\) was stopped here"):
        grow_checkpoint(narrow, tmp_path / "deep", cycle)
    grow_checkpoint(narrow, tmp_path / "deep", repeat)
    assert regrow(narrow, tmp_path / "deep")


@pytest.mark.parametrize("stop", [1, 66, 80])
def test_learning_rates_that_are_tensors_go_on_too(stop, narrow, tmp_path):
    source = shutil.copytree(narrow, tmp_path / "narrow")
    saved = torch.load(source / "optimizer.pt")
    saved["param_groups"][0]["lr"] = torch.tensor(3e-3)
    torch.save(saved, source / "optimizer.pt")
    grow_checkpoint(source, tmp_path / "whole", **HOW)
    with pytest.raises(Stopped):
        grow_checkpoint(source, tmp_path / "wide", **HOW, progress=after(stop))
    grow_checkpoint(source, tmp_path / "wide", **HOW)
    assert contents(tmp_path / "wide") == contents(tmp_path / "whole")
    assert all(group["lr"] > 0 for group in torch.load(tmp_path / "wide/optimizer.pt")["param_groups"])


def test_a_source_that_changes_while_it_is_read_is_refused(narrow, tmp_path):
    source = shutil.copytree(narrow, tmp_path / "narrow")

    def progress(done, total):
        if done > total / 2:
            os.utime(source / "model.safetensors")

    with pytest.raises(GrowthError, match="was changed while it was read"):
        grow_checkpoint(source, tmp_path / "wide", **HOW, progress=progress)
    assert [p.name for p in tmp_path.iterdir()] == ["narrow"]


SCRIPT = """
import os, random, signal, sys
from mupscale.growth import grow_checkpoint
source, wide, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
random.seed(0)

def dying(done, total):
    if random.random() < 0.04:
        os.kill(os.getpid(), signal.SIGKILL)

grow_checkpoint(source, wide + "-first", width=2, operator="duplicate")  # so that all is imported before the forks
for round in range(rounds):
    random.seed(round)
    if not (child := os.fork()):
        grow_checkpoint(source, wide, width=2, max_shard_size="60KB", operator="duplicate", overwrite=True, progress=dying)
        os._exit(0)
    print(os.waitpid(child, 0)[1], os.path.exists(os.path.join(wide, "config.json")), flush=True)
grow_checkpoint(source, wide, width=2, max_shard_size="60KB", operator="duplicate", overwrite=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("before", [False, True])
def test_killed_twenty_times_it_ends_in_the_same_bytes(before, narrow, whole, tmp_path):
    """SIGKILL at random moments; with --overwrite, what was there can be read at every one of them."""
    wide = tmp_path / "wide"
    if before:
        shutil.copytree(narrow, wide)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(narrow), str(wide), "20"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rounds = [line.split() for line in done.stdout.splitlines()]
    assert sum(int(status) == signal.SIGKILL for status, _ in rounds) >= 10
    there = [exists == "True" for _, exists in rounds]
    assert there == sorted(there)  # once there, always there
    assert all(there) or not before
    assert contents(wide) == whole
    assert {p.name for p in tmp_path.iterdir()} == {"wide", "wide-first"}
