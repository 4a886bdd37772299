import pytest
import torch

# The models here are tiny: threads cost more than they give, and xdist runs a worker on every core.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_numbers_every_time():
    """What a test draws without a seed of its own depends on nothing that ran before it."""
    torch.manual_seed(0)
