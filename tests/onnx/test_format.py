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
from l0prune.onnx.onnx_model import OnnxModel


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


def test_inputs_and_outputs_may_bear_the_names_of_operations_and_of_weights(tmp_path):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.randn(5))

        def forward(self, cat, scale, mul):
            joined = torch.sigmoid(torch.cat([cat, scale], 1) * self.scale)
            return {"sigmoid": joined.mean(1, keepdim=True) * mul, "mean": joined}

    model = Named().eval()
    inputs = {"cat": torch.randn(3, 2), "scale": torch.randn(3, 3), "mul": torch.randn(3, 5)}

    path = l0prune.export_onnx(model, inputs, tmp_path / "named.onnx")

    loaded = OnnxModel(path)
    assert [value.name for value in loaded.session.get_inputs()] == ["cat", "scale", "mul"]
    assert [value.name for value in loaded.session.get_outputs()] == ["sigmoid", "mean"]
    expected = model(**inputs)
    for found, name in zip(loaded(**inputs), ("sigmoid", "mean"), strict=True):
        torch.testing.assert_close(found, expected[name])
