"""The flat bank of gates: state, seeds, freezing, resuming."""

import copy

import pytest
import torch

from l0prune.errors import ConfigError
from l0prune.gates.bank import GateBank
from l0prune.gates.optimizer import GateOptimizerConfig


def test_gates_of_a_trained_network_start_open():
    bank = GateBank(5000)
    assert bank.log_alpha.mean().item() == pytest.approx(3.0, abs=0.001)
    assert bank.log_alpha.std().item() == pytest.approx(0.01, rel=0.1)
    assert (bank.values() == 1).all()
    assert bank.open_probability().min() > 0.98


def test_equal_seeds_give_equal_gates_and_equal_noise():
    a, b, c = GateBank(64, seed=5), GateBank(64, seed=5), GateBank(64, seed=6)
    assert torch.equal(a.log_alpha, b.log_alpha)
    assert not torch.equal(a.log_alpha, c.log_alpha)
    assert torch.equal(torch.stack([a.sample() for _ in range(3)]), torch.stack([b.sample() for _ in range(3)]))


def test_noise_is_the_same_in_double_and_single_precision():
    a, b = GateBank(200, seed=1, initial=0.0), GateBank(200, seed=1, initial=0.0).double()
    torch.testing.assert_close(a.sample().double(), b.sample(), atol=1e-6, rtol=0)


def test_noise_does_not_touch_the_global_generator():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    GateBank(10).sample()
    assert torch.equal(torch.rand(3), expected)


def test_resuming_continues_with_the_same_noise():
    bank = GateBank(50, seed=2, initial=0.0)
    bank.sample()
    state, rng = copy.deepcopy(bank.state_dict()), bank.get_rng_state()
    expected = [bank.sample() for _ in range(3)]
    resumed = GateBank(50, seed=99)
    resumed.load_state_dict(state, strict=True)
    resumed.set_rng_state(rng)
    assert all(torch.equal(resumed.sample(), z) for z in expected)


def test_training_mode_samples_and_evaluation_mode_does_not():
    bank = GateBank(100, initial=0.0)
    assert not torch.equal(bank(), bank())
    bank.eval()
    assert torch.equal(bank(), bank.values())


def test_frozen_values_survive_the_state_dict():
    bank = GateBank(6)
    bank.freeze(torch.tensor([0, 1, 0.5, 1, 0, 0.25]))
    other = GateBank(6)
    other.load_state_dict(bank.state_dict(), strict=True)
    assert other.frozen
    assert torch.equal(other.sample(), bank.frozen_values)
    assert torch.equal(other.values(), bank.frozen_values)
    other.load_state_dict(GateBank(6).state_dict(), strict=True)
    assert not other.frozen


def test_open_probability_of_frozen_gates_is_zero_or_one():
    bank = GateBank(3)
    bank.freeze(torch.tensor([0.0, 0.5, 1.0]))
    assert torch.equal(bank.open_probability(), torch.tensor([0.0, 1.0, 1.0]))


def test_freezing_without_values_takes_the_trained_decision():
    bank = GateBank(3)
    with torch.no_grad():
        bank.log_alpha.copy_(torch.tensor([-4.0, 0.0, 4.0]))
    bank.freeze()
    assert torch.equal(bank.frozen_values, torch.tensor([0.0, 0.5, 1.0]))
    bank.unfreeze()
    assert torch.equal(bank.log_alpha.detach(), torch.tensor([-4.0, 0.0, 4.0]))
    assert bank.sample().requires_grad


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.ones(4), r"shape \(4,\); expected \(3,\)"),
        (torch.tensor([0.0, 1.5, 0.0]), r"gate 1 has value 1\.5; expected a number in \[0, 1\]"),
        (torch.tensor([0.0, 1.0, torch.nan]), "gate 2 has value nan"),
    ],
)
def test_impossible_frozen_values_are_refused_and_change_nothing(values, message):
    bank = GateBank(3)
    before = copy.deepcopy(bank.state_dict())
    with pytest.raises(ConfigError, match=message):
        bank.freeze(values)
    assert not bank.frozen
    assert all(torch.equal(before[key], value) for key, value in bank.state_dict().items())


def test_clamping_keeps_locations_in_bounds():
    bank = GateBank(3, bound=8.0)
    with torch.no_grad():
        bank.log_alpha.copy_(torch.tensor([-100.0, 1.0, 100.0]))
    bank.clamp_()
    assert bank.log_alpha.tolist() == [-8.0, 1.0, 8.0]


def test_a_bank_without_gates_works():
    bank = GateBank(0)
    optimizer = GateOptimizerConfig().build([bank.log_alpha], steps=10)
    (bank.sample().sum() + bank.open_probability().sum()).backward()
    optimizer.step()
    bank.clamp_()
    bank.freeze()
    assert bank.values().shape == (0,)


def test_a_copied_bank_is_independent():
    bank = GateBank(20, initial=0.0)
    twin = copy.deepcopy(bank)
    assert torch.equal(twin.sample(), bank.sample())
    bank.freeze()
    assert not twin.frozen


@pytest.mark.parametrize("kwargs", [{"n_gates": -1}, {"initial": 9.0}, {"bound": 0.0}, {"jitter": -1.0}])
def test_bank_arguments_out_of_range_are_refused(kwargs):
    with pytest.raises(ConfigError, match="expected"):
        GateBank(**{"n_gates": 2, **kwargs})


@pytest.mark.parametrize(("steps", "expected"), [(1, 0.3), (300, 0.1), (1000, 0.05), (3000, 0.02), (10**6, 0.002)])
def test_gate_learning_rate_follows_the_number_of_steps(steps, expected):
    assert GateOptimizerConfig().learning_rate(steps) == pytest.approx(expected)
    assert GateOptimizerConfig(lr=0.1).learning_rate(steps) == 0.1


@pytest.mark.parametrize("kwargs", [{"lr": 0.0}, {"lr": -1.0}, {"betas": (0.9, 1.0)}])
def test_gate_optimizer_settings_out_of_range_are_refused(kwargs):
    with pytest.raises(ConfigError, match="expected"):
        GateOptimizerConfig(**kwargs)
