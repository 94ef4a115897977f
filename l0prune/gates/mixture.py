"""Mixture-distributed gates: two mirrored densities on (0, 1), one leaning on 0 and one on 1, mixed by a trained weight."""

from abc import abstractmethod
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from l0prune.gates.distribution import (
    AtomlessGate,
    Parameter,
    as_number,
    as_scalar,
    inside,
    outside_is,
    require_positive,
)
from l0prune.gates.numerics import Uniform, in_blocks, pathwise, random_words

__all__ = ["MixtureGate"]


@dataclass(frozen=True)
class MixtureGate(AtomlessGate):
    """z with density (1 - q) r(z) + q r(1 - z), where q = sigmoid(log_alpha) and r is the family's component at 0.

    `prob_open` is q, the probability of the component at 1. Everything is computed from logit z, so that numbers next
    to 0 and next to 1 keep their digits alike.

    Attributes:
        temperature: The papers' beta > 0, a number or a scalar tensor; LARGER is closer to Bernoulli.

    Raises:
        ConfigError: if `temperature` is not positive and finite.

    Source: Huang, Chen, Wu (2020), CVPR workshops, doi:10.1109/CVPRW50498.2020.00355, supplement A and B; components
    from Rolfe (2017), arXiv:1609.02200 (exponential), and Vahdat et al. (2018), arXiv:1805.07445 (the other two).
    """

    temperature: Parameter

    def __post_init__(self) -> None:
        """Check the temperature."""
        require_positive("temperature", self.temperature, f"{self._usual_temperature:g}")

    @property
    def _usual_temperature(self) -> float:
        own: Any = next(field.default for field in fields(self) if field.name == "temperature")
        return float(own)

    @property
    def q_slope_mean(self) -> Tensor:
        """E[dz/dq] = 1 - 2 mu, scalar, where mu is the mean of the component at 0; 1 for a binary gate."""
        return 1 - 2 * self.component_mean()

    @abstractmethod
    def component_mean(self) -> Tensor:
        """Mean of the component at 0, scalar, in (0, 1/2)."""

    @abstractmethod
    def component_cdf(self, t: Tensor) -> Tensor:
        """R(z), the probability that the component at 0 is at most z = sigmoid(t)."""

    @abstractmethod
    def component_survival(self, t: Tensor) -> Tensor:
        """1 - R(z) for z = sigmoid(t), accurate where it is small."""

    @abstractmethod
    def component_log_prob(self, t: Tensor) -> Tensor:
        """Log density of the component at 0 in z (not in t), at z = sigmoid(t)."""

    @abstractmethod
    def component_cdf_slope(self, t: Tensor) -> Tensor:
        """Derivative of R(z) in the temperature, at fixed z = sigmoid(t)."""

    @abstractmethod
    def lower_quantile(self, q: Tensor, p: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The quantile where it is at most 1/2, and what its slopes are made of.

        Args:
            q: Weight of the component at 1.
            p: 1 - q.
            u: In (0, cdf(1/2)], shape of q.

        Returns:
            x in (0, 1/2] with cdf(x) = u; R(x) - R1(x), where R1 is the cdf of the component at 1; the density at x.
        """

    def rsample(self, log_alpha: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """One sample a gate, shape `(n_gates,)`, in [0, 1]; 0 and 1 only by rounding.

        The sample is the quantile of a uniform number. Its slopes in q and in the temperature come from the implicit
        function theorem (equations 16 and 27), so that nothing is differentiated through a root search.
        """
        temperature = as_scalar(self.temperature)

        def sample(location: Tensor, words: Tensor) -> tuple[Tensor, ...]:
            quantile = self._quantile(location, Uniform.of_words(words, location.dtype))
            found = (quantile.value, quantile.slope())
            return (*found, self._cooling(quantile)) if temperature.requires_grad else found

        with torch.no_grad():
            value, *slopes = in_blocks(sample, log_alpha.detach(), random_words(log_alpha, generator))
        return pathwise(value, (log_alpha, temperature), slopes)

    def mean(self, log_alpha: Tensor) -> Tensor:
        """E[z] = (1 - q) mu + q (1 - mu), shape `(n_gates,)`, in (0, 1)."""
        mu = self.component_mean().to(log_alpha.dtype)
        return torch.sigmoid(-log_alpha) * mu + torch.sigmoid(log_alpha) * (1 - mu)

    def cdf(self, log_alpha: Tensor, x: Tensor) -> Tensor:
        """P(z <= x) for any real `x`."""
        value = self._cdf(log_alpha, torch.logit(inside(x)))
        return outside_is(value, x, below=0.0, above=1.0)

    def survival(self, log_alpha: Tensor, x: Tensor) -> Tensor:
        """P(z > x) for any real `x`."""
        value = self._cdf(-log_alpha, -torch.logit(inside(x)))
        return outside_is(value, x, below=1.0, above=0.0)

    def log_prob(self, log_alpha: Tensor, x: Tensor) -> Tensor:
        """Log density on (0, 1), -inf elsewhere."""
        value = self._log_density(log_alpha, torch.logit(inside(x)))
        return torch.where((x > 0) & (x < 1), value, torch.full_like(value, -torch.inf))

    def icdf(self, log_alpha: Tensor, u: Tensor) -> Tensor:
        """The quantile at `u` in [0, 1], differentiable in `log_alpha`, the temperature and `u`."""
        location, level = torch.broadcast_tensors(log_alpha, u)
        with torch.no_grad():
            quantile = self._quantile(location, Uniform.of_levels(level))
            value = outside_is(quantile.value, level, below=0.0, above=1.0)
            slopes = (quantile.slope(), self._cooling(quantile), 1 / quantile.density)
        return pathwise(value, (location, as_scalar(self.temperature), level), slopes)

    def _cdf(self, log_alpha: Tensor, t: Tensor) -> Tensor:
        """P(z <= sigmoid(t)): a sum of positive terms; 1 - cdf is the same with both signs turned."""
        closed = torch.sigmoid(-log_alpha) * self.component_cdf(t)
        return closed + torch.sigmoid(log_alpha) * self.component_survival(-t)

    def _log_density(self, log_alpha: Tensor, t: Tensor) -> Tensor:
        closed = torch.nn.functional.logsigmoid(-log_alpha) + self.component_log_prob(t)
        return torch.logaddexp(closed, torch.nn.functional.logsigmoid(log_alpha) + self.component_log_prob(-t))

    def _quantile(self, log_alpha: Tensor, level: Uniform) -> "_Quantile":
        """The quantile at `level`; above the centre that of the mirrored mixture, so that searches end in (0, 1/2]."""
        q, p = torch.sigmoid(log_alpha), torch.sigmoid(-log_alpha)
        near_half = as_number(self.component_cdf(torch.zeros((), dtype=torch.float64)))
        excess = level.lower.sub_(1 - near_half).sub_(p, alpha=2 * near_half - 1)
        mirrored = torch.full_like(q, 0.5).copysign_(excess).add_(0.5)
        q, p = torch.lerp(q, p, mirrored), torch.lerp(p, q, mirrored)
        u = level.seen_from(mirrored).clamp_(min=torch.finfo(q.dtype).tiny)
        return _Quantile(q, p, mirrored, *self.lower_quantile(q, p, u))

    def _cooling(self, quantile: "_Quantile") -> Tensor:
        """Derivative of the quantile in the temperature (equation 27)."""
        t = torch.log(quantile.x) - torch.log1p(-quantile.x)
        towards_one = quantile.q * self.component_cdf_slope(-t) - quantile.p * self.component_cdf_slope(t)
        return towards_one / quantile.density * (1 - 2 * quantile.mirrored)


@dataclass(frozen=True, eq=False)
class _Quantile:
    """A quantile, seen from the end of [0, 1] that it is nearer to.

    Attributes:
        q: Weight of the component at the far end.
        p: Weight of the component at the near end.
        mirrored: 1.0 where the near end is 1, else 0.0.
        x: Distance from the near end, in (0, 1/2].
        gap: Cdf of the component at the near end minus that of the other one, at x.
        density: Of the mixture, at x.
    """

    q: Tensor
    p: Tensor
    mirrored: Tensor
    x: Tensor
    gap: Tensor
    density: Tensor

    @property
    def value(self) -> Tensor:
        """The quantile itself, in [0, 1]."""
        return (self.mirrored - self.x).abs_()

    def slope(self) -> Tensor:
        """Derivative of the quantile in log_alpha: equation 16 times dq / dlog_alpha."""
        return (self.gap * self.p).mul_(self.q).div_(self.density)
