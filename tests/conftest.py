import gc
import os

import pytest
import torch
from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")

# The models here are tiny: threads cost more than they give, and xdist runs a worker on every core.
torch.set_num_threads(1)


def pytest_collection_finish():
    """Every garbage collection, of which each training asks for one, would walk through all of the libraries."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _surroundings(tmp_path_factory):
    """What is remembered of families from before must not hide what measuring them anew would find.

    The workers of xdist share one cache, and processes that a test starts have one thread, too.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MUPSCALE_CACHE", str(shared / "cache"))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(autouse=True)
def _same_numbers_every_time():
    """What a test draws without a seed of its own depends on nothing that ran before it."""
    torch.manual_seed(0)
