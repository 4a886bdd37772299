"""A power cut at any moment: the destination is whole or not there, and what it replaces is there until then.

A file system of its own in an image: what a copy of the image holds is what had reached the disk.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from transformers import AutoModelForCausalLM

from models import CONFIGS
from mupscale.cli import main

pytestmark = pytest.mark.slow
CUTS = 12


def run(*command):
    return subprocess.run(list(map(str, command)), capture_output=True, text=True)


@pytest.fixture
def disk(tmp_path):
    """A folder on an ext4 of its own, and the image that it lies in."""
    image, folder = tmp_path / "disk.img", tmp_path / "disk"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(128 << 20)
    if run("mkfs.ext4", "-q", "-F", image).returncode or run("mount", "-o", "loop", image, folder).returncode:
        pytest.skip("needs mkfs.ext4 and the right to mount an image")
    yield folder, image
    run("umount", folder)


@pytest.fixture
def source(tmp_path):
    """A checkpoint with an optimizer, of which growth takes a moment."""
    config = CONFIGS["llama"]()
    config.vocab_size = 10_000
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    optimizer.step()
    path = tmp_path / "narrow"
    model.save_pretrained(path)
    torch.save(optimizer.state_dict(), path / "optimizer.pt")
    return path


def after_the_cut(image, folder, source):
    """What is found on a disk of this image: None for no destination, else the seed that it was grown with."""
    folder.mkdir(exist_ok=True)
    assert not run("mount", "-o", "loop", image, folder).returncode
    try:
        wide = folder / "wide"
        if not wide.exists():
            return None
        assert main(["verify", str(source), str(wide), "--files-only"]) == 0, "half a destination"
        return int('"seed": 1' in (wide / "mupscale.json").read_text())
    finally:
        assert not run("umount", folder).returncode


def begun(command, partial):
    """A process, and when it began to write."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while not partial.exists() and process.poll() is None:
        time.sleep(0.001)
    return process, time.time()


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_destination_is_whole_or_absent(overwrite, disk, source, tmp_path):
    folder, image = disk
    wide, rng = folder / "wide", random.Random(0)
    grow = ["grow", str(source), str(wide), "--width", "2", "--operator", "duplicate"]
    if overwrite:
        assert main(grow) == 0
        os.sync()
    command = [sys.executable, "-m", "mupscale", *grow, "--seed", "1", "--overwrite"]
    partial, found, takes = folder / ".wide.partial", [], None
    for _ in range(CUTS):
        process, began = begun(command, partial)
        if takes is None:  # from the first file to the end, and then at once the power goes
            while partial.exists():
                time.sleep(0.001)
            takes = time.time() - began
            assert process.wait() == 0, process.stderr.read()
        else:
            time.sleep(rng.random() * takes)
            process.send_signal(signal.SIGSTOP)
        shutil.copyfile(image, tmp_path / "cut.img")
        process.kill()
        process.wait()
        found.append(after_the_cut(tmp_path / "cut.img", tmp_path / "cut", source))
        shutil.rmtree(partial, ignore_errors=True)  # else the next run goes on from it
        if found[-1] == 1:  # it had ended: once more from before
            shutil.rmtree(wide, ignore_errors=True)
            assert not overwrite or main(grow) == 0
            os.sync()
    before = 0 if overwrite else None
    assert found[0] == 1, "it had said that it was done"
    assert before in found, "no cut came before the end"
    assert {*found} <= {1, before}
