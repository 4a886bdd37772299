import torch

# The models here are tiny: threads cost more than they give, and xdist runs a worker on every core.
torch.set_num_threads(1)
