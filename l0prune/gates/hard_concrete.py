"""Hard concrete gates: a binary concrete variable, stretched beyond [0, 1] and clipped, so that 0 and 1 have mass."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from l0prune.errors import ConfigError
from l0prune.gates.distribution import GateDistribution, uniform_noise

__all__ = ["HardConcrete"]

_QUADRATURE_POINTS = 64


@dataclass(frozen=True)
class HardConcrete(GateDistribution):
    """z = clip(s * (zeta - gamma) + gamma, 0, 1) with s = sigmoid((logit u + log_alpha) / beta) and uniform u.

    Attributes:
        temperature: beta > 0; smaller is closer to Bernoulli.
        stretch: (gamma, zeta) with gamma < 0 and zeta > 1.

    Raises:
        ConfigError: if `temperature` is not positive and finite, or `stretch` does not hold [0, 1] in its interior.

    Source: Louizos, Welling, Kingma (2018), arXiv:1712.01312, section 2.2; beta = 2/3 from Maddison, Mnih, Teh (2017),
    arXiv:1611.00712, appendix C.4.
    """

    temperature: float = 2 / 3
    stretch: tuple[float, float] = (-0.1, 1.1)

    name: ClassVar[str] = "hard-concrete"
    initial_log_alpha: ClassVar[float] = 3.0
    estimators: ClassVar[tuple[str, ...]] = ("median", "mean", "louizos")

    def __post_init__(self) -> None:
        """Check both parameters."""
        if not (0 < self.temperature < math.inf):
            raise ConfigError(f"temperature is {self.temperature!r}; expected a positive number, 2/3 by default")
        gamma, zeta = self.stretch
        if not (-math.inf < gamma < 0 and 1 < zeta < math.inf):
            raise ConfigError(
                f"stretch is {self.stretch!r}; expected (gamma, zeta) with gamma < 0 and zeta > 1, "
                "(-0.1, 1.1) by default"
            )

    @property
    def _open_offset(self) -> float:
        """What to add to log_alpha to get logit P(z != 0): -beta log(-gamma / zeta)."""
        gamma, zeta = self.stretch
        return -self.temperature * math.log(-gamma / zeta)

    @property
    def _one_offset(self) -> float:
        """What to add to log_alpha to get logit P(z = 1): -beta log((1 - gamma) / (zeta - 1))."""
        gamma, zeta = self.stretch
        return -self.temperature * math.log((1 - gamma) / (zeta - 1))

    def _stretched(self, s: Tensor) -> Tensor:
        gamma, zeta = self.stretch
        return torch.clamp(s * (zeta - gamma) + gamma, 0.0, 1.0)

    def rsample(self, log_alpha: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """One sample a gate, shape `(n_gates,)`, in [0, 1], exactly 0 or 1 with positive probability.

        The gradient in `log_alpha` is that of the clipped value: zero where the sample is exactly 0 or 1.
        """
        noise = torch.logit(uniform_noise(log_alpha.numel(), generator)).to(log_alpha.device, log_alpha.dtype)
        return self._stretched(torch.sigmoid((log_alpha + noise.view_as(log_alpha)) / self.temperature))

    def prob_open(self, log_alpha: Tensor) -> Tensor:
        """P(z != 0) = sigmoid(log_alpha - beta log(-gamma / zeta)), shape `(n_gates,)`, in (0, 1)."""
        return torch.sigmoid(log_alpha + self._open_offset)

    def prob_zero(self, log_alpha: Tensor) -> Tensor:
        """P(z = 0), shape `(n_gates,)`; accurate also where it is far below the rounding of 1 - P(z != 0)."""
        return torch.sigmoid(-log_alpha - self._open_offset)

    def prob_one(self, log_alpha: Tensor) -> Tensor:
        """P(z = 1) = sigmoid(log_alpha - beta log((1 - gamma) / (zeta - 1))), shape `(n_gates,)`, in (0, 1)."""
        return torch.sigmoid(log_alpha + self._one_offset)

    def mean(self, log_alpha: Tensor) -> Tensor:
        """E[z], shape `(n_gates,)`, in (0, 1), by Gauss-Legendre quadrature of P(z > x) over x in [0, 1].

        The error is below 1e-12 for temperatures up to 1 and below 1e-5 up to 10.
        """
        x, weight = _legendre(log_alpha)
        return self._survival(log_alpha.unsqueeze(-1), x) @ weight

    def variance(self, log_alpha: Tensor) -> Tensor:
        """Var[z], shape `(n_gates,)`, in [0, 1/4]: E[z^2] is the integral of 2 x P(z > x)."""
        x, weight = _legendre(log_alpha)
        survival = self._survival(log_alpha.unsqueeze(-1), x)
        return (survival @ (2 * x * weight) - (survival @ weight).square()).clamp(min=0)

    def cdf(self, log_alpha: Tensor, x: Tensor) -> Tensor:
        """P(z <= x) for any real `x`: 0 below 0, a step of P(z = 0) at 0, and 1 from 1 on."""
        inside = torch.sigmoid(self._logit_cdf(log_alpha, x.clamp(0, 1)))
        return torch.where(x < 0, torch.zeros_like(inside), torch.where(x >= 1, torch.ones_like(inside), inside))

    def icdf(self, log_alpha: Tensor, u: Tensor) -> Tensor:
        """The quantile at `u` in [0, 1]: 0 for u <= P(z = 0), 1 for u >= 1 - P(z = 1)."""
        return self._stretched(torch.sigmoid((torch.logit(u) + log_alpha) / self.temperature))

    def log_prob(self, log_alpha: Tensor, x: Tensor) -> Tensor:
        """Log density on (0, 1), log mass at exactly 0 and 1, -inf outside [0, 1]; safe in both tails."""
        gamma, zeta = self.stretch
        s = (x.clamp(0, 1) - gamma) / (zeta - gamma)
        t = self._logit_cdf(log_alpha, x.clamp(0, 1))
        log_jacobian = math.log(self.temperature / (zeta - gamma)) - torch.log(s) - torch.log1p(-s)
        inside = F.logsigmoid(t) + F.logsigmoid(-t) + log_jacobian
        at_edges = torch.where(
            x == 0, F.logsigmoid(-log_alpha - self._open_offset), F.logsigmoid(log_alpha + self._one_offset)
        )
        value = torch.where((x == 0) | (x == 1), at_edges, inside)
        return torch.where((x < 0) | (x > 1), torch.full_like(value, -math.inf), value)

    def median(self, log_alpha: Tensor) -> Tensor:
        """Median of z: the stretched, clipped sigmoid(log_alpha / beta); 0 exactly where P(z != 0) <= 1/2."""
        return self._stretched(torch.sigmoid(log_alpha / self.temperature))

    def test_value(self, log_alpha: Tensor, *, estimator: str = "median") -> Tensor:
        """The fixed value that stands for the random gate outside training.

        Args:
            log_alpha: locations, shape `(n_gates,)`.
            estimator: `median` (the default) shuts a gate where P(z != 0) <= 1/2, in agreement with the expected cost;
                `mean` is E[z], never exactly 0 or 1; `louizos` is the paper's rule (equation 13), the stretched and
                clipped sigmoid(log_alpha) without the temperature, which shuts a gate only where
                log_alpha <= log(-gamma / zeta), that is P(z != 0) <= 0.31 with the default parameters.

        Returns:
            Shape `(n_gates,)`, in [0, 1].

        Raises:
            ConfigError: for any other estimator.
        """
        if estimator == "louizos":
            return self._stretched(torch.sigmoid(log_alpha))
        return super().test_value(log_alpha, estimator=estimator)

    def _logit_cdf(self, log_alpha: Tensor, x: Tensor) -> Tensor:
        """Logit of P(stretched s <= x), for x in [0, 1]."""
        gamma, zeta = self.stretch
        return self.temperature * (torch.log(x - gamma) - torch.log(zeta - x)) - log_alpha

    def _survival(self, log_alpha: Tensor, x: Tensor) -> Tensor:
        """P(z > x) for x in (0, 1)."""
        return torch.sigmoid(-self._logit_cdf(log_alpha, x))


@lru_cache(maxsize=1)
def _legendre_points() -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes and weights on [0, 1], float64."""
    nodes, weights = np.polynomial.legendre.leggauss(_QUADRATURE_POINTS)
    return (nodes + 1) / 2, weights / 2


def _legendre(like: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights with the dtype and device of `like`."""
    nodes, weights = _legendre_points()
    return (
        torch.as_tensor(nodes, dtype=like.dtype, device=like.device),
        torch.as_tensor(weights, dtype=like.dtype, device=like.device),
    )
