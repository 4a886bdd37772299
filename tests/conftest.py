import gc

import pytest
import torch

# The models here are tiny: threads cost more than they give, and xdist runs a worker on every core.
torch.set_num_threads(1)


def pytest_collection_finish():
    """Every garbage collection, of which each training asks for one, would walk through all of the libraries."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _a_cache_of_its_own(tmp_path_factory):
    """What is remembered of families from before must not hide what measuring them anew would find."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MUPSCALE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture(autouse=True)
def _same_numbers_every_time():
    """What a test draws without a seed of its own depends on nothing that ran before it."""
    torch.manual_seed(0)
