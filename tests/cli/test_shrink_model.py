"""`l0prune shrink MODEL --out DIR`: a model that is not trained any more, and data without labels."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from tiny_task import data, network

import l0prune
from l0prune.cli.main import cli

MODEL = ["shrink", "tiny_task:network", "--budget", "macs=0.6", "--align", "1", "--batch-size", "32"]


def invoke(*args: object, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, [str(arg) for arg in args])
    assert result.exit_code == code, result.stderr
    return result


@pytest.fixture(scope="module")
def inputs_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training inputs of the task, without targets."""
    path = tmp_path_factory.mktemp("data") / "inputs.npz"
    np.savez(path, x_train=data()["x_train"])
    return path


def test_a_model_is_shrunk_at_once(tmp_path):
    out = tmp_path / "out"

    result = json.loads(invoke(*MODEL, "--data", "tiny_task:data", "--out", out, "--json").stdout)

    assert result["budget_met"]
    assert result["method"] == "magnitude"
    assert result["metric"] == "accuracy"
    assert result["params_after"] < result["params_before"]
    assert result["max_rel_diff"] < 1e-5
    for file in ("run.json", "compact/model.safetensors", "onnx/dense.onnx", "onnx/compact.onnx"):
        assert (out / file).is_file(), file
    assert json.loads((out / "run.json").read_text())["config"]["epochs"] == 0


def test_labels_are_not_needed(tmp_path, inputs_alone):
    out = tmp_path / "out"

    result = json.loads(invoke(*MODEL, "--data", f"npz:{inputs_alone}", "--out", out, "--json").stdout)

    compact = l0prune.load(out / "compact")
    assert result["metric"] == "relative_error"
    assert result["dense"] == 0
    assert 0 < result["final"] < 1
    assert sum(p.numel() for p in compact.parameters()) < sum(p.numel() for p in network()[0].parameters())


def test_an_exported_program_is_shrunk_too(tmp_path, inputs_alone):
    model, example = network()
    program = torch.export.export(
        model.eval(), (example,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False
    )
    torch.export.save(program, tmp_path / "model.pt2")
    command = ["shrink", tmp_path / "model.pt2", *MODEL[2:], "--data", f"npz:{inputs_alone}", "--out", tmp_path / "out"]

    table = invoke(*command).stdout

    assert "relative_error" in table
    assert "macs=0.6" in table
    assert "Verified" in table
    assert (tmp_path / "out" / "compact" / "manifest.json").is_file()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--budget", "macs=0.5", "--out", "OUT"], 2, "--out shrinks a model at once, and --data is missing"),
        (["--data", "npz:DATA", "--out", "OUT"], 2, "--out shrinks a model at once, and --budget is missing"),
        (["--data", "npz:DATA"], 2, "--data is for a model that is shrunk at once, which --out says: it is missing"),
        (
            ["--data", "npz:FEW", "--budget", "macs=0.5", "--out", "OUT"],
            1,
            "x_train has 5 entries and there is no x_test",
        ),
        (["--data", "npz:WRONG", "--budget", "macs=0.5", "--out", "OUT"], 1, "takes (1, 8, 8) of float32"),
        (
            ["--data", "npz:DATA", "--budget", "macs=0.5", "--task", "classification", "--out", "OUT"],
            1,
            "has no targets, which task 'classification' needs",
        ),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_written(tmp_path, inputs_alone, options, code, message):
    np.savez(tmp_path / "few.npz", x_train=np.load(inputs_alone)["x_train"][:5])
    np.savez(tmp_path / "wrong.npz", x_train=np.zeros((40, 3), np.float32))
    paths = {
        "DATA": inputs_alone,
        "FEW": tmp_path / "few.npz",
        "WRONG": tmp_path / "wrong.npz",
        "OUT": tmp_path / "out",
    }
    for name, path in paths.items():
        options = [option.replace(name, str(path)) for option in options]

    said = invoke("shrink", "tiny_task:network", *options, code=code).stderr

    assert message in said
    assert not (tmp_path / "out").exists()
