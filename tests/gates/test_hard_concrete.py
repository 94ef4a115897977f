"""Printed vectors of the hard concrete gate, and what it is a case of."""

import pytest
import torch
from gate_examples import CLIPPED

from l0prune.gates.families.concrete import BinaryConcrete
from l0prune.gates.families.hard_concrete import HardConcrete
from l0prune.gates.stretched import StretchedGate

EXAMPLES = {name: gate for name, gate in CLIPPED.items() if isinstance(gate, HardConcrete)}
each_example = pytest.mark.parametrize("gate", EXAMPLES.values(), ids=EXAMPLES.keys())


@each_example
def test_mean_and_variance_agree_with_quadrature_of_the_quantile(gate):
    u = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000
    for log_alpha in torch.tensor([-8.0, -2.4, -0.3, 0.0, 2.0, 5.0], dtype=torch.float64):
        z = gate.icdf(log_alpha, u)
        assert float(gate.mean(log_alpha[None])) == pytest.approx(float(z.mean()), abs=1e-8)
        assert float(gate.variance(log_alpha[None])) == pytest.approx(float(z.var(correction=0)), abs=1e-8)


@each_example
def test_variance_passes_gradcheck(gate):
    log_alpha = torch.tensor([-5.0, -1.2, 0.1, 0.7, 4.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(gate.variance, log_alpha)


@each_example
def test_hard_concrete_is_the_stretched_concrete_gate(gate):
    general = StretchedGate(BinaryConcrete(gate.temperature), stretch=gate.stretch)
    log_alpha = torch.linspace(-6, 6, 25, dtype=torch.float64)
    x = torch.linspace(-0.2, 1.2, 29, dtype=torch.float64)[:, None]
    for function in ("prob_open", "prob_zero", "prob_one", "mean", "median"):
        torch.testing.assert_close(getattr(gate, function)(log_alpha), getattr(general, function)(log_alpha))
    for function in ("cdf", "survival", "log_prob"):
        torch.testing.assert_close(getattr(gate, function)(log_alpha, x), getattr(general, function)(log_alpha, x))
    first, second = (g.rsample(log_alpha, generator=torch.Generator().manual_seed(2)) for g in (gate, general))
    torch.testing.assert_close(first, second)


# log_alpha, P(z=0), P(z=1), P(z!=0), E[z], sd[z], louizos, median (defaults; independent quadrature)

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
