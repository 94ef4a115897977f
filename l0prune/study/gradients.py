"""Gradient variance against the distance from a binary gate: the concrete gate and the mixtures, at q = 1/2."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from l0prune.errors import ConfigError
from l0prune.gates.distribution import GateDistribution
from l0prune.gates.families.concrete import BinaryConcrete
from l0prune.gates.families.mdr_exponential import MdrExponential
from l0prune.gates.families.mdr_exponential_uniform import MdrExponentialUniform
from l0prune.gates.families.mdr_power import MdrPower

__all__ = ["FAMILIES", "Family", "GradientPoint", "gradient_points"]

_BLOCK = 100_000


@dataclass(frozen=True)
class Family:
    """A curve of the study.

    Attributes:
        label: For people.
        betas: The published values; larger is closer to a binary gate.
        gate: The gate at a beta.
    """

    label: str
    betas: tuple[float, ...]
    gate: Callable[[float], GateDistribution]


FAMILIES = {
    # Its published betas only make sense as the inverse of the temperature: so the variances cover the range of the others.
    "concrete": Family("Concrete", (4, 7, 10, 16, 22, 28, 34, 40), lambda beta: BinaryConcrete(1 / beta)),
    "mdr-exponential": Family("exponential", tuple(range(8, 16)), MdrExponential),
    "mdr-exponential-uniform": Family("exponential-uniform", tuple(range(9, 17)), MdrExponentialUniform),
    "mdr-power": Family("power function", tuple(range(10, 90, 10)), MdrPower),
}
"""Families and betas of the published figure."""


@dataclass(frozen=True)
class GradientPoint:
    """One dot of the figure.

    Attributes:
        family: Key of `FAMILIES`.
        beta: Its parameter.
        variance: Of the gradient dz/dq over the samples.
        mean: Of the gradient; 1 for a binary gate.
        distance: Mean of |z - round(z)|, in [0, 1/2].
    """

    family: str
    beta: float
    variance: float
    mean: float
    distance: float

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def gradient_points(samples: int = 1_000_000, *, seed: int = 0) -> Iterator[GradientPoint]:
    """Draw the samples of each point and measure their gradients, in float64.

    Args:
        samples: How many a point, >= 2.
        seed: Of the noise; the points share it.

    Yields:
        32 points, family by family.

    Raises:
        ConfigError: fewer than two samples.

    Source: Huang, Chen, Wu (2020), doi:10.1109/CVPRW50498.2020.00355, supplement A.2 and figure 4.
    """
    if samples < 2:
        raise ConfigError(f"samples is {samples}; a variance needs 2 or more")
    return (
        _measure(name, float(beta), family.gate(beta), samples, seed)
        for name, family in FAMILIES.items()
        for beta in family.betas
    )


def _measure(family: str, beta: float, gate: GateDistribution, samples: int, seed: int) -> GradientPoint:
    generator = torch.Generator().manual_seed(seed)
    sums = torch.zeros(3, dtype=torch.float64)
    for begin in range(0, samples, _BLOCK):
        z, gradient = sample_with_gradient(gate, min(_BLOCK, samples - begin), generator)
        sums += torch.stack([gradient.sum(), gradient.square().sum(), torch.minimum(z, 1 - z).sum()])
    mean, square, distance = (sums / samples).tolist()
    return GradientPoint(family, beta, (square - mean**2) * samples / (samples - 1), mean, distance)


def sample_with_gradient(gate: GateDistribution, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Samples at q = 1/2 and their derivatives in q, each of shape `(n,)`, float64."""
    log_alpha = torch.zeros(n, dtype=torch.float64, requires_grad=True)
    z = gate.rsample(log_alpha, generator=generator)
    (slope,) = torch.autograd.grad(z.sum(), log_alpha)
    return z.detach(), 4 * slope  # dlog_alpha / dq = 1 / (q (1 - q))
