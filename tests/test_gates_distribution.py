"""Laws that every gate distribution obeys, and the printed vectors of the hard concrete one."""

import math

import pytest
import torch
from scipy import stats

from l0prune.errors import ConfigError
from l0prune.gates.hard_concrete import HardConcrete
from l0prune.gates.registry import gate_distribution, gate_names

# One table of examples; the generic laws below run over all of it.
EXAMPLES = {
    "default": HardConcrete(),
    "colder": HardConcrete(temperature=1 / 3),
    "warmer": HardConcrete(temperature=1.5),
    "lopsided": HardConcrete(temperature=0.5, stretch=(-0.2, 1.05)),
}
LOCATIONS = torch.tensor([-8.0, -4.6, -2.4, -1.6, -0.3, 0.0, 0.85, 2.0, 3.0, 5.0, 8.0], dtype=torch.float64)
INTERIOR = torch.linspace(0.01, 0.99, 25, dtype=torch.float64)

each_example = pytest.mark.parametrize("gate", EXAMPLES.values(), ids=EXAMPLES.keys())


# --- exact laws


@each_example
def test_quantile_inverts_the_cdf_on_the_interior(gate):
    log_alpha = LOCATIONS[1:-1, None]
    recovered = gate.icdf(log_alpha, gate.cdf(log_alpha, INTERIOR[None, :]))
    torch.testing.assert_close(recovered, INTERIOR.expand_as(recovered), atol=1e-9, rtol=0)


@each_example
def test_density_is_the_slope_of_the_cdf(gate):
    x = INTERIOR.clone().requires_grad_()
    for log_alpha in LOCATIONS:
        (slope,) = torch.autograd.grad(gate.cdf(log_alpha, x).sum(), x)
        torch.testing.assert_close(gate.log_prob(log_alpha, x).exp(), slope, atol=0, rtol=1e-9)


@each_example
def test_atoms_and_interior_add_up_to_one(gate):
    nodes = torch.linspace(0, 1, 20001, dtype=torch.float64)[1:-1]
    for log_alpha in LOCATIONS:
        interior = torch.trapezoid(gate.log_prob(log_alpha, nodes).exp(), nodes)
        atoms = gate.log_prob(log_alpha, torch.tensor([0.0, 1.0], dtype=torch.float64)).exp().sum()
        assert float(interior + atoms) == pytest.approx(1.0, abs=2e-3)


@each_example
def test_cdf_jumps_by_the_atoms_and_is_flat_outside(gate):
    at = torch.tensor([-0.5, 0.0, 1.0, 2.0], dtype=torch.float64)
    value = gate.cdf(LOCATIONS[:, None], at[None, :])
    torch.testing.assert_close(value[:, 1], 1 - gate.prob_open(LOCATIONS))
    torch.testing.assert_close(value[:, [0, 2, 3]], torch.tensor([[0.0, 1.0, 1.0]]).double().expand(len(LOCATIONS), 3))
    below_one = gate.cdf(LOCATIONS, torch.full_like(LOCATIONS, 1 - 1e-12))
    torch.testing.assert_close(1 - below_one, gate.prob_one(LOCATIONS), atol=1e-8, rtol=1e-6)


@each_example
def test_mean_and_variance_agree_with_quadrature_of_the_quantile(gate):
    u = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000
    for log_alpha in LOCATIONS:
        z = gate.icdf(log_alpha, u)
        assert float(gate.mean(log_alpha[None])) == pytest.approx(float(z.mean()), abs=1e-8)
        assert float(gate.variance(log_alpha[None])) == pytest.approx(float(z.var(correction=0)), abs=1e-8)


@each_example
def test_median_shuts_exactly_where_open_probability_is_at_most_half(gate):
    log_alpha = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    torch.testing.assert_close(gate.median(log_alpha) > 0, gate.prob_open(log_alpha) > 0.5)
    torch.testing.assert_close(gate.median(log_alpha), gate.icdf(log_alpha, torch.full_like(log_alpha, 0.5)))


@each_example
def test_gradients_pass_gradcheck(gate):
    log_alpha = torch.tensor([-5.0, -1.2, 0.1, 0.7, 4.0], dtype=torch.float64, requires_grad=True)
    x = torch.tensor([0.2, 0.4, 0.5, 0.7, 0.9], dtype=torch.float64)
    for function in (gate.prob_open, gate.prob_one, gate.mean, gate.variance):
        assert torch.autograd.gradcheck(function, log_alpha)
    assert torch.autograd.gradcheck(lambda la: gate.cdf(la, x), log_alpha)
    assert torch.autograd.gradcheck(lambda la: gate.log_prob(la, x), log_alpha)

    def sampled(la):
        return gate.rsample(la, generator=torch.Generator().manual_seed(3))

    assert torch.autograd.gradcheck(sampled, log_alpha)


# --- single precision, extreme locations


@each_example
def test_single_precision_keeps_its_digits_in_both_tails(gate):
    wide = torch.tensor([-60.0, -20.0, -8.0, 8.0, 20.0, 60.0], dtype=torch.float64)
    for function in (gate.prob_open, gate.prob_one, gate.prob_zero, gate.mean):
        torch.testing.assert_close(function(wide.float()).double(), function(wide), rtol=2e-5, atol=0)
    x = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    double = gate.log_prob(wide[:, None], x[None, :])
    torch.testing.assert_close(
        gate.log_prob(wide[:, None].float(), x[None, :].float()).double(), double, rtol=1e-5, atol=1e-5
    )


def test_gradients_are_finite_at_extreme_locations():
    gate = HardConcrete()
    log_alpha = torch.tensor([-1e4, -90.0, 0.0, 90.0, 1e4], requires_grad=True)
    for function in (gate.prob_open, gate.prob_one, gate.mean, gate.median, gate.rsample):
        (gradient,) = torch.autograd.grad(function(log_alpha).sum(), log_alpha)
        assert torch.isfinite(gradient).all()


# --- statistics: seeds are fixed; for a fresh seed each assertion would fail with probability below 1e-5


@each_example
def test_samples_follow_the_distribution(gate):
    n = 40_000
    for index, log_alpha in enumerate([-2.4, 0.0, 1.4]):
        z = gate.rsample(torch.full((n,), log_alpha), generator=torch.Generator().manual_seed(index)).double()
        location = torch.tensor(log_alpha, dtype=torch.float64)
        for observed, probability in (
            ((z == 0).double().mean(), 1 - gate.prob_open(location)),
            ((z == 1).double().mean(), gate.prob_one(location)),
        ):
            sigma = math.sqrt(float(probability * (1 - probability)) / n)
            assert abs(float(observed - probability)) < 4.5 * sigma + 1e-12
        assert abs(float(z.mean() - gate.mean(location[None]))) < 4.5 * float(z.std()) / math.sqrt(n)
        inside = z[(z > 0) & (z < 1)]
        low, high = float(gate.cdf(location, torch.tensor(0.0))), 1 - float(gate.prob_one(location))
        uniform = (gate.cdf(location, inside) - low) / (high - low)
        assert stats.kstest(uniform.numpy(), "uniform").pvalue > 1e-5


def test_sample_gradient_is_an_unbiased_gradient_of_the_mean():
    gate, n = HardConcrete(), 200_000
    log_alpha = torch.full((n,), 0.4, dtype=torch.float64, requires_grad=True)
    z = gate.rsample(log_alpha, generator=torch.Generator().manual_seed(0))
    (per_sample,) = torch.autograd.grad(z.sum(), log_alpha)
    one = torch.tensor([0.4], dtype=torch.float64, requires_grad=True)
    (exact,) = torch.autograd.grad(gate.mean(one).sum(), one)
    assert abs(float(per_sample.mean() - exact)) < 4.5 * float(per_sample.std()) / math.sqrt(n)


# --- golden values: log_alpha, P(z=0), P(z=1), P(z!=0), E[z], sd[z], louizos, median (defaults; independent quadrature)

GOLDEN = """
-4.605170 .952870 .002018 .047130 .013117 .08736 0 0
-2.397895 .689824 .018048 .310176 .102718 .23326 0 0
-1.598597 .500000 .039271 .500000 .194307 .30418 .101813 0
-1 .354665 .069229 .645335 .292946 .35005 .222730 .118911
0 .168178 .168178 .831822 .500000 .38473 .5 .5
.847298 .079739 .320538 .920261 .678118 .35938 .74 .837086
1.386294 .048113 .447123 .951887 .773599 .32179 .86 .966667
2 .026633 .599025 .973367 .857324 .26879 .956956 1
3 .009966 .802406 .990034 .939581 .18301 1 1
4.605170 .002018 .952870 .997982 .986883 .08736 1 1
6 .000501 .987888 .999499 .996697 .04406 1 1
"""


@pytest.mark.parametrize("row", GOLDEN.strip().splitlines())
def test_printed_vectors_are_reproduced(row):
    numbers = [float(word) for word in row.split()]
    log_alpha, gate = torch.tensor(numbers[:1], dtype=torch.float64), HardConcrete()
    found = [
        gate.prob_zero(log_alpha),
        gate.prob_one(log_alpha),
        gate.prob_open(log_alpha),
        gate.mean(log_alpha),
        gate.variance(log_alpha).sqrt(),
        gate.test_value(log_alpha, estimator="louizos"),
        gate.median(log_alpha),
    ]
    digits = [6, 6, 6, 6, 5, 6, 6]
    for value, printed, places in zip(found, numbers[1:], digits, strict=True):
        assert abs(float(value) - printed) <= 0.5000001 * 10**-places + 2e-7


# --- names and messages


def test_registry_builds_what_it_lists():
    for name in gate_names():
        assert gate_distribution(name).name == name


def test_unknown_gate_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"unknown gate 'bernouli'; use one of: hard-concrete"):
        gate_distribution("bernouli")


def test_unknown_estimator_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"unknown test-time estimator 'mode'.*median, mean, louizos"):
        HardConcrete().test_value(torch.zeros(1), estimator="mode")


@pytest.mark.parametrize("stretch", [(0.0, 1.1), (-0.1, 1.0), (-math.inf, 1.1), (math.nan, 1.1)])
def test_stretch_must_hold_the_unit_interval(stretch):
    with pytest.raises(ConfigError, match="stretch"):
        HardConcrete(stretch=stretch)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ConfigError, match="temperature"):
        HardConcrete(temperature=temperature)
