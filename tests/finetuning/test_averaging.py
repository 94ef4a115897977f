"""The moving average of weights and gates: its formula, and that evaluations, freeze and result are of it."""

import copy
from dataclasses import replace

import pytest
import torch
from finetuning_case import QUICK, SmallBatches, Stopping, accuracy, assert_same_state, gated_net, run, state, untimed
from torch import nn

import l0prune
from l0prune.finetuning.averaging import MovingAverage

DECAY = 0.8
CONFIG = replace(
    QUICK,
    ema_decay=DECAY,
    epochs=3,
    gate_epochs=2.5,
    settle_epochs=0,
    gate_lr=0.7,
    salience_batches=0,
    recalibration_batches=0,
)
PENALTY = l0prune.Penalty(0.5)


def weighted(states: list[torch.Tensor]) -> torch.Tensor:
    """The corrected average, every step with its own weight."""
    t = len(states)
    weights = [DECAY ** (t - i) * (1 - DECAY) / (1 - DECAY**t) for i in range(1, t + 1)]
    assert sum(weights) == pytest.approx(1)
    return sum(weight * value for weight, value in zip(weights, states, strict=True))


class Watched(SmallBatches):
    """Notes weights and gates after every step: at each batch but the first."""

    def __init__(self, gated):
        super().__init__()
        self.gated, self.states = gated, []

    def __iter__(self):
        for index, batch in enumerate(super().__iter__()):
            if index or self.epoch:
                self.states.append(snapshot(self.gated))
            yield batch


def snapshot(gated) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in tensors(gated).items() if tensor.is_floating_point()}


def tensors(gated) -> dict[str, torch.Tensor]:
    return {**gated.model.state_dict(), "log_alpha": gated.gates.log_alpha.detach()}


def averaged_run(**kwargs):
    """A run that notes weights and gates after every step but the last, and what was evaluated."""
    gated, seen = gated_net(), []
    batches = Watched(gated)

    def look(model):
        seen.append(snapshot(model) if isinstance(model, l0prune.GatedModel) else None)
        return 0.0

    arguments = {"budget": None, "penalty": PENALTY, "config": CONFIG, **kwargs}
    result = run(gated, batches=batches, evaluate=look, **arguments)
    return result, batches.states, seen


def assert_average(found, states):
    for name, value in found.items():
        torch.testing.assert_close(value, weighted([state[name] for state in states]), atol=1e-5, rtol=1e-5)


def test_the_average_weighs_every_state_as_the_corrected_formula_says():
    model = nn.Linear(2, 1, bias=False).double()
    average = MovingAverage(model, DECAY)
    values = [torch.randn(1, 2, generator=torch.Generator().manual_seed(seed)).double() for seed in range(7)]

    for count, value in enumerate(values, start=1):
        model.weight.data.copy_(value)
        average.update(model)
        with average.in_place_of(model):
            torch.testing.assert_close(model.weight.data, weighted(values[:count]))
        assert torch.equal(model.weight.data, value)


def test_before_the_first_step_there_is_nothing_to_take():
    model = nn.Linear(2, 1)
    before = state(model)
    average = MovingAverage(model, DECAY)
    nn.init.zeros_(model.weight)

    average.copy_to_(model)

    assert not model.weight.any()
    assert before["weight"].any()


def test_a_moving_average_continues_from_its_state():
    model = nn.BatchNorm1d(3)
    first = MovingAverage(model, decay=0.9)
    first.update(model)
    second = MovingAverage(copy.deepcopy(model), decay=0.9)
    model.weight.data.fill_(5.0)

    second.load_state_dict(first.state_dict())
    for average in (first, second):
        average.update(model)

    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_of_gates_only_the_locations_are_averaged():
    gated = gated_net()
    average = MovingAverage(gated, DECAY)
    gated.freeze(torch.linspace(0, 1, gated.n_gates))
    average.update(gated)
    gated.freeze(torch.ones(gated.n_gates))

    average.copy_to_(gated)

    assert torch.equal(gated.gate_values(), torch.ones(gated.n_gates))


# 6 steps an epoch; gates begin to move after 3.
def test_weights_and_gates_are_evaluated_averaged_from_the_first_step():
    _, states, seen = averaged_run()

    assert_average(seen[0], states[:6])
    assert_average(seen[1], states[:12])
    assert not torch.equal(seen[1]["log_alpha"], states[11]["log_alpha"])


def test_averaging_does_not_touch_the_training():
    _, averaged, _ = averaged_run()
    _, plain, _ = averaged_run(config=replace(CONFIG, ema_decay=None))

    assert len(averaged) == len(plain) == 17
    for one, other in zip(averaged, plain, strict=True):
        assert_same_state(one, other)


def test_the_freeze_decides_by_the_average_and_cuts_it():
    result, states, _ = averaged_run()
    plain, _, _ = averaged_run(config=replace(CONFIG, ema_decay=None))

    log_alpha = result.gated.gates.log_alpha.detach()
    assert not torch.equal(log_alpha, plain.gated.gates.log_alpha)
    every = [*(state["log_alpha"] for state in states), plain.gated.gates.log_alpha.detach()]
    torch.testing.assert_close(log_alpha, weighted(every), atol=1e-5, rtol=1e-5)
    is_open = result.gated.gates.distribution.median(log_alpha) > 0
    assert torch.equal(result.gated.gate_values() != 0, is_open)
    assert int(is_open.sum()) < 20


# The freeze comes after 15 steps, the cut after 18, the end after 30.
@pytest.mark.parametrize("before_step", [8, 14, 17, 26])
@pytest.mark.parametrize("goal", [{"budget": l0prune.Budget("macs", 0.5)}, {"budget": None, "penalty": PENALTY}])
def test_a_resumed_run_has_the_same_averages(tmp_path, goal, before_step):
    config = replace(QUICK, ema_decay=DECAY)
    expected = run(config=config, evaluate=accuracy, out=tmp_path / "whole", **goal)
    with pytest.raises(KeyboardInterrupt):
        run(batches=Stopping(before_step), config=config, evaluate=accuracy, out=tmp_path / "parts", **goal)

    result = run(config=config, evaluate=accuracy, out=tmp_path / "parts", resume=True, **goal)

    assert_same_state(state(result.compact), state(expected.compact))
    assert_same_state(state(result.gated), state(expected.gated))
    assert result.to_json() == expected.to_json()
    assert untimed(tmp_path / "parts" / "metrics.jsonl") == untimed(tmp_path / "whole" / "metrics.jsonl")
