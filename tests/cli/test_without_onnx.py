"""A network that no ONNX file can hold is cut, saved, scored and timed all the same."""

import pytest
import torch
from command_line import json_of, refused

import l0prune
from l0prune.errors import NoOnnxError


@pytest.fixture(autouse=True)
def beyond_onnx(tmp_path, monkeypatch) -> None:
    def refuse(*_, **__):
        raise NoOnnxError("ONNX lacks an operation.")

    monkeypatch.setattr(l0prune, "export_onnx", refuse)
    monkeypatch.setenv("L0PRUNE_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


def test_the_whole_way_without_an_onnx_file():
    budget = ["--budget", "macs=0.6", "--epochs", "0", "--calibration-samples", "16", "--align", "1"]
    json_of("finetune", "tiny_task:network", "--data", "tiny_task:data", *budget, "--out", "run")
    assert "dense.onnx does not exist: run `l0prune shrink" in refused("bench", "run")

    shrunk = json_of("shrink", "run")

    assert shrunk["no_onnx_because"] == "ONNX lacks an operation."
    assert set(shrunk["files"]) == {"compact"}
    compact = l0prune.load("run/compact")
    assert sum(p.numel() for p in compact.parameters()) == shrunk["params_after"] < shrunk["params_before"]
    assert "compact" in json_of("eval", "run")["accuracy"]
    bench = json_of("bench", "run", "--warmup", "0", "--samples", "3", "--min-seconds", "0", "--processes", "1")
    assert bench["runtime"] == f"torch {torch.__version__}"
