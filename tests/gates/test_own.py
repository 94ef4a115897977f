"""A gate that somebody else brings: any `GateDistribution` is trained, frozen and cut like those of the library."""

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import l0prune
from l0prune.errors import ConfigError
from l0prune.gates.distribution import GateDistribution


@dataclass(frozen=True)
class StochasticGate(GateDistribution):
    """z = clip(mu + n, 0, 1) with mu = 1/2 + log_alpha / 8 and normal n (Yamada et al., 2020, arXiv:1810.04247)."""

    sigma: float = 0.5
    name: ClassVar[str] = "stochastic"

    def _mu(self, log_alpha):
        return 0.5 + log_alpha / 8

    def rsample(self, log_alpha, *, generator=None):
        noise = torch.randn(log_alpha.shape, generator=generator, dtype=log_alpha.dtype)
        return (self._mu(log_alpha) + self.sigma * noise).clamp(0, 1)

    def prob_open(self, log_alpha):
        return torch.special.ndtr(self._mu(log_alpha) / self.sigma)

    def prob_one(self, log_alpha):
        return torch.special.ndtr((self._mu(log_alpha) - 1) / self.sigma)

    def mean(self, log_alpha):
        mu, sigma = self._mu(log_alpha), self.sigma
        low, high = -mu / sigma, (1 - mu) / sigma

        def density(x):
            return torch.exp(-0.5 * x.square()) / math.sqrt(2 * math.pi)

        inside = torch.special.ndtr(high) - torch.special.ndtr(low)
        return self.prob_one(log_alpha) + mu * inside + sigma * (density(low) - density(high))

    def cdf(self, log_alpha, x):
        value = torch.special.ndtr((x - self._mu(log_alpha)) / self.sigma)
        return torch.where(x < 0, 0.0, torch.where(x >= 1, 1.0, value))

    def icdf(self, log_alpha, u):
        return (self._mu(log_alpha) + self.sigma * torch.special.ndtri(u)).clamp(0, 1)

    def log_prob(self, log_alpha, x):
        normal = torch.distributions.Normal(self._mu(log_alpha), self.sigma)
        mass = torch.where(x == 0, self.prob_zero(log_alpha), self.prob_one(log_alpha))
        return torch.where(
            (x > 0) & (x < 1), normal.log_prob(x), torch.where((x == 0) | (x == 1), mass.log(), -math.inf)
        )


def gated_by(gate, **arguments):
    """A small network with such gates, half of the MACs as their budget, and inputs."""
    model = nn.Sequential(nn.Linear(8, 24), nn.LayerNorm(24), nn.GELU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 3))
    x = torch.randn(64, 8, dtype=torch.float64)
    flow = l0prune.trace(model.double().eval(), x[:2])
    return l0prune.inject(model, flow, gate=gate, budget=l0prune.Budget("macs", 0.5), steps=100, seed=1, **arguments), x


def test_a_gate_of_ones_own_is_trained_to_the_budget_and_cut():
    gated, x = gated_by(StochasticGate())
    y = (x[:, :3] + x[:, 3:6].abs()).argmax(1)
    optimizer = torch.optim.Adam(gated.train().parameters(), lr=1e-3)
    for _ in range(100):
        optimizer.zero_grad()
        (F.cross_entropy(gated(x), y) + gated.penalty()).backward()
        optimizer.step()
        gated.step()
    assert 0.3 < float(gated.expected_cost().detach()) < 0.6

    compact = l0prune.shrink(gated, align=1)

    assert 0.45 < gated.hard_cost() <= 0.5
    torch.testing.assert_close(compact(x), gated.eval()(x), atol=1e-10, rtol=0)


def test_its_figures_follow_from_what_it_defines():
    gate, at = StochasticGate(), torch.linspace(-6, 6, 7, dtype=torch.float64)
    samples = gate.rsample(at.repeat(200_000, 1), generator=torch.Generator().manual_seed(0))

    torch.testing.assert_close(samples.mean(0), gate.mean(at), atol=5e-3, rtol=0)
    torch.testing.assert_close((samples != 0).double().mean(0), gate.prob_open(at), atol=5e-3, rtol=0)
    assert bool((gate.test_value(at) == gate.icdf(at, torch.full_like(at, 0.5))).all())


@pytest.mark.parametrize(
    ("gate", "arguments", "said"),
    [
        (
            StochasticGate,
            {},
            "gate is the class StochasticGate; expected a name, such as 'hard-concrete', or a GateDistribution object",
        ),
        (3, {}, "gate is a int; expected a name"),
        (
            StochasticGate(),
            {"gate_args": {"sigma": 1}},
            "the gate 'stochastic' is already an object: pass sigma to its class",
        ),
    ],
)
def test_what_is_no_gate_is_refused(gate, arguments, said):
    with pytest.raises(ConfigError, match=said):
        gated_by(gate, **arguments)
