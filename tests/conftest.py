"""Settings of every test."""

import os

import pytest
import torch
from hypothesis import settings

# Two test processes share two cores: threads of their own would only wait for each other.
torch.set_num_threads(1)

# How long an example takes says something about the machine, not about the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the commands under test remember is not kept among what the user has typed."""
    os.environ["L0PRUNE_STATE_DIR"] = str(tmp_path_factory.mktemp("state"))
