"""No epochs: a criterion chooses, layers recover in closed form, and no step is taken."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from finetuning_case import BUDGET, SmallBatches, accuracy, assert_same_state, gated_net, run, state

import l0prune
from l0prune.errors import ConfigError
from l0prune.finetuning.config import FinetuneConfig

UNTRAINED = FinetuneConfig(epochs=0, align=1)


def unlabelled(n_batches=6):
    return [inputs for inputs, _ in SmallBatches(n_batches)]


@torch.no_grad()
def misses(model):
    """How far a network's outputs are from those of the dense one, in squares."""
    dense, x = gated_net().model, torch.cat(unlabelled(12)[8:])
    return float((model(x) - dense(x)).square().mean())


def test_the_budget_is_met_without_a_step(tmp_path):
    result = run(config=UNTRAINED, evaluate=accuracy, out=tmp_path)

    assert result.steps == 0
    assert result.budget_met
    assert result.method == "magnitude"
    assert [milestone.when for milestone in result.history] == ["freeze", "end"]


def test_layers_that_are_fitted_are_nearer_to_the_dense_network_than_those_that_are_not():
    with_fit, without = (
        run(config=replace(UNTRAINED, closed_form=closed_form)).compact for closed_form in (None, False)
    )

    assert misses(with_fit) < 0.7 * misses(without)


def test_the_compact_network_computes_what_the_gated_one_does():
    double = gated_net().double()
    batches = [(inputs.double(), targets) for inputs, targets in SmallBatches()]

    result = run(double, batches, config=UNTRAINED)

    x = torch.randn(4, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(result.compact(x), result.gated(x), atol=1e-10, rtol=0)
    assert sum(p.numel() for p in result.compact.parameters()) < sum(p.numel() for p in double.parameters())


def test_targets_are_not_needed():
    result = l0prune.finetune(gated_net(), unlabelled(), task="match", budget=BUDGET, config=UNTRAINED)
    without = l0prune.finetune(
        gated_net(), unlabelled(), task="match", budget=BUDGET, config=replace(UNTRAINED, closed_form=False)
    )

    assert result.budget_met
    assert misses(result.compact) < 0.7 * misses(without.compact)


def test_the_same_seed_gives_the_same_network():
    first, again = (run(config=UNTRAINED).compact for _ in range(2))

    assert_same_state(again.state_dict(), first.state_dict())


def test_only_so_many_inputs_are_looked_at():
    config = replace(UNTRAINED, calibration_samples=24, salience_batches=1)
    few = run(batches=list(SmallBatches(2)), config=config)
    many = run(batches=list(SmallBatches(12)), config=config)

    assert_same_state(many.compact.state_dict(), few.compact.state_dict())


def test_a_run_that_trains_may_fit_its_layers_when_it_is_cut():
    config = FinetuneConfig(epochs=1, gate_epochs=0.5, align=1, recovery_lr=1e-6, recalibration_batches=6)
    fitted, cut = (run(config=replace(config, closed_form=closed_form)).compact for closed_form in (True, False))

    assert misses(fitted) < 0.7 * misses(cut)


def test_a_finished_run_without_steps_is_there_after_it_is_loaded(tmp_path):
    done = run(config=UNTRAINED, out=tmp_path)

    again = run(config=UNTRAINED, out=tmp_path, resume=True)

    assert_same_state(state(again.compact), state(done.compact))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "gates"}, "epochs=0 trains no gates, so method=gates cannot choose: give one of bn-scale"),
        ({"gate_epochs": 1.0}, r"longer than the whole run \(epochs=0\)"),
        ({"gate_lr": 0.1}, "method=magnitude trains no gates, so gate_lr has no effect"),
    ],
)
def test_what_needs_steps_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        FinetuneConfig(epochs=0, **options)


def test_a_penalty_is_refused():
    with pytest.raises(ConfigError, match="method=magnitude closes as many units as a budget asks for"):
        l0prune.finetune(
            gated_net(), SmallBatches(), loss=F.cross_entropy, penalty=l0prune.Penalty(1.0), config=UNTRAINED
        )
