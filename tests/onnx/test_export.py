import dataclasses
import logging
import warnings

import onnx
import pytest
import torch
from torch import Tensor, nn

from l0prune.bench.benchmark import benchmark
from l0prune.errors import ConfigError, ExportError, FileFormatError, NoOnnxError, first_line
from l0prune.onnx import job
from l0prune.onnx.export import export_onnx, onnx_difference
from l0prune.onnx.onnx_model import OnnxModel


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


class ScaledNet(ConvNet):
    def forward(self, image: Tensor, scale: Tensor) -> dict[str, Tensor]:
        logits = super().forward(image) * scale
        return {"logits": logits, "probability": logits.softmax(-1)}


@dataclasses.dataclass
class Output:
    logits: Tensor
    loss: Tensor | None = None


class DataclassNet(ConvNet):
    def forward(self, image: Tensor) -> Output:
        return Output(super().forward(image))


class FixedBatchNet(ConvNet):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.view(3, 3, 8, 8))


class NanNet(ConvNet):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * float("nan")


class CompiledDifferently(ConvNet):
    """Another function when it is captured than when it runs: what a wrong export would look like."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1.5 if torch.compiler.is_exporting() else 1.0)


def images(batch: int = 1) -> Tensor:
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(batch))


@pytest.fixture(scope="module")
def conv_file(tmp_path_factory):
    torch.manual_seed(0)
    model = ConvNet()
    return model, export_onnx(model, images(), tmp_path_factory.mktemp("onnx") / "conv.onnx")


def test_an_example_of_one_image_gives_a_file_for_every_batch(conv_file):
    model, path = conv_file
    assert OnnxModel(path).static_batch is None
    for batch in (1, 3, 7):
        assert onnx_difference(path, model, images(batch)).max_rel < 1e-5


def test_the_file_names_its_batch_and_says_nothing_of_this_machine(conv_file):
    _, path = conv_file
    model = onnx.load(path)
    assert model.graph.input[0].name == "x"
    assert model.graph.output[0].name == "output"
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert {entry.key: entry.value for entry in model.metadata_props} == {
        "l0prune.dynamic_batch": "true",
        "l0prune.example.height": "8",
        "l0prune.example.width": "8",
    }
    assert b".py" not in path.read_bytes()


def test_keyword_inputs_and_named_outputs_keep_their_names(tmp_path):
    model = ScaledNet()
    inputs = {"scale": torch.full((2, 1), 3.0), "image": images(2)}
    path = export_onnx(model, inputs, tmp_path / "scaled.onnx")

    loaded = OnnxModel(path)
    assert [node.name for node in loaded.session.get_outputs()] == ["logits", "probability"]
    logits, probability = loaded(**inputs)
    torch.testing.assert_close(probability, logits.softmax(-1))
    assert onnx_difference(path, model, inputs).max_rel < 1e-5


def test_a_dataclass_of_tensors_is_exported_without_its_empty_fields(tmp_path):
    path = export_onnx(DataclassNet(), images(), tmp_path / "dataclass.onnx")
    assert [node.name for node in OnnxModel(path).session.get_outputs()] == ["logits"]


def test_the_module_of_an_exported_program_can_be_exported(tmp_path):
    batch = {0: torch.export.Dim.AUTO}
    captured = torch.export.export(ConvNet().eval(), (images(2),), dynamic_shapes=(batch,)).module()
    assert OnnxModel(export_onnx(captured, images(), tmp_path / "captured.onnx")).static_batch is None


def test_a_model_with_a_fixed_batch_becomes_a_static_file_that_still_serves_any_number_of_rows(tmp_path):
    model = FixedBatchNet()
    path = export_onnx(model, images(3), tmp_path / "static.onnx")

    loaded = OnnxModel(path)
    assert loaded.static_batch == 3
    seven = torch.cat([images(3), images(4)])
    expected = torch.cat([super(FixedBatchNet, model.eval()).forward(row[None]) for row in seven])
    torch.testing.assert_close(loaded(seven), expected)


class WindowAttention(nn.Module):
    """Attention over five dimensions, which the exporter of torch 2.13 cannot translate."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(6, 18), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).reshape(x.shape[0], 4, 3, 3, 2, 3).permute(3, 0, 4, 1, 2, 5).unbind(0)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).permute(0, 2, 3, 1, 4).flatten(3))


def test_what_the_exporter_cannot_translate_goes_by_torchscript(tmp_path):
    model, x = WindowAttention().eval(), torch.randn(2, 12, 6)

    path = export_onnx(model, x, tmp_path / "windows.onnx")

    written = OnnxModel(path)
    assert not written.has_one_path
    assert written.static_batch is None
    assert onnx_difference(path, model, torch.randn(5, 12, 6)).max_rel < 1e-5


class Rotary(nn.Module):
    """Rotary positions as complex factors, as in the code that Llama came with."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, 8)
        angles = torch.outer(torch.arange(16.0), 100.0 ** -torch.linspace(0, 1, 2))
        self.register_buffer("factors", torch.polar(torch.ones_like(angles), angles), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = self.project(x).unflatten(-1, (2, 2, 2))
        turned = torch.view_as_complex(heads) * self.factors[None, : x.shape[1], None]
        return torch.view_as_real(turned).flatten(2)


def test_rotary_positions_in_complex_numbers_are_exported_at_every_length(tmp_path):
    model = Rotary().eval()

    path = export_onnx(model, torch.randn(2, 6, 8), tmp_path / "rotary.onnx")

    for rows, length in ((2, 6), (3, 11)):
        assert onnx_difference(path, model, torch.randn(rows, length, 8)).max_rel < 1e-5


class WindowEigenvalues(WindowAttention):
    """An operation that TorchScript's exporter has no symbol for either."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return y + torch.linalg.eigvalsh(y.transpose(-1, -2) @ y).sum()


def test_where_neither_way_helps_both_reasons_are_given_and_no_graph_is_printed(tmp_path, capfd):
    with pytest.raises(NoOnnxError, match=r": only 4D query.*TorchScript does not help: .*linalg"):
        export_onnx(WindowEigenvalues().eval(), torch.randn(2, 12, 6), tmp_path / "windows.onnx")

    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_a_static_file_is_made_on_request(tmp_path):
    path = export_onnx(ConvNet(), images(2), tmp_path / "static.onnx", dynamic_batch=False)
    assert OnnxModel(path).static_batch == 2


def test_export_is_silent_and_leaves_modes_levels_and_filters_as_they_were(tmp_path, capfd):
    model = ConvNet().train()
    model.norm.eval()
    before = [module.training for module in model.modules()]
    logger = logging.getLogger("torch.onnx")
    level, filters = logger.level, list(warnings.filters)

    export_onnx(model, images(), tmp_path / "quiet.onnx")

    assert [module.training for module in model.modules()] == before
    assert (logger.level, list(warnings.filters)) == (level, filters)
    assert capfd.readouterr() == ("", "")


def test_a_file_that_differs_from_torch_is_refused_with_the_difference_and_nothing_is_written(tmp_path):
    path = tmp_path / "kept.onnx"
    path.write_bytes(b"an older file")
    with pytest.raises(
        ExportError, match=r"kept\.onnx: ONNX and torch outputs differ by .* at output 0 at batch size 1"
    ):
        export_onnx(CompiledDifferently(), images(), path)
    assert [file.name for file in tmp_path.iterdir()] == ["kept.onnx"]
    assert path.read_bytes() == b"an older file"


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (ConvNet(), torch.zeros(1, 4, 8, 8), r"does not run on the example inputs of shapes \[\[1, 4, 8, 8\]\]"),
        (NanNet(), images(), "output 0 holds NaN"),
        (ConvNet().bfloat16(), images().bfloat16(), r"bfloat16.*model\.float\(\)"),
        (ConvNet().double(), images().double(), "onnxruntime cannot run it on this CPU"),
    ],
    ids=["wrong shape", "nan", "bfloat16", "float64 convolution"],
)
def test_what_cannot_be_exported_is_named_and_leaves_nothing_behind(tmp_path, model, inputs, message):
    with pytest.raises(ExportError, match=message):
        export_onnx(model, inputs, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_double_precision_linear_model_is_exact(tmp_path):
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    inputs = torch.randn(3, 6, dtype=torch.float64)
    path = export_onnx(model, inputs, tmp_path / "double.onnx", tolerance=1e-12)
    assert onnx_difference(path, model, inputs).max_rel < 1e-14


def test_weights_too_large_for_one_file_lie_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(job, "_INLINE_BYTES", 0)
    model = ConvNet()
    path = export_onnx(model, images(), tmp_path / "large.onnx")

    assert sorted(file.name for file in tmp_path.iterdir()) == ["large.onnx", "large.onnx.data"]
    assert onnx_difference(path, model, images(2)).max_rel < 1e-5
    timing = benchmark({"large": path}, warmup_s=0.0, min_samples=5, min_seconds=0.0, processes=1)["large"]
    assert timing.file_bytes == sum(file.stat().st_size for file in tmp_path.iterdir())


def test_the_colours_of_a_message_stay_behind():
    assert first_line(RuntimeError("\n\x1b[96mThis is step 3/3\x1b[0m of\n  the export")) == "This is step 3/3 of"


def test_an_operator_set_the_exporter_cannot_write_is_an_error(tmp_path):
    with pytest.raises(ExportError, match="opset 7"):
        export_onnx(nn.Linear(2, 2), torch.zeros(2, 2), tmp_path / "old.onnx", opset=7)


def test_arguments_are_checked_before_the_export(tmp_path):
    with pytest.raises(ConfigError, match=r"directory .* does not exist"):
        export_onnx(ConvNet(), images(), tmp_path / "nowhere" / "model.onnx")
    with pytest.raises(ConfigError, match="tolerance=0"):
        export_onnx(ConvNet(), images(), tmp_path / "model.onnx", tolerance=0)


def test_an_onnx_model_names_what_it_expects(conv_file, tmp_path):
    _, path = conv_file
    loaded = OnnxModel(path)
    with pytest.raises(ConfigError, match=r"expected the inputs x, found 2 positional"):
        loaded(images(), images())
    with pytest.raises(ConfigError, match="expected the inputs x, found 0 positional and y"):
        loaded(y=images())
    with pytest.raises(ConfigError, match="inputs do not fit the model"):
        loaded(torch.zeros(1, 4, 8, 8))
    with pytest.raises(ConfigError, match="no such file"):
        OnnxModel(tmp_path / "missing.onnx")
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(FileFormatError, match="not an ONNX model"):
        OnnxModel(tmp_path / "text.onnx")


def test_the_difference_is_relative_to_the_largest_output(conv_file):
    model, path = conv_file
    inputs = images(2)
    scaled = nn.Sequential(model, Scale(1.25))
    scale = float(scaled.eval()(inputs).detach().abs().max())

    found = onnx_difference(path, scaled, inputs)

    assert found.max_rel == pytest.approx(0.2, rel=1e-4)
    assert found.max_abs == pytest.approx(0.2 * scale, rel=1e-4)


class Scale(nn.Module):
    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor
