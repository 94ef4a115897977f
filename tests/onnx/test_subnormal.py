"""Weights below the normal range of their type become zero in the file, which is said; nothing else changes."""

import warnings

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import l0prune
from l0prune.errors import L0PruneWarning
from l0prune.onnx.onnx_model import onnx_difference

SMALLEST = float(np.finfo(np.float32).tiny)


class Branching(nn.Module):
    """A layer after a condition that only TorchScript can write."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool(x.sum() > 0):
            x = x + 1
        return self.layer(x)


def with_dead_weights(model: nn.Module) -> nn.Module:
    """Five weights that decayed to nothing, one of them negative, and one that is the smallest normal number."""
    layer = next(module for module in model.modules() if isinstance(module, nn.Linear))
    with torch.no_grad():
        layer.weight[0, :5] = torch.tensor([1e-39, -1e-40, 1e-44, SMALLEST / 2, 5e-39])
        layer.weight[1, 0] = SMALLEST
    return model.eval()


def weights_of(path) -> list[np.ndarray]:
    return [numpy_helper.to_array(tensor) for tensor in onnx.load(str(path)).graph.initializer]


@pytest.mark.parametrize(
    "make", [lambda: nn.Sequential(nn.Linear(6, 4), nn.ReLU()), Branching], ids=["graph", "script"]
)
def test_a_file_holds_no_numbers_that_slow_processors_and_it_is_said_how_many_did(make, tmp_path):
    torch.manual_seed(0)
    model, x = with_dead_weights(make()), torch.randn(2, 6)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    with pytest.warns(L0PruneWarning, match=r"net\.onnx: 5 weights below the normal numbers .* are written as 0"):
        path = l0prune.export_onnx(model, x, tmp_path / "net.onnx")

    arrays = [array for array in weights_of(path) if array.dtype == np.float32]
    assert not any(((array != 0) & (np.abs(array) < SMALLEST)).any() for array in arrays)
    assert sum(int((np.abs(array) == np.float32(SMALLEST)).sum()) for array in arrays) == 1
    assert sum(int((array == 0).sum()) for array in arrays) >= 5
    assert onnx_difference(path, model, x).max_rel < 1e-6
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_nothing_is_said_where_there_are_none_and_of_zeros(tmp_path):
    model = nn.Linear(6, 4).eval()
    with torch.no_grad():
        model.weight[0, 0] = 0.0

    with warnings.catch_warnings():
        warnings.simplefilter("error", L0PruneWarning)
        l0prune.export_onnx(model, torch.randn(2, 6), tmp_path / "net.onnx")
