"""Concrete variables in logit space, on the simplex, and as logarithms."""

import math

import pytest
import torch
from scipy import integrate

from l0prune.errors import ConfigError
from l0prune.gates.exp_concrete import Concrete, ExpConcrete, conservative_temperature
from l0prune.gates.families.concrete import BinaryConcrete


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.1, 2 / 3, 2.0])
@pytest.mark.parametrize("log_alpha", [-3.0, 0.0, 1.2])
def test_density_is_equation_17(temperature, log_alpha):
    x, a = double(0.01, 0.2, 0.5, 0.7, 0.99), math.exp(log_alpha)
    numerator = temperature * a * x ** (-temperature - 1) * (1 - x) ** (-temperature - 1)
    printed = numerator / (a * x**-temperature + (1 - x) ** -temperature) ** 2
    found = BinaryConcrete(temperature).log_prob(double(log_alpha), x).exp()
    torch.testing.assert_close(found, printed, rtol=1e-12, atol=0)


@pytest.mark.parametrize("temperature", [1 / 40, 2 / 3, 1.5])
def test_density_of_the_logit_integrates_to_one_and_matches_that_of_the_value(temperature):
    gate, log_alpha = BinaryConcrete(temperature), double(0.7)
    total, _ = integrate.quad(
        lambda y: float(gate.logit_log_prob(log_alpha, double(y)).exp()), -60 / temperature, 60 / temperature, limit=400
    )
    assert total == pytest.approx(1.0, abs=1e-7)
    x = double(0.1, 0.5, 0.8)
    in_logits = gate.logit_log_prob(log_alpha, torch.logit(x)) - torch.log(x * (1 - x))
    torch.testing.assert_close(gate.log_prob(log_alpha, x), in_logits)


def test_logits_keep_what_the_value_rounds_away():
    gate = BinaryConcrete(1 / 40)
    log_alpha = torch.full((1000,), 2.0)
    z = gate.rsample(log_alpha, generator=torch.Generator().manual_seed(0))
    logit = gate.logit_rsample(log_alpha, generator=torch.Generator().manual_seed(0))
    assert (z == 1).float().mean() > 0.5
    assert len(logit.unique()) == 1000
    assert torch.isfinite(gate.logit_log_prob(log_alpha, logit)).all()
    torch.testing.assert_close(torch.sigmoid(logit), z)


@pytest.mark.parametrize("temperature", [0.05, 2 / 3, 5.0])
def test_rounding_gives_the_binary_gate_at_every_temperature(temperature):
    gate = BinaryConcrete(temperature)
    log_alpha = double(-4.0, -0.5, 0.0, 1.0, 6.0)
    torch.testing.assert_close(gate.survival(log_alpha, torch.full_like(log_alpha, 0.5)), torch.sigmoid(log_alpha))
    torch.testing.assert_close(gate.prob_open(log_alpha), torch.sigmoid(log_alpha))


# --- n-ary


def test_two_choices_are_the_binary_concrete_variable():
    x = double(0.03, 0.4, 0.9)
    pair = torch.stack([x, 1 - x], dim=-1)
    found = Concrete(0.7).log_prob(double(1.3, 0.4).expand(3, 2), pair)
    torch.testing.assert_close(found, BinaryConcrete(0.7).log_prob(double(0.9), x))


@pytest.mark.parametrize("temperature", [0.5, 2 / 3, 1.0])
def test_density_is_equation_11(temperature):
    x, log_alpha = double(0.2, 0.1, 0.7), double(0.3, -1.0, 0.5)
    a = log_alpha.exp()
    terms = a * x ** (-temperature - 1) / (a * x**-temperature).sum()
    printed = math.factorial(2) * temperature**2 * terms.prod()
    torch.testing.assert_close(Concrete(temperature).log_prob(log_alpha, x).exp(), printed)


def test_density_on_the_simplex_integrates_to_one():
    gate, log_alpha = Concrete(1.0), double(0.3, -0.4, 0.2)

    def density(second, first):
        return float(gate.log_prob(log_alpha, double(first, second, 1 - first - second)).exp())

    total, _ = integrate.dblquad(density, 0, 1, 0, lambda first: 1 - first, epsabs=1e-3, epsrel=1e-3)
    assert total == pytest.approx(1.0, abs=2e-3)


def test_logarithms_have_the_density_of_the_simplex_with_the_jacobian():
    y = torch.log_softmax(double(0.5, -2.0, 1.0, 0.1), dim=-1)
    log_alpha = double(0.0, 1.0, -1.0, 0.5)
    found = ExpConcrete(0.8).log_prob(log_alpha, y)
    torch.testing.assert_close(found, Concrete(0.8).log_prob(log_alpha, y.exp()) + y.sum())


@pytest.mark.parametrize("temperature", [0.1, 1.0, 4.0])
def test_the_largest_component_is_chosen_with_its_probability(temperature):
    """For a fresh seed this fails with probability below 1e-4."""
    n, log_alpha = 60_000, torch.tensor([0.5, -1.0, 1.5, 0.0])
    gate = ExpConcrete(temperature)
    y = gate.rsample(log_alpha.expand(n, 4), generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(y.exp().sum(-1), torch.ones(n))
    shares = torch.bincount(y.argmax(-1), minlength=4) / n
    expected = gate.prob_chosen(log_alpha)
    assert ((shares - expected).abs() < 4.5 * (expected * (1 - expected) / n).sqrt()).all()


def test_samples_pass_gradcheck_in_locations_and_temperature():
    log_alpha = double(0.5, -1.0, 1.5).requires_grad_()
    temperature = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    for family in (Concrete, ExpConcrete):
        assert torch.autograd.gradcheck(
            lambda la, t, f=family: f(t).rsample(la, generator=torch.Generator().manual_seed(0)),
            (log_alpha, temperature),
        )
    y = torch.log_softmax(double(0.1, 0.2, -3.0), -1)
    assert torch.autograd.gradcheck(lambda la, t: ExpConcrete(t).log_prob(la, y), (log_alpha, temperature))


def test_logarithms_stay_finite_in_single_precision():
    log_alpha = torch.tensor([40.0, 0.0, -40.0]).expand(500, 3)
    gate = ExpConcrete(0.1)
    y = gate.rsample(log_alpha, generator=torch.Generator().manual_seed(0))
    assert y.min() < -104  # the exponential of this underflows
    assert torch.isfinite(y).all()
    assert torch.isfinite(gate.log_prob(log_alpha, y)).all()


def test_up_to_the_conservative_temperature_no_mode_is_inside_the_simplex():
    """Log-convexity along a line through the simplex: second differences of the log density are not negative."""
    n = 4
    assert conservative_temperature(n) == pytest.approx(1 / 3)
    line = torch.linspace(0.05, 0.85, 81, dtype=torch.float64)[:, None]
    x = torch.cat([line, (1 - line) * double(0.2, 0.3, 0.5)], dim=-1)

    def curvature(temperature):
        return torch.diff(Concrete(temperature).log_prob(torch.zeros(81, n).double(), x), n=2)

    assert (curvature(conservative_temperature(n)) > 0).all()
    assert (curvature(1.0) < 0).any()


def test_temperature_and_number_of_choices_are_checked():
    for family in (Concrete, ExpConcrete):
        with pytest.raises(ConfigError, match="temperature"):
            family(0.0)
    with pytest.raises(ConfigError, match="2 or more"):
        conservative_temperature(1)
