"""Runs that are stopped from outside: Ctrl-C and kill -9, then `--resume` to the same result."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from finetuning_case import untimed
from safetensors.torch import load_file

from l0prune.cli.main import cli

EPOCHS = 30
FINETUNE = [
    *("finetune", "tiny_task:network", "--data", "tiny_task:data", "--budget", "macs=0.6"),
    *("--epochs", str(EPOCHS), "--batch-size", "16", "--align", "1"),
]
PATIENCE_S = 120


def heed_ctrl_c() -> None:
    """Tests that run in the background inherit an ignored SIGINT; the run must not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(out: Path) -> subprocess.Popen:
    """A run in a process of its own, with a checkpoint on disk."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "helpers"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "l0prune.cli.main", *FINETUNE, "--out", str(out)]
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_ctrl_c,
    )
    deadline = time.monotonic() + PATIENCE_S
    while not (out / "checkpoint" / "trainer.pt").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return process


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run without an interruption."""
    out = tmp_path_factory.mktemp("cli") / "run"
    result = CliRunner().invoke(cli, [*FINETUNE, "--out", str(out)])
    assert result.exit_code == 0, result.stderr
    return out


def resume(out: Path) -> None:
    result = CliRunner().invoke(cli, ["finetune", "--out", str(out), "--resume"])
    assert result.exit_code == 0, result.stderr
    assert "resumed after step" in result.stderr


def assert_same_result(one: Path, other: Path) -> None:
    for name in ("model", "gates", "compact"):
        first, second = (load_file(run / "checkpoint" / f"{name}.safetensors") for run in (one, other))
        assert first.keys() == second.keys()
        for key, tensor in first.items():
            assert tensor.equal(second[key]), f"{name}: {key}"
    assert untimed(one / "metrics.jsonl") == untimed(other / "metrics.jsonl")
    results = [json.loads((run / "run.json").read_text())["result"] for run in (one, other)]
    assert results[0] == results[1]


def test_ctrl_c_says_how_to_go_on_and_the_run_goes_on_to_the_same_result(tmp_path, undisturbed):
    out = tmp_path / "run"
    process = start(out)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=PATIENCE_S)

    assert process.returncode == 130, stderr
    assert stderr.splitlines()[-1] == f"interrupted: continue with `l0prune finetune --out {out} --resume`"
    assert "Traceback" not in stderr
    assert json.loads((out / "run.json").read_text())["status"] == "interrupted"
    resume(out)
    assert_same_result(out, undisturbed)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_result(tmp_path, undisturbed):
    out = tmp_path / "run"
    process = start(out)
    process.kill()
    process.communicate(timeout=PATIENCE_S)

    assert json.loads((out / "run.json").read_text())["status"] == "running"
    resume(out)
    assert_same_result(out, undisturbed)


def test_ctrl_c_before_the_first_checkpoint_leaves_nothing(tmp_path, monkeypatch):
    from l0prune.finetuning import loop

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "train", interrupted)

    result = CliRunner().invoke(cli, [*FINETUNE, "--out", str(tmp_path / "run")])

    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1].startswith("interrupted: before the first checkpoint")
    assert not (tmp_path / "run").exists()
