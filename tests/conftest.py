"""Settings of every test."""

import gc
import os
from functools import cache
from typing import NoReturn
from zlib import crc32

import pytest
import torch
import torch._export.utils as export_utils
from hypothesis import settings
from torch.fx import Node
from torch.onnx._internal.exporter._registration import ONNXRegistry

from l0prune.flow import follow

# Two test processes share two cores: threads of their own would only wait for each other.
torch.set_num_threads(1)

# For every file it writes, torch.onnx reads the sources of its 500 translations anew: half the time of a small network.
ONNXRegistry.from_torchlib = staticmethod(cache(ONNXRegistry.from_torchlib))  # type: ignore[method-assign]

# For every decomposition, torch.export names all operations of its dispatcher anew, dozens of times over.
export_utils._materialize_cpp_cia_ops = cache(export_utils._materialize_cpp_cia_ops)

# torch, sympy and onnx hold hundreds of thousands of objects that live to the end. With Python's own numbers, a tenth of the time
# that an ONNX file takes goes into looking for garbage among them.
gc.set_threshold(50_000, 20, 20)


def pytest_collection_finish():
    gc.collect()
    gc.freeze()


# How long an example takes says something about the machine, not about the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the commands under test remember is not kept among what the user has typed."""
    os.environ["L0PRUNE_STATE_DIR"] = str(tmp_path_factory.mktemp("state"))


# pytest-randomly shuffles the tests and seeds `random` and numpy by the name of each one, once for its fixtures and once for
# the test itself. The same for torch:


def pytest_runtest_setup(item):
    _seed_torch(item, part=0)


def pytest_runtest_call(item):
    _seed_torch(item, part=1)


def _seed_torch(item, part):
    seed = item.config.getoption("randomly_seed", default=0)
    torch.manual_seed(crc32(f"{seed} {part} {item.nodeid}".encode()))


def _raise(node: Node, error: Exception) -> NoReturn:
    raise error


# For users a rule that fails pins what it touches. Here it is a fault to be seen. Sessions may follow one another in a process.
_pinning = getattr(follow.failure_of_rule, "for_users", follow.failure_of_rule)
_raise.for_users = _pinning  # type: ignore[attr-defined]
follow.failure_of_rule = _raise


@pytest.fixture
def failing_rules_pin(monkeypatch):
    """As for users."""
    monkeypatch.setattr(follow, "failure_of_rule", _pinning)
