"""Files have the lowest version of the format that holds them, so that runtimes that are not the newest read them."""

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from torch import nn

import l0prune
from l0prune.errors import ConfigError
from l0prune.onnx.labels import oldest_ir_version


@pytest.mark.parametrize(("opset", "expected"), [(None, 9), (20, 9), (21, 10)])
def test_the_format_is_as_old_as_the_operators_allow(opset, expected, tmp_path):
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU()).eval()

    path = l0prune.export_onnx(model, torch.randn(2, 6), tmp_path / "net.onnx", opset=opset)

    assert onnx.load(str(path)).ir_version == expected


@pytest.mark.parametrize(
    ("dtype", "expected"), [("FLOAT", 8), ("FLOAT8E4M3FN", 9), ("INT4", 10), ("FLOAT4E2M1", 11), ("INT8", 8)]
)
def test_types_of_numbers_that_came_later_need_a_later_one(dtype, expected):
    kind = onnx_ir.DataType[dtype]
    weight = onnx_ir.Value(name="w", const_value=onnx_ir.Tensor(np.zeros(2, kind.numpy()), dtype=kind))
    graph = onnx_ir.Graph([], [], nodes=[], initializers=[weight], opset_imports={"": 18})

    assert oldest_ir_version(onnx_ir.Model(graph, ir_version=12)) == expected


def test_outputs_have_the_names_that_were_asked_for_or_it_is_said_what_is_wrong(tmp_path):
    class Pair(nn.Module):
        def forward(self, x):
            return x + 1, x * 2

    path = l0prune.export_onnx(Pair(), torch.randn(2, 6), tmp_path / "pair.onnx", output_names=["sum", "product"])
    assert [value.name for value in onnx.load(str(path)).graph.output] == ["sum", "product"]

    wrong = {
        ("one",): r"the model has the 2 output\(s\) .*, found 1 names",
        ("one", "one"): "'one' is given twice",
        ("x", "y"): "'x' is that of an input",
        ("", "y"): "'' is empty",
        "ab": "found 'ab'",
    }
    for names, said in wrong.items():
        with pytest.raises(ConfigError, match=said):
            l0prune.export_onnx(Pair(), torch.randn(2, 6), tmp_path / "other.onnx", output_names=names)
    assert not (tmp_path / "other.onnx").exists()
