"""Settings of every test."""

import torch
from hypothesis import settings

# Two test processes share two cores: threads of their own would only wait for each other.
torch.set_num_threads(1)

# How long an example takes says something about the machine, not about the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
