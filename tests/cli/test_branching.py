"""All commands on networks with conditions in their code: what there is no graph of, and what ONNX can hold of it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from branching_task import Branching, branching, guarded, unscriptable
from click.testing import CliRunner
from command_line import json_of
from torch import nn

import l0prune
from l0prune.cli.main import cli
from l0prune.errors import ExportError, FileFormatError, NoOnnxError
from l0prune.onnx.onnx_model import OnnxModel, onnx_difference

FINETUNE = ["--data", "tiny_task:data", "--budget", "macs=0.5", "--epochs", "2", "--batch-size", "16", "--align", "1"]
BENCH = ["--warmup", "0", "--samples", "3", "--min-seconds", "0", "--processes", "1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the network that TorchScript can compile; not shrunk."""
    out = tmp_path_factory.mktemp("branching") / "run"
    json_of("finetune", "branching_task:branching", *FINETUNE, "--out", out)
    return out


@pytest.fixture(scope="module")
def unscriptable_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the other, shrunk."""
    out = tmp_path_factory.mktemp("unscriptable") / "run"
    json_of("finetune", "branching_task:unscriptable", *FINETUNE, "--out", out)
    json_of("shrink", out)
    return out


def test_nothing_recovers_in_closed_form_where_there_is_no_graph_and_nobody_asked_for_it(tmp_path):
    untrained = ["--data", "tiny_task:data", "--budget", "macs=0.5", "--epochs", "0", "--align", "1"]
    command = ["finetune", "branching_task:branching", *untrained]

    result = json_of(*command, "--out", tmp_path / "run")
    said = CliRunner().invoke(cli, [*command, "--out", str(tmp_path / "again")]).stderr
    asked = CliRunner().invoke(cli, [*command, "--closed-form", "--out", str(tmp_path / "asked")])

    assert result["hard_cost"] <= 0.5
    assert not json.loads((tmp_path / "run" / "run.json").read_text())["config"]["closed_form"]
    assert "closed form: none, as that needs the graph of the model, and" in said
    assert "closed_form needs the graph of the model" in asked.stderr


def both_ways(*shape: int) -> list[torch.Tensor]:
    return [torch.randn(*shape) + shift for shift in (1.0, -1.0)]


def test_the_whole_way_with_an_onnx_file_that_has_both_paths(run, tmp_path):
    out = shutil.copytree(run, tmp_path / "run")
    shrunk = json_of("shrink", out)
    scores = json_of("eval", out)["accuracy"]
    bench = json_of("bench", out, *BENCH)
    compact = l0prune.load(out / "compact", base=branching()[0])

    assert shrunk["form"] == "in-place"
    assert shrunk["max_rel_diff"] < 1e-5
    assert shrunk["no_onnx_because"] is None
    assert not shrunk["onnx_holds_one_path"]
    assert shrunk["macs_after"] <= 0.5 * shrunk["macs_before"]
    assert set(scores) == {"dense", "gated", "compact", "onnx"}
    assert scores["onnx"] == scores["compact"]
    assert bench["runtime"].startswith("onnxruntime")
    assert isinstance(compact, Branching)
    for x in both_ways(3, 1, 8, 8):
        assert onnx_difference(out / "onnx" / "compact.onnx", compact, x).max_rel < 1e-5


def test_the_compact_folder_says_that_it_has_no_graph(unscriptable_run):
    folder = unscriptable_run / "compact"
    manifest = json.loads((folder / "manifest.json").read_text())

    assert "data-dependent" in manifest["no_graph_because"]
    assert set(manifest["files"]) == {"model.safetensors", "surgery.json"}
    assert not (folder / "model.pt2").exists()


def test_without_onnx_the_run_is_scored_and_timed_in_torch(unscriptable_run):
    shrunk = json_of("shrink", unscriptable_run)
    scores = json_of("eval", unscriptable_run)["accuracy"]
    bench = json_of("bench", unscriptable_run, *BENCH)
    report = CliRunner().invoke(cli, ["report", str(unscriptable_run)])

    assert "take another path" in shrunk["no_onnx_because"]
    assert shrunk["bytes_after"] is None
    assert set(shrunk["files"]) == {"compact"}
    assert set(scores) == {"dense", "gated", "compact"}
    assert scores["compact"] == scores["gated"]
    assert bench["runtime"] == f"torch {torch.__version__}"
    assert bench["models"]["compact"]["n_parameters"] < bench["models"]["dense"]["n_parameters"]
    assert report.exit_code == 0, report.stderr
    assert "Speedup in torch" in (unscriptable_run / "report.html").read_text()


def test_people_are_told_that_there_is_no_onnx_file(unscriptable_run):
    shrunk = CliRunner().invoke(cli, ["shrink", str(unscriptable_run)])
    bench = CliRunner().invoke(cli, ["bench", str(unscriptable_run), *BENCH])

    assert "No ONNX file: Unscriptable cannot be exported to ONNX" in shrunk.stdout
    assert "no ONNX file can hold this network" in bench.stderr
    assert f"torch {torch.__version__}" in " ".join(bench.stdout.split())


def test_a_missing_graph_is_not_taken_for_one_that_never_was(unscriptable_run, tmp_path):
    folder = shutil.copytree(unscriptable_run / "compact", tmp_path / "compact")
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["no_graph_because"]
    (folder / "manifest.json").write_text(json.dumps(manifest))

    with pytest.raises(FileFormatError, match=r"model\.pt2 is missing"):
        l0prune.load(folder, base=unscriptable()[0])


@pytest.mark.parametrize(("spec", "onnx"), [("branching", True), ("unscriptable", False)])
def test_verify_compares_onnx_where_there_can_be_one(spec, onnx):
    result = json_of("verify", f"branching_task:{spec}")

    assert result["exact"]
    assert result["form"] == "in-place"
    assert (result["onnx_max_rel_diff"] is not None) == onnx


def test_a_path_alone_is_exported_if_no_input_is_found_to_take_another(tmp_path):
    model, x = guarded()

    path = l0prune.export_onnx(model.eval(), x, tmp_path / "model.onnx")

    assert OnnxModel(path).has_one_path
    for other in both_ways(5, 1, 8, 8):
        assert onnx_difference(path, model, other).max_rel < 1e-5


def test_what_no_file_can_hold_is_an_error_that_leaves_nothing_behind(tmp_path):
    model, x = unscriptable()

    with pytest.raises(
        NoOnnxError, match=r"TorchScript does not help: compiled, .*; on the path of the example alone, .*path"
    ):
        l0prune.export_onnx(model.eval(), x, tmp_path / "model.onnx")

    assert not list(tmp_path.iterdir())


def test_no_onnx_is_said_only_of_models_that_torch_export_refuses(tmp_path):
    """A capture that works and a file that is wrong are another matter."""
    model = nn.Sequential(nn.Linear(96, 64), nn.Softmax(1)).eval()  # large enough to differ in the last digits

    with pytest.raises(ExportError) as caught:
        l0prune.export_onnx(model, torch.randn(16, 96), tmp_path / "model.onnx", tolerance=1e-30)

    assert not isinstance(caught.value, NoOnnxError)
