"""What `finetune` refuses, in one line, before anything is trained or written."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from finetuning_case import QUICK, SmallBatches, assert_same_state, gated_net, run, state
from torch import nn

import l0prune
from l0prune.errors import (
    BudgetInfeasibleError,
    CheckpointError,
    ConfigError,
    DataError,
    RunDirectoryError,
    TrainingError,
)


class Shorter(SmallBatches):
    def __iter__(self):
        return iter(list(super().__iter__())[:3])


class WrongChannels(SmallBatches):
    def __iter__(self):
        return ((x[:, :2], y) for x, y in super().__iter__())


class WrongTargets(SmallBatches):
    def __iter__(self):
        return ((x, y + 100) for x, y in super().__iter__())


REFUSED = {
    "an unreachable budget": ({"budget": l0prune.Budget("macs", 0.001)}, BudgetInfeasibleError, "macs"),
    "no batches": ({"batches": SmallBatches(0)}, DataError, "train_batches is empty"),
    "batches for one pass": ({"batches": iter(SmallBatches())}, DataError, "cannot be iterated again and again"),
    "batches that are no pairs": (
        {"batches": [torch.ones(2, 3, 6, 6)]},
        DataError,
        r"expected a pair \(inputs, targets\)",
    ),
    "images of another shape": ({"batches": WrongChannels()}, DataError, r"inputs of shape \(2, 2, 6, 6\)"),
    "targets out of range": (
        {"batches": WrongTargets()},
        DataError,
        r"outputs of shape \(2, 4\) with targets of shape",
    ),
    "a loss per row": (
        {"loss": lambda o, y: F.cross_entropy(o, y, reduction="none")},
        ConfigError,
        r"the loss returned \(2,\): expected a scalar",
    ),
    "half precision without a GPU": (
        {"config": replace(QUICK, mixed_precision="fp16")},
        ConfigError,
        "needs a GPU: choose 'bf16'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_and_changes_nothing(case, tmp_path):
    change, error, named = REFUSED[case]
    gated = gated_net()
    before = state(gated)

    with pytest.raises(error, match=named) as raised:
        run(gated, out=tmp_path / "run", **change)

    assert "\n" not in str(raised.value)
    assert_same_state(state(gated), before)
    assert not (tmp_path / "run").exists()


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path):
    gated = gated_net()
    gated.model.bn2.weight.data[3] = float("nan")

    with pytest.raises(CheckpointError, match=r"'bn2\.weight' holds NaN or infinity before training"):
        run(gated, out=tmp_path / "run")

    assert not (tmp_path / "run").exists()


def test_frozen_gates_are_refused():
    gated = gated_net()
    gated.freeze()

    with pytest.raises(ConfigError, match=r"gates are frozen: call unfreeze"):
        run(gated)


def test_a_model_without_gates_is_refused():
    model = nn.Linear(3, 2).eval()
    gated = l0prune.inject(model, l0prune.trace(model, torch.randn(2, 3)))

    with pytest.raises((ConfigError, BudgetInfeasibleError)):
        run(gated, [(torch.randn(4, 3), torch.zeros(4, dtype=torch.long))])


def test_an_existing_run_is_refused(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')

    with pytest.raises(RunDirectoryError, match="already holds a run: pass resume=True"):
        run(out=tmp_path)

    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'


def test_resuming_needs_a_directory():
    with pytest.raises(RunDirectoryError, match="resume needs `out`"):
        run(resume=True)


def test_a_pass_that_ends_early_is_an_error():
    with pytest.raises(DataError, match="length 6 but its pass number 0 ended after 3 batches"):
        run(batches=Shorter())


class Exploding:
    """A loss that is not a number from one step on; calls that nothing is trained by do not count."""

    def __init__(self, at: int) -> None:
        self.calls, self.at = 0, at

    def __call__(self, outputs, targets):
        self.calls += outputs.requires_grad
        return F.cross_entropy(outputs, targets) * (float("nan") if self.calls > self.at else 1.0)


def test_a_loss_that_is_not_finite_stops_the_run_naming_step_rate_and_remedy(tmp_path):
    unmeasured = replace(QUICK, salience_batches=0)
    with pytest.raises(
        TrainingError, match=r"loss is nan at step 10 \(gate phase, learning rate .*\): lower lr, set grad_c"
    ):
        run(loss=Exploding(9), config=unmeasured, out=tmp_path / "run")

    steps = [line.split(",")[0] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1] == '{"step": 9'
    result = run(config=unmeasured, out=tmp_path / "run", resume=True)
    assert result.budget_met


def test_a_loss_that_is_never_finite_leaves_nothing(tmp_path):
    with pytest.raises(TrainingError, match="at step 1 "):
        run(loss=lambda outputs, targets: (outputs * float("inf")).mean() * 0, out=tmp_path / "run")

    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("phase", ["gate", "settle"])
def test_weights_that_diverged_before_a_loss_was_read_say_what_to_lower(phase, tmp_path):
    lengths = {"warmup_epochs": 0, "gate_epochs": 0.5, "settle_epochs": 0 if phase == "gate" else 0.5}
    rates = {"lr": 1e12} if phase == "gate" else {"recovery_lr": 1e12}
    option = next(iter(rates))

    with pytest.raises(
        TrainingError, match=rf"training diverged: 'model\..*' holds NaN .* lower {option} \(now 1e\+12\)"
    ):
        run(config=replace(QUICK, log_every=50, **lengths, **rates), out=tmp_path / "run")
