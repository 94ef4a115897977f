"""The demo: every step of it, on a tiny network and on the bundled one, and the table it ends with."""

import json

import pytest
from click.testing import CliRunner

from l0prune.cli import demo
from l0prune.cli.bench import BenchOptions
from l0prune.cli.main import cli
from l0prune.cli.request import FinetuneRequest


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same steps on a network that trains in a second."""
    asked = {"spec": "tiny_task:network", "data": "tiny_task:data", "budget": "macs=0.6", "batch_size": 16, "align": 1}
    monkeypatch.setattr(demo, "REQUEST", FinetuneRequest.asked({**asked, "epochs": 2.0}))
    monkeypatch.setattr(demo, "BENCH", BenchOptions(min_samples=5, min_seconds=0, warmup_s=0, processes=1))


def test_the_demo_takes_a_network_through_every_command(tmp_path, short):
    out = tmp_path / "demo-run"

    result = CliRunner().invoke(cli, ["demo", "--out", str(out)])

    assert result.exit_code == 0, result.stderr
    for command in ("finetune", "shrink", "bench", "eval", "report"):
        assert f"$ l0prune {command}" in result.stderr
    for row in ("accuracy", "parameters", "MACs", "ONNX file, bytes", "latency, ms"):
        assert row in result.stdout
    for column in ("dense", "compact", "ratio"):
        assert column in result.stdout
    assert json.loads((out / "run.json").read_text())["result"]["budget_met"]
    assert (out / "onnx" / "compact.onnx").exists()
    assert (out / "bench.json").exists()


@pytest.mark.slow
def test_the_demo_keeps_most_of_the_accuracy_and_is_twice_as_fast(tmp_path):
    out = tmp_path / "demo-run"

    result = json.loads(CliRunner().invoke(cli, ["demo", "--out", str(out), "--json"]).stdout)

    assert result["accuracy"]["onnx"] > 97
    assert result["macs_after"] <= 0.4 * result["macs_before"]
    assert result["speedup"]["low"] > 1.5
    what_images_have_to_become = json.loads((out / "onnx" / "preprocessing.json").read_text())
    assert what_images_have_to_become["image_size"] == [32, 32]
    assert what_images_have_to_become["mean"] == [0.305]
    assert what_images_have_to_become["std"] == [0.323]
    again = CliRunner().invoke(cli, ["demo", "--out", str(out)])
    assert again.exit_code == 0, again.stderr
