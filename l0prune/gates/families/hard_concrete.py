"""Hard concrete gates: a binary concrete variable, stretched beyond [0, 1] and clipped, so that 0 and 1 have mass."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from l0prune.gates.distribution import GateDistribution, Parameter, as_number, as_scalar, require_positive
from l0prune.gates.numerics import in_blocks, logistic_noise, pathwise, random_words
from l0prune.gates.stretched import require_stretch, unit_legendre

__all__ = ["HardConcrete"]


@dataclass(frozen=True)
class HardConcrete(GateDistribution):
    """z = clip(s * (zeta - gamma) + gamma, 0, 1) with s = sigmoid((logit u + log_alpha) / beta) and uniform u.

    Attributes:
        temperature: beta > 0, a number or a scalar tensor; smaller is closer to Bernoulli.
        stretch: (gamma, zeta) with gamma < 0 and zeta > 1.

    Raises:
        ConfigError: if `temperature` is not positive and finite, or `stretch` does not hold [0, 1] in its interior.

    Source: Louizos, Welling, Kingma (2018), arXiv:1712.01312, section 2.2; beta = 2/3 from Maddison, Mnih, Teh (2017),
    arXiv:1611.00712, appendix C.4.
    """

    temperature: Parameter = 2 / 3
    stretch: tuple[float, float] = (-0.1, 1.1)

    name: ClassVar[str] = "hard-concrete"
    held_below: ClassVar[float] = 300  # longer phases end at their target by themselves
    estimators: ClassVar[tuple[str, ...]] = ("median", "mean", "louizos")

    def __post_init__(self) -> None:
        """Check both parameters."""
        require_positive("temperature", self.temperature, "2/3")
        require_stretch(self.stretch)

    @property
    def _open_offset(self) -> Tensor:
        """What to add to log_alpha to get logit P(z != 0): -beta log(-gamma / zeta)."""
        gamma, zeta = self.stretch
        return -as_scalar(self.temperature) * math.log(-gamma / zeta)

    @property
    def _one_offset(self) -> Tensor:
        """What to add to log_alpha to get logit P(z = 1): -beta log((1 - gamma) / (zeta - 1))."""
        gamma, zeta = self.stretch
        return -as_scalar(self.temperature) * math.log((1 - gamma) / (zeta - 1))

    def _stretched(self, s: Tensor) -> Tensor:
        gamma, zeta = self.stretch
        return torch.clamp(s * (zeta - gamma) + gamma, 0.0, 1.0)

    def rsample(self, log_alpha: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """One sample a gate, shape `(n_gates,)`, in [0, 1], exactly 0 or 1 with positive probability.

        The gradient in `log_alpha` is that of the clipped value: zero where the sample is exactly 0 or 1.
        """
        temperature, (gamma, zeta) = as_scalar(self.temperature), self.stretch
        cold = as_number(self.temperature)

        def sample(location: Tensor, words: Tensor) -> tuple[Tensor, ...]:
            logit = logistic_noise(words, location.dtype).add_(location).div_(cold)
            s = torch.sigmoid(logit)
            stretched = (s * (zeta - gamma)).add_(gamma)
            value = stretched.clamp(0.0, 1.0)
            is_between = (value - value * value).sign_()
            slope = torch.addcmul(s, s, s, value=-1).mul_((zeta - gamma) / cold).mul_(is_between)
            return (value, slope, -slope * logit) if temperature.requires_grad else (value, slope)

        value, *slopes = in_blocks(sample, log_alpha.detach(), random_words(log_alpha, generator))
        return pathwise(value, (log_alpha, temperature), slopes)

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
        x, weight = unit_legendre(log_alpha)
        return self._survival(log_alpha.unsqueeze(-1), x) @ weight

    def variance(self, log_alpha: Tensor) -> Tensor:
        """Var[z], shape `(n_gates,)`, in [0, 1/4]: E[z^2] is the integral of 2 x P(z > x)."""
        x, weight = unit_legendre(log_alpha)
        survival = self._survival(log_alpha.unsqueeze(-1), x)
        return (survival @ (2 * x * weight) - (survival @ weight).square()).clamp(min=0)

    def cdf(self, log_alpha: Tensor, x: Tensor) -> Tensor:
        """P(z <= x) for any real `x`: 0 below 0, a step of P(z = 0) at 0, and 1 from 1 on."""
        inside = torch.sigmoid(self._logit_cdf(log_alpha, x.clamp(0, 1)))
        return torch.where(x < 0, torch.zeros_like(inside), torch.where(x >= 1, torch.ones_like(inside), inside))

    def survival(self, log_alpha: Tensor, x: Tensor) -> Tensor:
        """P(z > x) for any real `x`."""
        above = self._survival(log_alpha, x.clamp(0, 1))
        return torch.where(x < 0, torch.ones_like(above), torch.where(x >= 1, torch.zeros_like(above), above))

    def icdf(self, log_alpha: Tensor, u: Tensor) -> Tensor:
        """The quantile at `u` in [0, 1]: 0 for u <= P(z = 0), 1 for u >= 1 - P(z = 1)."""
        return self._stretched(torch.sigmoid((torch.logit(u) + log_alpha) / as_scalar(self.temperature)))

    def log_prob(self, log_alpha: Tensor, x: Tensor) -> Tensor:
        """Log density on (0, 1), log mass at exactly 0 and 1, -inf outside [0, 1]; safe in both tails."""
        gamma, zeta = self.stretch
        s = (x.clamp(0, 1) - gamma) / (zeta - gamma)
        t = self._logit_cdf(log_alpha, x.clamp(0, 1))
        log_jacobian = torch.log(as_scalar(self.temperature) / (zeta - gamma)) - torch.log(s) - torch.log1p(-s)
        inside = F.logsigmoid(t) + F.logsigmoid(-t) + log_jacobian
        at_edges = torch.where(
            x == 0, F.logsigmoid(-log_alpha - self._open_offset), F.logsigmoid(log_alpha + self._one_offset)
        )
        value = torch.where((x == 0) | (x == 1), at_edges, inside)
        return torch.where((x < 0) | (x > 1), torch.full_like(value, -math.inf), value)

    def median(self, log_alpha: Tensor) -> Tensor:
        """Median of z: the stretched, clipped sigmoid(log_alpha / beta); 0 exactly where P(z != 0) <= 1/2."""
        return self._stretched(torch.sigmoid(log_alpha / as_scalar(self.temperature)))

    def _estimate(self, log_alpha: Tensor, estimator: str) -> Tensor:
        """`median` shuts a gate where P(z != 0) <= 1/2, in agreement with the expected cost; `mean` is never exactly 0.

        `louizos` is the paper's rule (equation 13), the stretched and clipped sigmoid(log_alpha) without the temperature,
        which shuts a gate only where log_alpha <= log(-gamma / zeta), that is P(z != 0) <= 0.31 with the default
        parameters.
        """
        if estimator == "louizos":
            return self._stretched(torch.sigmoid(log_alpha))
        return super()._estimate(log_alpha, estimator)

    def _logit_cdf(self, log_alpha: Tensor, x: Tensor) -> Tensor:
        """Logit of P(stretched s <= x), for x in [0, 1]."""
        gamma, zeta = self.stretch
        return as_scalar(self.temperature) * (torch.log(x - gamma) - torch.log(zeta - x)) - log_alpha

    def _survival(self, log_alpha: Tensor, x: Tensor) -> Tensor:
        """P(z > x) for x in (0, 1)."""
        return torch.sigmoid(-self._logit_cdf(log_alpha, x))
