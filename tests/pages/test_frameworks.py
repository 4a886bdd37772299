"""Checkpoints that torchtitan, OLMo-core and accelerate have saved, grown and loaded by them again.

`make frameworks` runs these.
"""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from lockstep import assert_lockstep

EXAMPLES = Path(__file__).parents[2] / "examples" / "frameworks"
FRAMEWORKS = ["torchtitan", "olmo_core", "accelerate"]


def needs(name):
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed: make frameworks installs it, and runs this")


def run(name, processes, *arguments):
    """What an example prints last."""
    needs(name)
    start = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}"] if processes > 1 else []
    command = [sys.executable, *start, str(EXAMPLES / f"grow_{name}.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_pure_copies_go_on_as_the_narrow_model_does(name, processes):
    found = run(name, processes, "--noise", "none")
    assert found["processes"] == processes
    assert found["losses differ by at most"] < 1e-5
    assert found["moments differ from those of a wide model trained all along by, of the largest"] < 1e-3
    assert len(set(found["losses"]["grown"])) == 10


@pytest.mark.slow
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_with_noise_it_goes_on_without_a_jump(name):
    found = run(name, 1)
    assert found["first losses differ by"] < 1e-5
    assert 1e-4 < found["losses differ by at most"] < 0.1, "copies learn different things"


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["SkipStepAdamW", "SkipStepLion", "Lion"])
def test_optimizers_of_olmo_core_stay_in_lockstep(optimizer):
    needs("olmo_core")
    from olmo_core import optim

    for name in ("mlp", "llama_tied"):
        assert_lockstep(name, lambda p: getattr(optim, optimizer)(p, lr=1e-4, weight_decay=0.1), 3)
