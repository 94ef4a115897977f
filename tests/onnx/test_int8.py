"""A copy of a file in int8: it computes nearly what the file computes, is smaller, and takes the same inputs."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import nn

import l0prune
from l0prune.errors import ConfigError, ExportError, FileFormatError
from l0prune.onnx import int8
from l0prune.onnx.int8 import quantize_onnx, way_of
from l0prune.onnx.onnx_model import OnnxModel


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8")
    torch.manual_seed(0)
    images = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5)
    )
    products = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 5))
    return {
        "static": l0prune.export_onnx(images, torch.randn(2, 3, 8, 8), folder / "images.onnx", dynamic_size=False),
        "dynamic": l0prune.export_onnx(products, torch.randn(2, 32), folder / "products.onnx"),
    }


def inputs_of(path, rows, seed=1):
    shape = [rows, *OnnxModel(path).session.get_inputs()[0].shape[1:]]
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("way", ["static", "dynamic"])
def test_it_computes_nearly_the_same_in_a_third_of_the_bytes_for_any_batch(way, files, tmp_path):
    path = files[way]
    name = OnnxModel(path).input_names[0]

    quantised = quantize_onnx(path, tmp_path / "q.onnx", [{name: inputs_of(path, 64)}] if way == "static" else ())

    x = torch.from_numpy(inputs_of(path, 7, seed=2))
    exact, found = OnnxModel(path)(x), OnnxModel(quantised)(x)
    assert 0 < float((found - exact).abs().max() / exact.abs().max()) < 0.05
    kept = [tensor.data_type for tensor in onnx.load(str(quantised)).graph.initializer if len(tensor.dims) > 1]
    assert set(kept) == {TensorProto.INT8}
    assert way_of(path) == way
    assert OnnxModel(quantised).static_batch is None
    report = l0prune.benchmark({"a": path, "q": quantised}, min_samples=1, min_seconds=0, warmup_s=0, processes=1)
    assert (
        report["a"].n_parameters <= report["q"].n_parameters < 1.1 * report["a"].n_parameters
    )  # and a scale a channel


def test_attention_behind_a_convolution_is_measured_at_each_run(tmp_path):
    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 5)

        def forward(self, x):
            y = self.patches(x).flatten(2).transpose(1, 2)
            return self.head((y @ y.transpose(1, 2)).softmax(-1) @ y)

    path = l0prune.export_onnx(Attending(), torch.randn(2, 3, 16, 16), tmp_path / "net.onnx", dynamic_size=False)

    assert way_of(path) == "dynamic"
    assert OnnxModel(quantize_onnx(path, tmp_path / "q.onnx"))(torch.randn(3, 3, 16, 16)).shape == (3, 16, 5)


def test_what_cannot_be_quantised_is_one_line_and_leaves_nothing(files, tmp_path, monkeypatch):
    out, text = tmp_path / "q.onnx", tmp_path / "text.onnx"
    text.write_text("no model")
    out.write_text("before")

    def fail(*_):
        raise ValueError("onnxruntime\nsays no")

    with pytest.raises(ConfigError, match="convolutions need inputs to calibrate int8 with"):
        quantize_onnx(files["static"], out)
    with pytest.raises(ConfigError, match="way='half': expected one of static, dynamic"):
        quantize_onnx(files["static"], out, way="half")
    with pytest.raises(FileFormatError, match=r"text\.onnx"):
        quantize_onnx(text, out)
    monkeypatch.setattr(int8, "_quantize", fail)
    with pytest.raises(
        ExportError, match=r"products\.onnx: onnxruntime cannot quantise it to int8 \(ValueError: onnxruntime"
    ):
        quantize_onnx(files["dynamic"], out)

    assert out.read_text() == "before"
    assert {file.name for file in tmp_path.iterdir()} == {"q.onnx", "text.onnx"}
