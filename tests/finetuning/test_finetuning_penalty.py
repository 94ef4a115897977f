"""Whole runs under a fixed penalty: what is cut, what is kept as it is, and that they resume exactly."""

from dataclasses import replace

import pytest
import torch
from finetuning_case import (
    BUDGET,
    QUICK,
    SmallBatches,
    Stopping,
    accuracy,
    assert_same_state,
    dense_net,
    gated_net,
    run,
    state,
    traced,
    untimed,
)

import l0prune
from l0prune.errors import ConfigError
from l0prune.finetuning.freezing import decided_values
from l0prune.finetuning.journal import SilentProgress
from l0prune.finetuning.metrics import read_metrics
from l0prune.finetuning.passes import count_samples
from l0prune.finetuning.settings import resolve
from l0prune.gated.decision import choose_open
from l0prune.gates.registry import gate_names
from l0prune.measuring.alignment import resolve_alignment
from l0prune.model_call import evaluation_mode
from l0prune.tasks.provided.classification import Classification

PENALTY = l0prune.Penalty(0.5)
CONFIG = replace(QUICK, align=None, gate_lr=0.7)
WHOLE = replace(CONFIG, epochs=3, warmup_epochs=0, gate_epochs=3, settle_epochs=0, recalibration_batches=0)


def priced(penalty=PENALTY, **kwargs):
    """A quick run under a penalty."""
    return run(**{"budget": None, "penalty": penalty, "config": CONFIG, **kwargs})


def widths(result) -> list[int]:
    return [result.compact.conv1.out_channels, result.compact.conv2.out_channels]


def trained_open(gated) -> torch.Tensor:
    """Gates that hard concrete's median leaves open, by their locations."""
    return gated.gates.distribution.median(gated.gates.log_alpha.detach()) > 0


def test_exactly_the_gates_that_training_closed_are_cut():
    result = priced()

    is_open = trained_open(result.gated)
    assert 2 <= int(is_open.sum()) < result.gated.n_gates
    assert torch.equal(result.gated.gate_values() != 0, is_open)
    assert sum(widths(result)) == int(is_open.sum()) == result.n_open
    assert result.budget_met


class Watching(SilentProgress):
    """Remembers what a gated model computes when it is decided which gates stay."""

    def __init__(self, gated, x):
        self.gated, self.x, self.before = gated, x, None

    def message(self, text):
        if "gates stay open" in text:
            with torch.no_grad(), evaluation_mode(self.gated):
                self.before = self.gated(self.x)


def test_without_recovery_the_cut_network_computes_what_the_trained_gates_do():
    gated = gated_net()
    watching = Watching(gated, torch.randn(5, 3, 6, 6))

    result = priced(gated=gated, config=WHOLE, progress=watching)

    assert result.steps == 18
    assert sum(widths(result)) < gated.n_gates
    torch.testing.assert_close(result.compact(watching.x), watching.before, atol=1e-5, rtol=1e-5)


def test_open_gates_keep_their_value_however_small():
    gated = gated_net()
    with torch.no_grad():
        gated.gates.log_alpha.fill_(4.0)
        gated.gates.log_alpha[3] = -1.59  # just open: the median is about 0.001
        gated.gates.log_alpha[5] = -1.61  # just closed

    is_open = choose_open(gated, PENALTY, align=1)
    values = decided_values(gated, is_open, QUICK, floored=False)

    assert not is_open[5]
    assert 0 < float(values[3]) < 0.01
    torch.testing.assert_close(values, gated.gate_values(), atol=0, rtol=0)


def test_a_price_that_nothing_is_worth_leaves_one_channel_of_each_layer():
    result = priced(l0prune.Penalty(1e4))

    assert widths(result) == [1, 1]
    assert result.compact(torch.randn(2, 3, 6, 6)).shape == (2, 4)


def test_no_price_cuts_nothing():
    result = priced(l0prune.Penalty(0.0))

    assert widths(result) == [8, 12]


def test_a_layer_with_a_price_of_its_own_is_cut_more():
    cheap, dear = priced(l0prune.Penalty(0.05)), priced(l0prune.Penalty(0.05, {"linear": 300.0}))

    assert widths(dear)[1] < widths(cheap)[1]


def test_widths_are_rounded_up_only_when_asked():
    free, rounded = priced(), priced(config=replace(CONFIG, align=4))

    assert any(width % 4 for width in widths(free))
    assert widths(rounded) == [-(-width // 4) * 4 for width in widths(free)]


@pytest.mark.parametrize("gate", [name for name in gate_names() if name != "exact-k"])
def test_every_family_is_cut_where_it_is_closed(gate):
    gated = l0prune.inject(dense_net(), traced()[1], gate=gate)
    config = replace(WHOLE, epochs=2, gate_epochs=2, recalibration_batches=2)

    result = priced(l0prune.Penalty(1.0, {"linear": 40.0}), gated=gated, config=config)

    x = torch.randn(4, 3, 6, 6)
    assert sum(widths(result)) < 20
    torch.testing.assert_close(result.gated.eval()(x), result.compact(x), atol=1e-5, rtol=1e-5)


def test_a_run_needs_either_a_budget_or_a_penalty():
    with pytest.raises(ConfigError, match=r"budget macs=0\.5 and penalty lambda=0\.5 exclude each other"):
        run(budget=BUDGET, penalty=PENALTY)
    with pytest.raises(ConfigError, match=r"give a budget .* or a penalty"):
        run(budget=None)


def test_a_penalty_on_an_unknown_layer_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match="no gate multiplies the inputs of 'fc9'"):
        priced(l0prune.Penalty(0.1, {"fc9": 1.0}), out=tmp_path / "run")

    assert not (tmp_path / "run").exists()


def test_the_number_of_samples_is_counted():
    assert count_samples(SmallBatches(7, 16), Classification()) == 112

    counted, told = priced(), priced(replace(PENALTY, n_samples=96))

    assert_same_state(state(counted.compact), state(told.compact))


def test_metrics_of_a_penalty_have_costs_but_no_target(tmp_path):
    result = priced(out=tmp_path)

    lines = read_metrics(tmp_path / "metrics.jsonl")
    gate = [line for line in lines if line["phase"] == "gate"]
    assert all(line["target"] is None and line["multiplier"] is None for line in lines)
    assert all(line["expected_cost"] == line["expected_macs"] for line in lines)
    assert gate[-1]["expected_params"] < gate[0]["expected_params"]
    assert gate[0]["loss"] > gate[0]["task_loss"] * (1 - QUICK.distillation)
    assert result.to_json()["penalty"] == "lambda=0.5"
    assert result.to_json()["budget"] is None


# 6 steps an epoch: warm-up ends after 3, the freeze comes after 15, the run ends after 30.
@pytest.mark.parametrize("before_step", [2, 8, 14, 20], ids=lambda step: f"step {step}")
def test_a_resumed_run_ends_as_the_uninterrupted_one(tmp_path, before_step):
    expected = priced(evaluate=accuracy, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        priced(batches=Stopping(before_step), evaluate=accuracy, out=tmp_path / "parts")

    result = priced(evaluate=accuracy, out=tmp_path / "parts", resume=True)

    assert_same_state(state(result.compact), state(expected.compact))
    assert_same_state(state(result.gated), state(expected.gated))
    assert result.to_json() == expected.to_json()
    assert untimed(tmp_path / "parts" / "metrics.jsonl") == untimed(tmp_path / "whole" / "metrics.jsonl")


def test_an_annealed_gate_resumes_at_its_temperature(tmp_path):
    def annealed():
        return l0prune.inject(dense_net(), traced()[1], gate="continuous-sparsification")

    expected = priced(gated=annealed())
    with pytest.raises(KeyboardInterrupt):
        priced(gated=annealed(), batches=Stopping(8), out=tmp_path)

    result = priced(gated=annealed(), out=tmp_path, resume=True)

    assert_same_state(state(result.gated), state(expected.gated))


def test_defaults_follow_the_goal():
    config = l0prune.FinetuneConfig(epochs=10, warmup_epochs=2)

    with_budget, with_penalty = resolve(config, penalised=False), resolve(config, penalised=True)

    assert with_budget.phase_epochs == pytest.approx((2, 0.5, 0, 7.5))
    assert with_budget.align == resolve_alignment("auto")
    assert with_penalty.phase_epochs == pytest.approx((2, 6.4, 0, 1.6))
    assert with_penalty.align == 1
    assert resolve(replace(config, align="auto"), penalised=True).align == with_budget.align
    assert resolve(replace(config, align=8, gate_epochs=5), penalised=True).align == 8
    assert resolve(replace(config, gate_epochs=5), penalised=True).phase_epochs == pytest.approx((2, 5, 0, 3))
