"""Gates whose samples are 0 or 1, and the deterministic one that hardens."""

import itertools

import pytest
import torch
from gate_examples import BINARY

from l0prune.errors import ConfigError
from l0prune.gates.binary import StraightThroughGate
from l0prune.gates.families.continuous_sparsification import ContinuousSparsification
from l0prune.gates.families.exact_k import ExactK
from l0prune.gates.families.hard_concrete import HardConcrete

STRAIGHT_THROUGH = {name: gate for name, gate in BINARY.items() if isinstance(gate, StraightThroughGate)}
each_binary = pytest.mark.parametrize("gate", BINARY.values(), ids=BINARY.keys())
each_straight_through = pytest.mark.parametrize("gate", STRAIGHT_THROUGH.values(), ids=STRAIGHT_THROUGH.keys())


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


# --- all of them


@each_binary
def test_samples_are_zero_or_one_and_carry_a_gradient(gate):
    log_alpha = torch.linspace(-3, 3, 13, dtype=torch.float64, requires_grad=True)
    z = gate.rsample(log_alpha, generator=seeded(0))
    assert set(z.tolist()) == {0.0, 1.0}
    (gradient,) = torch.autograd.grad(z @ torch.linspace(1, 2, 13, dtype=torch.float64), log_alpha)
    assert gradient.abs().max() > 1e-3


@each_binary
def test_mass_cdf_and_quantile_are_those_of_a_coin(gate):
    log_alpha = torch.linspace(-3, 3, 13, dtype=torch.float64)
    p = gate.prob_open(log_alpha)
    x = double(-0.5, 0.0, 0.5, 1.0, 2.0)[:, None]
    torch.testing.assert_close(gate.prob_zero(log_alpha) + gate.prob_one(log_alpha), torch.ones_like(p))
    expected = torch.stack([0 * p, 1 - p, 1 - p, 1 + 0 * p, 1 + 0 * p])
    torch.testing.assert_close(gate.cdf(log_alpha, x), expected)
    torch.testing.assert_close(gate.survival(log_alpha, x), 1 - expected)
    mass = gate.log_prob(log_alpha, x).exp()
    torch.testing.assert_close(mass, torch.stack([0 * p, 1 - p, 0 * p, p, 0 * p]))
    assert torch.equal(gate.icdf(log_alpha, 1 - p - 1e-9), torch.zeros_like(p))
    assert torch.equal(gate.icdf(log_alpha, 1 - p + 1e-9), torch.ones_like(p))


@each_binary
def test_open_probability_passes_gradcheck(gate):
    log_alpha = double(-2.0, -1.2, 0.1, 0.7, 1.5, 0.3, -0.4).requires_grad_()
    assert torch.autograd.gradcheck(gate.prob_open, log_alpha)


# --- straight through


@each_straight_through
def test_the_gradient_is_that_of_the_relaxed_sample(gate):
    log_alpha = torch.linspace(-2, 2, 21, dtype=torch.float64, requires_grad=True)
    results = []
    for family in (gate, gate.base):
        z = family.rsample(log_alpha, generator=seeded(3))
        results.append((z.detach(), torch.autograd.grad(z.sum(), log_alpha)[0]))
    (hard, through), (soft, relaxed) = results
    assert torch.equal(hard, (soft > 0.5).double())
    torch.testing.assert_close(through, relaxed)


@each_straight_through
def test_samples_are_open_with_the_stated_probability(gate):
    """For a fresh seed this fails with probability below 1e-4."""
    n = 40_000
    for log_alpha in (-2.0, 0.3):
        z = gate.rsample(torch.full((n,), log_alpha), generator=seeded(1))
        p = float(gate.prob_open(torch.tensor([log_alpha], dtype=torch.float64)))
        assert abs(float(z.mean()) - p) < 4.5 * (p * (1 - p) / n) ** 0.5


def test_straight_through_hard_concrete_is_open_with_the_sigmoid_of_the_location():
    log_alpha = double(-4.0, 0.0, 2.5)
    torch.testing.assert_close(StraightThroughGate(HardConcrete()).prob_open(log_alpha), torch.sigmoid(log_alpha))


# --- exactly k


@pytest.mark.parametrize("k", [0, 1, 7, 19, 20, 25])
def test_every_sample_has_exactly_k_open_gates(k):
    log_alpha = torch.linspace(-8, 8, 20)
    for seed in range(20):
        z = ExactK(k=k).rsample(log_alpha, generator=seeded(seed))
        assert set(z.tolist()) <= {0.0, 1.0}
        assert int(z.sum()) == min(k, 20)
    assert int(ExactK(k=k).test_value(log_alpha).sum()) == min(k, 20)


@pytest.mark.parametrize("temperature", [0.05, 0.5, 3.0])
def test_relaxed_samples_add_up_to_k(temperature):
    gate = ExactK(k=7, temperature=temperature, relaxed=True)
    for seed in range(5):
        z = gate.rsample(torch.linspace(-4, 4, 50, dtype=torch.float64), generator=seeded(seed))
        assert ((z > 0) & (z < 1)).any()
        assert float(z.sum()) == pytest.approx(7, abs=1e-7)


def test_relaxed_samples_pass_gradcheck_in_locations_and_temperature():
    log_alpha = double(-2.0, -1.2, 0.1, 0.7, 1.5, 0.3, -0.4).requires_grad_()
    temperature = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda la, t: ExactK(k=3, temperature=t, relaxed=True).rsample(la, generator=seeded(0)),
        (log_alpha, temperature),
    )


def test_gradients_shift_gates_against_each_other_and_not_their_sum():
    log_alpha = torch.linspace(-2, 2, 30, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(ExactK(k=9).rsample(log_alpha, generator=seeded(0)).sum(), log_alpha)
    assert gradient.abs().max() < 1e-12


def test_equal_gates_are_open_with_equal_probability():
    torch.testing.assert_close(ExactK(k=3).prob_open(torch.full((12,), 0.7).double()), torch.full((12,), 0.25).double())


def test_open_probabilities_are_near_those_of_drawing_without_replacement():
    """Exact probabilities by enumeration of all draws; the approximation is worst for few gates."""
    log_alpha = double(1.5, 0.5, 0.0, -0.3, -1.0, -2.0)
    weights = log_alpha.exp()
    exact = torch.zeros(6, dtype=torch.float64)
    for draw in itertools.permutations(range(6), 3):
        left, probability = weights.sum(), 1.0
        for gate in draw:
            probability, left = probability * weights[gate] / left, left - weights[gate]
        exact[list(draw)] += probability
    found = ExactK(k=3).prob_open(log_alpha)
    assert float(found.sum()) == pytest.approx(3, abs=1e-6)
    assert (found - exact).abs().max() < 0.03


def test_open_probabilities_of_many_gates_are_the_frequencies_of_samples():
    """For a fresh seed this fails with probability below 1e-3; 0.01 is the stated error of the approximation."""
    log_alpha = torch.linspace(-3, 3, 100)
    gate, n = ExactK(k=40), 600
    generator = seeded(2)
    counts = sum(gate.rsample(log_alpha, generator=generator) for _ in range(n)) / n
    p = gate.prob_open(log_alpha)
    assert ((counts - p).abs() < 0.01 + 4.5 * (p * (1 - p) / n).sqrt()).all()


def test_k_follows_what_the_budget_affords():
    gate = ExactK().at(0.3, lambda: 5)
    assert gate.k == 5
    assert int(ExactK().rsample(torch.zeros(9)).sum()) == 9
    with pytest.raises(ConfigError, match="k is -1"):
        ExactK(k=-1)


# --- annealed


def test_the_annealed_gate_hardens_from_sigmoid_to_step():
    log_alpha = double(-2.0, -0.1, 0.1, 2.0)
    gate = ContinuousSparsification()
    torch.testing.assert_close(gate.at(0.0, lambda: 0).rsample(log_alpha), torch.sigmoid(log_alpha))
    torch.testing.assert_close(gate.at(0.5, lambda: 0).rsample(log_alpha), torch.sigmoid(log_alpha * 20**0.5))
    cold = gate.at(1.0, lambda: 0)
    torch.testing.assert_close(cold.rsample(log_alpha), torch.sigmoid(log_alpha * 20))
    for moment in (gate, cold):
        assert moment.test_value(log_alpha).tolist() == [0, 0, 1, 1]


def test_the_annealed_gate_is_a_point_mass():
    gate, log_alpha = ContinuousSparsification(), double(-1.0, 0.5)
    value = gate.rsample(log_alpha)
    assert torch.equal(value, gate.rsample(log_alpha, generator=seeded(1)))
    for same in (gate.mean, gate.median, gate.prob_open):
        assert torch.equal(same(log_alpha), value)
    assert gate.cdf(log_alpha, value - 1e-9).tolist() == [0, 0]
    assert gate.cdf(log_alpha, value).tolist() == [1, 1]
    assert gate.log_prob(log_alpha, value).tolist() == [0, 0]


def test_the_annealed_gate_passes_gradcheck_in_location_and_temperature():
    log_alpha = double(-1.0, 0.5).requires_grad_()
    temperature = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda la, t: ContinuousSparsification(temperature=t).rsample(la), (log_alpha, temperature)
    )
