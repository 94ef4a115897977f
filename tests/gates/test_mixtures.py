"""Mixture-distributed gates: printed vectors, implicit gradients, and the erratum of the published derivation."""

from dataclasses import replace

import pytest
import torch
from gate_examples import MIXTURES

from l0prune.errors import ConfigError
from l0prune.gates.families.mdr_exponential import MdrExponential
from l0prune.gates.families.mdr_exponential_uniform import MdrExponentialUniform
from l0prune.gates.families.mdr_power import MdrPower
from l0prune.gates.stretched import StretchedGate

each_mixture = pytest.mark.parametrize("gate", MIXTURES.values(), ids=MIXTURES.keys())
each_family = pytest.mark.parametrize(
    "gate", [MdrExponential(8.0), MdrExponentialUniform(9.0), MdrPower(10.0)], ids=lambda gate: gate.name
)


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def location(q):
    return torch.logit(double(q))


def agrees(found, printed):
    """Whether `found` rounds to the printed digits; the last of them may have been cut off instead."""
    mantissa, _, exponent = printed.lower().partition("e")
    unit = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    return abs(float(found.detach()) - float(printed)) <= 0.51 * unit


QUANTILES = {
    (MdrExponential(8.0), 0.5): ".027869 .086518 .5 .913482 .972131",
    (MdrExponential(8.0), 0.2): ".016684 .046811 .122487 .343531 .913731",
    (MdrExponentialUniform(9.0), 0.5): ".025874616 .08099647 .5 .91900353 .97412538",
    (MdrExponentialUniform(9.0), 0.2): ".015542001 .043837475 .11667273 .36344242 .92182707",
    (MdrPower(10.0), 0.5): "1.0239995e-7 9.746597e-4 .5 .99902534 .9999999",
    (MdrPower(10.0), 0.2): "9.3132257e-10 8.8817211e-6 .009061899 .44894405 .99903098",
}


@pytest.mark.parametrize(("gate", "q"), QUANTILES, ids=str)
def test_printed_quantiles_are_reproduced(gate, q):
    found = gate.icdf(location(q), double(0.1, 0.25, 0.5, 0.75, 0.9))
    for value, printed in zip(found, QUANTILES[gate, q].split(), strict=True):
        assert agrees(value, printed), (value, printed)


GRADIENTS = {
    MdrExponential(8.0): ".0865805 .155936 -.0107597",
    MdrExponentialUniform(9.0): ".0817467 .148644 -.00892418",
    MdrPower(10.0): ".000976086 .0121927 -.000676241",
}


@pytest.mark.parametrize("gate", GRADIENTS, ids=str)
def test_printed_gradients_are_reproduced(gate):
    q, beta = double(0.2).requires_grad_(), torch.tensor(gate.temperature, dtype=torch.float64, requires_grad=True)
    z = replace(gate, temperature=beta).icdf(torch.logit(q), double(0.4))
    found = (z, *torch.autograd.grad(z.sum(), (q, beta)))
    for value, printed in zip(found, GRADIENTS[gate].split(), strict=True):
        assert agrees(value, printed), (value, printed)


STRETCHED = {
    MdrExponential(8.0): 0.34082,
    MdrExponential(15.0): 0.49945,
    MdrExponentialUniform(9.0): 0.35513,
    MdrPower(10.0): 0.54858,
    MdrPower(40.0): 0.65849,
}


@pytest.mark.parametrize("gate", STRETCHED, ids=str)
def test_printed_atoms_of_the_stretched_gates_are_reproduced(gate):
    stretched = StretchedGate(gate, stretch=(-0.1, 1.1))
    assert float(stretched.prob_zero(location(0.3))) == pytest.approx(STRETCHED[gate], abs=5.1e-6)
    assert float(stretched.prob_one(location(0.7))) == pytest.approx(STRETCHED[gate], abs=5.1e-6)


SLOPE_MEANS = {
    MdrExponential(8.0): 0.75067,
    MdrExponential(15.0): 0.86667,
    MdrExponentialUniform(9.0): 0.73912,
    MdrExponentialUniform(16.0): 0.83125,
    MdrPower(10.0): 0.81818,
    MdrPower(80.0): 0.97531,
}


@pytest.mark.parametrize("gate", SLOPE_MEANS, ids=str)
def test_printed_mean_gradients_are_reproduced(gate):
    assert float(gate.q_slope_mean) == pytest.approx(SLOPE_MEANS[gate], abs=5.1e-6)


# --- implicit gradients against finite differences of the quantile

POINTS = [(q, u) for q in (0.2, 0.5, 0.8) for u in (0.15, 0.4, 0.6, 0.85)]


def finite_difference(function, at, step):
    return (function(at + step) - function(at - step)) / (2 * step)


def slopes(gate, q, u):
    """(dz/dq, dz/dbeta) by the implicit function theorem, and by finite differences."""
    weight, beta = double(q).requires_grad_(), torch.tensor(gate.temperature, dtype=torch.float64, requires_grad=True)
    z = replace(gate, temperature=beta).icdf(torch.logit(weight), double(u))
    implicit = tuple(float(part) for part in torch.autograd.grad(z.sum(), (weight, beta)))
    return implicit, (
        finite_difference(lambda v: float(gate.icdf(location(v), double(u))), q, 1e-6),
        finite_difference(
            lambda v: float(replace(gate, temperature=v).icdf(location(q), double(u))), gate.temperature, 1e-5
        ),
    )


@each_mixture
@pytest.mark.parametrize(("q", "u"), POINTS)
def test_implicit_gradients_agree_with_finite_differences(gate, q, u):
    implicit, measured = slopes(gate, q, u)
    assert implicit[0] == pytest.approx(measured[0], rel=1e-5, abs=1e-9)
    assert implicit[1] == pytest.approx(measured[1], rel=1e-5, abs=1e-9)
    assert implicit[0] >= 0


@each_family
@pytest.mark.parametrize(("q", "u"), POINTS)
def test_equation_26_as_printed_gives_another_gradient(gate, q, u):
    """The published equation drops the weights (1 - q) and q before the two derivatives of the components' cdfs."""
    t = torch.logit(gate.icdf(location(q), double(u)))
    density = gate.log_prob(location(q), torch.sigmoid(t)).exp()
    printed = float(-(gate.component_cdf_slope(t) - gate.component_cdf_slope(-t)) / density)
    measured = slopes(gate, q, u)[1][1]

    assert abs(printed - measured) > 0.1 * abs(measured)
    if q == 0.5:
        assert printed == pytest.approx(2 * measured, rel=1e-4)


def test_equation_26_as_printed_is_wrong_by_the_published_factor():
    gate, q, u = MdrExponential(8.0), 0.2, 0.85
    t = torch.logit(gate.icdf(location(q), double(u)))
    density = gate.log_prob(location(q), torch.sigmoid(t)).exp()
    printed = float(-(gate.component_cdf_slope(t) - gate.component_cdf_slope(-t)) / density)

    assert abs(printed) == pytest.approx(0.1024, abs=6e-5)
    assert abs(slopes(gate, q, u)[0][1]) == pytest.approx(0.0194, abs=6e-5)


@each_mixture
def test_quantile_is_differentiable_in_its_level(gate):
    u = double(0.05, 0.2, 0.45, 0.7, 0.97).requires_grad_()
    assert torch.autograd.gradcheck(lambda level: gate.icdf(location(0.4), level), u)


@each_mixture
def test_component_derivative_in_beta_agrees_with_autograd(gate):
    t = torch.linspace(-12, 12, 49, dtype=torch.float64)
    beta = torch.full_like(t, gate.temperature).requires_grad_()
    (slope,) = torch.autograd.grad(
        replace(gate, temperature=2.0).__class__.component_cdf(_At(gate, beta), t).sum(), beta
    )
    torch.testing.assert_close(gate.component_cdf_slope(t), slope, rtol=1e-7, atol=1e-12)


class _At:
    """A gate with a temperature for each element."""

    def __init__(self, gate, temperature):
        self.temperature, self.floor = temperature, getattr(gate, "floor", None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@each_mixture
def test_both_branches_of_the_quantile_keep_the_residual_small(gate, dtype):
    q = torch.tensor([1e-6, 1e-3, 0.1, 0.5, 0.9, 0.999, 1 - 1e-6], dtype=torch.float64)
    log_alpha = torch.logit(q).to(dtype)[:, None]
    u = torch.cat([torch.logspace(-9, -1, 33), torch.linspace(0.1, 0.9, 33)]).to(dtype)
    z = gate.icdf(log_alpha, u)
    residual = gate.cdf(log_alpha, z) / u - 1
    representable = (z > torch.finfo(dtype).tiny) & (z < 0.999)
    assert representable.double().mean() > 0.3
    assert residual[representable].abs().max() < 2000 * torch.finfo(dtype).eps


@each_mixture
def test_quantile_ends_are_zero_and_one(gate):
    ends = gate.icdf(double(-3.0, 0.0, 3.0)[:, None], double(0.0, 1.0))
    assert torch.equal(ends, double(0.0, 1.0).expand(3, 2))


@pytest.mark.parametrize("family", [MdrExponential, MdrExponentialUniform])
def test_exponential_temperature_must_stay_within_single_precision(family):
    with pytest.raises(ConfigError, match="expected at most 80"):
        family(temperature=90.0)


def test_floor_must_be_a_share():
    with pytest.raises(ConfigError, match="floor is 0"):
        MdrExponentialUniform(floor=0.0)
