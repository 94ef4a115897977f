"""Rare samples, coarse numbers and far temperatures: nothing becomes NaN, and nothing out of range is accepted."""

import math

import pytest
import torch

import l0prune
from l0prune.errors import ConfigError
from l0prune.gates.exp_concrete import Concrete, ExpConcrete
from l0prune.gates.families import exact_k
from l0prune.gates.families.continuous_sparsification import ContinuousSparsification
from l0prune.gates.families.exact_k import ExactK
from l0prune.gates.families.hard_concrete import HardConcrete
from l0prune.gates.families.mdr_exponential import MdrExponential
from l0prune.gates.families.mdr_exponential_uniform import MdrExponentialUniform
from l0prune.gates.families.mdr_power import MdrPower
from l0prune.gates.numerics import gumbel_noise, random_words
from l0prune.gates.registry import gate_distribution, gate_names
from l0prune.gates.stretched import StretchedGate

HALF = [torch.float16, torch.bfloat16]
EXTREME_WORDS = torch.tensor([-(2**31), -(2**31) + 1, -1, 0, 1, 2**31 - 2, 2**31 - 1], dtype=torch.int32)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_gumbel_noise_is_finite_and_right_for_every_word():
    """In single precision u itself rounds to 1 for one word in 2**25, and -log(-log u) to infinity."""
    found = gumbel_noise(EXTREME_WORDS, torch.float32)
    centred = (EXTREME_WORDS.double() + 0.5) * 2.0**-32
    u = torch.where(centred < 0, -centred, 1 - centred)
    expected = -torch.log(-torch.log1p(u - 1))

    assert found.isfinite().all()
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-5)
    assert float(found.max()) > 20


@pytest.mark.parametrize("relaxed", [False, True])
def test_the_rarest_word_leaves_an_exactly_k_sample_whole(monkeypatch, relaxed):
    monkeypatch.setattr(exact_k, "random_words", lambda like, generator: EXTREME_WORDS.to(like.device))
    log_alpha = torch.zeros(len(EXTREME_WORDS), requires_grad=True)

    z = ExactK(k=3, relaxed=relaxed).rsample(log_alpha)
    (z * torch.arange(7)).sum().backward()

    assert float(z.detach().sum()) == pytest.approx(3, abs=1e-5)
    assert log_alpha.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta", [1.0, 10.0, 20.0, 80.0])
@pytest.mark.parametrize("stretched", [False, True])
def test_power_function_gates_have_finite_slopes_in_both_parameters(dtype, beta, stretched):
    """Most samples of a closed gate underflow; their slope in beta is 0 then, the limit of x log x."""
    temperature = torch.tensor(beta, dtype=torch.float64, requires_grad=True)
    log_alpha = torch.zeros(20_000, dtype=dtype, requires_grad=True)
    gate = MdrPower(temperature)
    sample = (StretchedGate(gate) if stretched else gate).rsample(log_alpha, generator=seeded(0))

    sample.sum().backward()

    assert temperature.grad.isfinite()
    assert log_alpha.grad.isfinite().all()
    assert temperature.grad != 0


def test_the_slope_in_beta_of_a_quantile_that_underflows_is_zero():
    temperature = torch.tensor(80.0, requires_grad=True)

    MdrPower(temperature).icdf(torch.zeros(1), torch.tensor([1e-3])).sum().backward()

    assert float(temperature.grad) == 0.0


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", gate_names())
def test_half_precision_samples_are_the_ones_of_double_precision_rounded(name, dtype):
    gate = gate_distribution(name).at(0.5, lambda: 1000)
    log_alpha = torch.randn(2000, generator=seeded(3)).to(dtype).requires_grad_()

    z = gate.rsample(log_alpha, generator=seeded(0))
    (z.float().sum() + gate.prob_open(log_alpha).float().sum()).backward()

    assert z.dtype == log_alpha.grad.dtype == dtype
    assert log_alpha.grad.isfinite().all()
    expected = gate.rsample(log_alpha.detach().double(), generator=seeded(0))
    assert float((z.detach().double() - expected).abs().mean()) < 0.01


def test_a_network_in_half_precision_keeps_its_gates_working():
    model = torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.ReLU(), torch.nn.Linear(12, 3)).eval()
    gated = l0prune.inject(model, l0prune.trace(model, torch.randn(2, 6))).half().train()

    assert gated(torch.randn(4, 6).half()).isfinite().all()


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])
def test_densities_on_the_simplex_are_finite_at_their_own_samples(n, temperature):
    gate = Concrete(temperature)
    samples = gate.rsample(torch.zeros(50_000, n), generator=seeded(0))

    assert gate.log_prob(torch.zeros(n), samples).isfinite().all()


def test_off_the_simplex_there_is_no_density():
    gate, log_alpha = Concrete(0.5), torch.zeros(3)

    for x in ([0.5, 0.6, 0.2], [-0.5, 0.9, 0.6], [0.2, 0.2, 0.2]):
        assert gate.log_prob(log_alpha, torch.tensor(x)) == -math.inf
    x = torch.tensor([0.5, 0.3, 0.2])
    inside = ExpConcrete(0.5).log_prob(log_alpha, x.log()) - x.log().sum()
    assert float(gate.log_prob(log_alpha, x)) == pytest.approx(float(inside))


@pytest.mark.parametrize("beta", [21.0, 40.0, 80.0])
def test_exponential_gates_at_far_temperatures_have_quantiles_in_single_precision(beta):
    log_alpha = torch.tensor([0.0, 8.0, 30.0, 60.0, -8.0, -30.0, -60.0])[:, None]
    u = torch.tensor([1e-8, 1e-4, 0.3, 0.6, 0.9])
    gate = MdrExponential(beta)

    found = gate.icdf(log_alpha, u)

    assert found.isfinite().all()
    back = gate.cdf(log_alpha.double(), found.double())
    assert float((back - u.double()).abs().max()) < 1e-5


REFUSED = {
    "a leaning the wrong way": (lambda: MdrPower(0.5), "temperature is 0.5; expected 1 or more"),
    "a word": (lambda: HardConcrete("a"), "temperature is 'a'; expected one positive number"),
    "nothing": (lambda: HardConcrete(None), "temperature is None"),
    "a vector": (lambda: HardConcrete(torch.ones(3)), r"temperature is a tensor of shape \(3,\)"),
    "no stretch": (lambda: HardConcrete(stretch=None), "stretch is None"),
    "half a stretch": (lambda: HardConcrete(stretch=(-0.1,)), r"stretch is \(-0.1,\)"),
    "a word for a floor": (lambda: MdrExponentialUniform(floor="a"), "floor is 'a'; expected a number in"),
    "half a gate": (lambda: ExactK(k=1.5), "k is 1.5; expected the number of open gates, a whole number"),
    "the usual number is named": (lambda: MdrExponential(-1.0), "expected a positive number, 11 by default"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_parameter_that_cannot_be_is_a_config_error(case):
    build, message = REFUSED[case]

    with pytest.raises(ConfigError, match=message):
        build()


def test_a_trained_temperature_stays_in_the_graph_while_it_cools():
    temperature = torch.tensor(1.0, requires_grad=True)
    gate = ContinuousSparsification(temperature).at(0.5, lambda: 3)

    gate.mean(torch.ones(3)).sum().backward()

    assert temperature.grad != 0
    assert float(gate.temperature.detach()) == pytest.approx((1 / 20) ** 0.5)


def test_gumbel_noise_has_its_mean_and_variance():
    words = random_words(torch.zeros(100_000), seeded(0))
    noise = gumbel_noise(words, torch.float64)
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.02)
    assert float(noise.var()) == pytest.approx(math.pi**2 / 6, abs=0.03)
