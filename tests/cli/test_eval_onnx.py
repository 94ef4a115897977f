"""`l0prune eval FILE.onnx`: any file scores what the network it came from does."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from command_line import invoke, json_of, refused
from onnx import TensorProto, helper
from tiny_task import data, network
from torch import nn

from l0prune.onnx.int8 import quantize_onnx
from l0prune.sources.preprocessing import Preprocessing

DATA = ["--data", "tiny_task:data"]


def score_of(file: Path, *args: object) -> float:
    found = json_of("eval", file, *DATA, *args)
    return found[found["metric"]]["onnx"]


def plain_export(model: nn.Module, file: Path, batch: int = 2, **how: object) -> Path:
    """By torch's older exporter, which knows nothing of l0prune."""
    torch.onnx.export(
        model.eval(), (torch.zeros(batch, 1, 8, 8),), str(file), dynamo=False, input_names=["pixels"], **how
    )
    return file


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("eval_onnx") / "run"
    images = ["--mean", "0.4", "--std", "0.5"]
    trained = [*images, "--from-scratch", "--epochs", "10", "--batch-size", "16", "--align", "1", "--optimizer", "adam"]
    trained += ["--lr", "0.02", "--recovery-lr", "0.02"]
    result = invoke("finetune", "tiny_task:network", *DATA, "--budget", "macs=0.6", *trained, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert invoke("shrink", out).exit_code == 0
    return out


def accuracy(model: nn.Module) -> float:
    """By hand, pixels divided by 255."""
    arrays = data()
    images = torch.from_numpy(arrays["x_test"]).float().unsqueeze(1) / 255
    with torch.no_grad():
        right = model.eval()(images).argmax(1) == torch.from_numpy(arrays["y_test"])
    return 100 * right.float().mean().item()


def test_the_files_of_a_run_score_what_the_run_says_also_in_int8(run, tmp_path):
    forms = json_of("eval", run)["accuracy"]
    compact = run / "onnx" / "compact.onnx"
    pixels = torch.from_numpy(data()["x_train"])
    static = quantize_onnx(
        compact, tmp_path / "static.onnx", [{"input": Preprocessing((8, 8), (0.4,), (0.5,))(pixels).numpy()}]
    )
    dynamic = quantize_onnx(compact, tmp_path / "dynamic.onnx", way="dynamic")
    shutil.copy(run / "onnx" / "preprocessing.json", tmp_path)

    assert score_of(compact) == forms["onnx"] > 60
    assert score_of(compact, "--batch-size", 7) == forms["onnx"]
    assert score_of(run / "onnx" / "dense.onnx") == pytest.approx(forms["dense"])
    for file in (static, dynamic):
        assert score_of(file) == pytest.approx(forms["onnx"], abs=5)


def test_files_of_another_exporter_score_what_torch_does_with_a_free_and_a_fixed_batch(tmp_path):
    model = network()[0]
    with torch.no_grad():
        model[-1].weight.mul_(20)
    free = plain_export(model, tmp_path / "free.onnx", dynamic_axes={"pixels": {0: "n"}})
    sizes = plain_export(model, tmp_path / "sizes.onnx", dynamic_axes={"pixels": {0: "n", 2: "h", 3: "w"}})
    fixed = plain_export(model, tmp_path / "fixed.onnx", batch=16)
    unnamed = onnx.load(free)
    unnamed.graph.input[0].type.tensor_type.shape.dim[0].ClearField("dim_param")
    onnx.save(unnamed, tmp_path / "unnamed.onnx")

    for file in (free, fixed, tmp_path / "unnamed.onnx"):
        assert score_of(file) == pytest.approx(accuracy(model))
    assert score_of(sizes, "--image-size", 8) == pytest.approx(accuracy(model))
    assert "takes images of any size: say which, with --image-size" in refused("eval", sizes, *DATA)
    assert "takes images of (8, 8) alone; leave out --image-size" in refused("eval", fixed, *DATA, "--image-size", 12)
    assert "takes images of (1, 8, 8), not of (8)" in refused("eval", fixed, *DATA, "--input-shape", "8")
    assert "not of (3, 8, 8)" in refused("eval", fixed, *DATA, "--input-shape", "3,8,8")
    for other in (
        "// settings of an editor",
        '{"image_size": 99, "id2label": {"\u00b2": 1}}',
    ):  # no folder of transformers
        (tmp_path / "config.json").write_text(other, encoding="utf-8")
        assert score_of(free) == pytest.approx(accuracy(model))


class _OfPixels(nn.Module):
    """Takes whole pixels with their channels last, and normalises them itself."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model(pixels.float().permute(0, 3, 1, 2) / 255)


def test_whole_pixels_with_their_channels_last_go_in_as_they_are(tmp_path):
    model = network()[0].eval()
    example = torch.zeros(2, 8, 8, 1, dtype=torch.uint8)
    torch.onnx.export(
        _OfPixels(model),
        (example,),
        str(tmp_path / "pixels.onnx"),
        dynamo=False,
        input_names=["x"],
        dynamic_axes={"x": {0: "n"}},
    )

    assert score_of(tmp_path / "pixels.onnx") == pytest.approx(accuracy(model))
    assert "normalises them itself: leave out --mean" in refused(
        "eval", tmp_path / "pixels.onnx", *DATA, "--mean", "0.5"
    )


def of_numbers(
    file: Path, dtype: int = TensorProto.FLOAT, shape: tuple[object, ...] = ("n", 4), second: bool = False
) -> Path:
    """A file by hand: a product with a fixed matrix, and a second input that is added where asked for."""
    weight = np.random.default_rng(0).normal(size=(4, 3)).astype(helper.tensor_dtype_to_np_dtype(dtype))
    inputs = [helper.make_tensor_value_info("x", dtype, list(shape))]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    if second:
        inputs.append(helper.make_tensor_value_info("z", dtype, ["n", 3]))
        nodes = [helper.make_node("MatMul", ["x", "w"], ["v"]), helper.make_node("Add", ["v", "z"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "by_hand",
        inputs,
        [helper.make_tensor_value_info("y", dtype, ["n", 3])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
    return file


def test_numbers_take_the_precision_of_the_file_and_what_does_not_fit_is_said(tmp_path):
    x = np.random.default_rng(1).normal(size=(30, 4)).astype(np.float32)
    y = np.zeros((30, 3), np.float32)
    np.savez(tmp_path / "numbers.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    numbers = ["--data", f"npz:{tmp_path}/numbers.npz", "--batch-size", "8"]
    single, double = of_numbers(tmp_path / "f.onnx"), of_numbers(tmp_path / "d.onnx", TensorProto.DOUBLE)

    scores = [json_of("eval", file, *numbers)["mse"]["onnx"] for file in (single, double)]

    weight = np.random.default_rng(0).normal(size=(4, 3))
    assert scores == pytest.approx([float(np.square(x @ weight).mean())] * 2)
    two = of_numbers(tmp_path / "two.onnx", second=True)
    assert "takes 2 inputs" in refused("eval", two, *numbers)
    assert "leave out --input-shape" in refused("eval", two, *numbers, "--input-shape", "4")
    open_shape = of_numbers(tmp_path / "open.onnx", shape=("n", "features"))
    assert "leaves 'features' open" in refused("eval", open_shape, *numbers)
    assert json_of("eval", open_shape, *numbers, "--input-shape", "4")["mse"]["onnx"] == pytest.approx(scores[0])
    assert "takes inputs of (4), not of (5)" in refused("eval", single, *numbers, "--input-shape", "5")
    assert "compares with the dense network" in refused("eval", single, *numbers, "--task", "match")
    assert "--weights is for a model that is built" in refused("eval", single, *numbers, "--weights", single)
    assert "no such file" in refused("eval", tmp_path / "nothing.onnx", *numbers)
    assert "is for `l0prune eval` and `l0prune bench`" in refused("inspect", single)
