"""An interrupted run continues to the same result, bit by bit, wherever it was interrupted."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from finetuning_case import QUICK, SmallBatches, Stopping, accuracy, assert_same_state, gated_net, run, state, untimed

import l0prune
from l0prune.errors import CheckpointError
from l0prune.finetuning import preflight
from l0prune.finetuning.checkpoints import load_checkpoint
from l0prune.finetuning.config import FinetuneConfig
from l0prune.finetuning.suited import SuitedOptimizer

CONFIG = replace(QUICK, ema_decay=0.9)


@cache
def uninterrupted():
    """The result of a run in one piece, and its metrics."""
    out = Path(mkdtemp())
    result = run(config=CONFIG, evaluate=accuracy, out=out)
    return result, untimed(out / "metrics.jsonl")


def assert_same_run(result, out):
    """Weights, gates, history and metrics are those of the uninterrupted run."""
    expected, metrics = uninterrupted()
    assert_same_state(state(result.compact), state(expected.compact))
    assert_same_state(state(result.gated), state(expected.gated))
    assert result.to_json() == expected.to_json()
    assert untimed(out / "metrics.jsonl") == metrics


# 6 steps an epoch: warm-up ends after 3, the freeze comes after 15, the run ends after 30.
@pytest.mark.parametrize("before_step", [2, 8, 14, 17, 20, 29], ids=lambda step: f"step {step}")
def test_a_resumed_run_ends_as_the_uninterrupted_one(tmp_path, before_step):
    with pytest.raises(KeyboardInterrupt):
        run(batches=Stopping(before_step), config=CONFIG, evaluate=accuracy, out=tmp_path)

    result = run(config=CONFIG, evaluate=accuracy, out=tmp_path, resume=True)

    assert_same_run(result, tmp_path)


def test_a_run_under_several_budgets_resumes_with_all_multipliers(tmp_path):
    budgets = [l0prune.Budget("params", 0.5), l0prune.Budget("macs", 0.6)]
    whole = run(budget=budgets, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(batches=Stopping(8), budget=budgets, out=tmp_path / "stopped")

    result = run(budget=budgets, out=tmp_path / "stopped", resume=True)

    assert_same_state(state(result.gated), state(whole.gated))
    assert result.to_json() == whole.to_json()
    assert untimed(tmp_path / "stopped" / "metrics.jsonl") == untimed(tmp_path / "whole" / "metrics.jsonl")
    assert result.budget_met
    assert list(result.hard_costs) == ["params", "macs"]
    with pytest.raises(CheckpointError, match=r"budget was 'params=0\.5,macs=0\.6' and is 'params=0\.5'"):
        run(budget=budgets[:1], out=tmp_path / "stopped", resume=True)


def test_a_run_may_be_interrupted_again_and_again(tmp_path):
    for before_step in (7, 13, 19, 26):
        with pytest.raises(KeyboardInterrupt):
            run(batches=Stopping(before_step), config=CONFIG, evaluate=accuracy, out=tmp_path, resume=True)

    assert_same_run(run(config=CONFIG, evaluate=accuracy, out=tmp_path, resume=True), tmp_path)


def test_a_finished_run_is_not_trained_again(tmp_path):
    run(config=CONFIG, evaluate=accuracy, out=tmp_path)

    result = run(batches=Stopping(1), config=CONFIG, evaluate=accuracy, out=tmp_path, resume=True)

    assert_same_run(result, tmp_path)


def test_the_interruption_says_how_to_continue(tmp_path):
    with pytest.raises(KeyboardInterrupt, match=r"checkpoint is in .*checkpoint; resume the run"):
        run(batches=Stopping(8), out=tmp_path)
    with pytest.raises(KeyboardInterrupt, match="before the first checkpoint; start the run again"):
        run(batches=Stopping(3), out=tmp_path / "other")


def test_the_checkpoint_holds_the_dense_shapes_under_the_users_names(tmp_path):
    result = run(config=CONFIG, out=tmp_path)

    checkpoint = load_checkpoint(tmp_path / "checkpoint")

    assert_same_state(checkpoint.model, state(result.gated.model))
    assert_same_state(checkpoint.gates, state(result.gated.gates))
    assert checkpoint.trainer["phase"] == "finished"
    assert checkpoint.trainer["step"] == 30


def interrupted(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(batches=Stopping(8), config=CONFIG, out=tmp_path)


def test_a_run_is_not_resumed_with_other_settings(tmp_path):
    interrupted(tmp_path)

    with pytest.raises(
        CheckpointError, match=r"other settings: epochs was 5 and is 6, lr was 0\.05 and is 0\.1; use the"
    ):
        run(config=replace(CONFIG, epochs=6, lr=0.1), out=tmp_path, resume=True)


BEGAN = FinetuneConfig(
    epochs=5, warmup_epochs=0.5, gate_fraction=0.4, align=1, optimizer="adam", lr=0.01, log_every=3, distillation=0
)


@pytest.mark.parametrize(
    "config",
    [None, replace(BEGAN, optimizer=None, lr=None), replace(BEGAN, gate_fraction=None, align="auto")],
    ids=["all is left open", "the optimizer is", "lengths and alignment are"],
)
def test_what_is_left_open_is_as_it_was_when_the_run_began(tmp_path, config, monkeypatch):
    whole = run(config=BEGAN, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(batches=Stopping(8), config=BEGAN, out=tmp_path / "stopped")
    monkeypatch.setattr(preflight, "suited_optimizer", lambda *_: SuitedOptimizer("adamw", "a later look says so"))

    result = run(config=config, out=tmp_path / "stopped", resume=True)

    assert_same_state(state(result.gated), state(whole.gated))
    assert result.to_json() == whole.to_json()


def test_what_is_asked_for_beside_what_is_left_open_is_still_compared(tmp_path):
    interrupted(tmp_path)

    for asked, named in (
        (FinetuneConfig(lr=0.1), r"epochs was 5 and is 6\.0, log_every was 3 and is 20, lr was 0\.05 and is 0\.1"),
        (replace(CONFIG, warmup_epochs=None, warmup_fraction=0.2), r"warmup_epochs was 0\.5 and is 1\.0"),
        (replace(CONFIG, method="magnitude", settle_epochs=None), "method was 'gates' and is 'magnitude'"),
    ):
        with pytest.raises(CheckpointError, match=named):
            run(config=asked, out=tmp_path, resume=True)


def test_a_run_is_not_resumed_on_other_data(tmp_path):
    interrupted(tmp_path)

    with pytest.raises(CheckpointError, match="steps_per_epoch was 6 and is 7"):
        run(batches=SmallBatches(7), config=CONFIG, out=tmp_path, resume=True)


def test_a_run_is_not_resumed_on_weights_that_were_trained_on(tmp_path):
    gated = gated_net()
    with pytest.raises(KeyboardInterrupt):
        run(gated, batches=Stopping(8), config=CONFIG, out=tmp_path)
    gated.unfreeze()

    with pytest.raises(CheckpointError, match="weights are not those the run began with: load the same checkpoint"):
        run(gated, config=CONFIG, out=tmp_path, resume=True)


KILLED = """
import sys, time
from dataclasses import replace
import torch
torch.set_num_threads(1)
from finetuning_case import QUICK, SmallBatches, accuracy, run

class Slow(SmallBatches):
    def __iter__(self):
        for batch in super().__iter__():
            time.sleep(0.02)
            yield batch

run(batches=Slow(), config=replace(QUICK, ema_decay=0.9), evaluate=accuracy, out=sys.argv[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize("after_epoch", [1, 3], ids=["gate phase", "recovery"])
def test_a_killed_run_is_resumed_to_the_same_result(tmp_path, after_epoch):
    out = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(out)], cwd=Path(__file__).parents[1] / "helpers")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        lines = (out / "metrics.jsonl").read_text().splitlines() if (out / "metrics.jsonl").exists() else []
        if lines and json.loads(lines[-1] if lines[-1].endswith("}") else lines[-2])["step"] > 6 * after_epoch:
            break
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL

    torch.set_num_threads(1)
    assert_same_run(run(config=CONFIG, evaluate=accuracy, out=out, resume=True), out)
