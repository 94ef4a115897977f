"""Settings of every test."""

import torch

# Two test processes share two cores: threads of their own would only wait for each other.
torch.set_num_threads(1)
