"""The demo: every step of it, on the bundled network and data, and the table it ends with."""

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from l0prune.cli import demo
from l0prune.cli.bench import BenchOptions
from l0prune.cli.main import cli
from l0prune.finetuning.config import FinetuneConfig
from l0prune.sources.datasets import load_data


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same steps on a fraction of the data, too few to recover."""
    training = FinetuneConfig(epochs=1.0, gate_epochs=0.5, align=16, recalibration_batches=1)
    monkeypatch.setattr(demo, "REQUEST", replace(demo.REQUEST, training=training))
    monkeypatch.setattr(demo, "BENCH", BenchOptions(min_samples=5, min_seconds=0, warmup_s=0, processes=1))
    whole = load_data("digits")
    part = replace(
        whole,
        x_train=whole.x_train[:64],
        y_train=whole.y_train[:64],
        x_test=whole.x_test[:20],
        y_test=whole.y_test[:20],
    )
    monkeypatch.setattr("l0prune.sources.datasets.load_data", lambda *_, **__: part)


def test_the_demo_takes_the_bundled_network_through_every_command(tmp_path, short):
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
    what_images_have_to_become = json.loads((out / "onnx" / "preprocessing.json").read_text())
    assert what_images_have_to_become["image_size"] == [32, 32]
    assert what_images_have_to_become["mean"] == [0.305]
    assert what_images_have_to_become["std"] == [0.323]


@pytest.mark.slow
def test_the_demo_keeps_most_of_the_accuracy_and_is_twice_as_fast(tmp_path):
    out = tmp_path / "demo-run"

    result = json.loads(CliRunner().invoke(cli, ["demo", "--out", str(out), "--json"]).stdout)

    assert result["accuracy"]["onnx"] > 97
    assert result["macs_after"] <= 0.4 * result["macs_before"]
    assert result["speedup"]["low"] > 1.5
    again = CliRunner().invoke(cli, ["demo", "--out", str(out)])
    assert again.exit_code == 0, again.stderr
