"""The folder of a cut model of transformers, from the command line to the command line."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

import l0prune
from l0prune.cli.main import cli

pytestmark = pytest.mark.models

QUICK = ["--data", "digits", "--budget", "macs=0.6", "--epochs", "2", "--align", "1", "--batch-size", "128"]


def invoke(*args: object, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(cli, [str(arg) for arg in args])
    assert result.exit_code == exit_code, result.stderr
    return result


def json_of(*args: object) -> dict:
    return json.loads(invoke(*args, "--json").stdout)


@pytest.fixture(scope="module")
def dense(tmp_path_factory) -> Path:
    """A small ViT for digits, with random weights."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 2}
    config = transformers.ViTConfig(image_size=8, patch_size=2, num_channels=1, num_labels=10, **sizes)
    folder = tmp_path_factory.mktemp("hf") / "dense"
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.25], "image_std": [0.5]}')
    return folder


def test_a_run_writes_it_and_every_command_takes_it(dense, tmp_path):
    run, folder = tmp_path / "run", tmp_path / "cut"
    invoke("finetune", f"hf:{dense}", *QUICK, "--out", run)
    shrunk = json_of("shrink", run, "--hf", folder)

    assert shrunk["files"]["hf"] == str(folder)
    assert (folder / "preprocessor_config.json").exists()
    assert "| accuracy | " in (folder / "README.md").read_text()
    assert "macs=0.6" in (folder / "README.md").read_text()
    loaded = l0prune.hf.from_pretrained(folder)
    assert sum(p.numel() for p in loaded.parameters()) == shrunk["params_after"]
    assert loaded.surgery.costs["macs"] == (shrunk["macs_before"], shrunk["macs_after"])
    scores = [json_of("eval", *what)["accuracy"] for what in ((run,), (f"hf:{folder}", "--data", "digits"))]
    assert scores[1] == {"compact": scores[0]["compact"]}
    verified = json_of("verify", f"hf:{folder}", "--no-onnx")
    assert verified["exact"]
    assert verified["params_before"] == shrunk["params_after"]
    assert "layer" in invoke("inspect", f"hf:{folder}").stdout

    again = tmp_path / "again"
    invoke("finetune", f"hf:{folder}", *QUICK, "--out", again)
    second = json_of("shrink", again, "--hf", tmp_path / "smaller")
    assert second["params_after"] < shrunk["params_after"]
    smaller = l0prune.hf.from_pretrained(tmp_path / "smaller")
    assert smaller.surgery.plan.fingerprint == loaded.surgery.plan.fingerprint
