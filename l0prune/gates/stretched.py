"""Gates stretched beyond [0, 1] and clipped, which gives any density atoms at 0 and 1."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from l0prune.errors import ConfigError
from l0prune.gates.distribution import AtomlessGate, GateDistribution

__all__ = ["StretchedGate", "require_stretch", "unit_legendre"]


@dataclass(frozen=True)
class StretchedGate(GateDistribution):
    """z = clip(x * (zeta - gamma) + gamma, 0, 1) with x from a gate without atoms.

    Around the binary concrete gate this is the hard concrete one. Around the mixtures it is an extension of this
    project, in none of the papers: it gives them exact zeros in training and a P(z != 0) to penalise.

    Attributes:
        base: The gate that is stretched.
        stretch: (gamma, zeta) with gamma < 0 and zeta > 1.

    Raises:
        ConfigError: if `stretch` does not hold [0, 1] in its interior.

    Source: the stretch of Louizos, Welling, Kingma (2018), arXiv:1712.01312, section 2.2, on other densities.
    """

    base: AtomlessGate
    stretch: tuple[float, float] = (-0.1, 1.1)

    def __post_init__(self) -> None:
        """Check the stretch."""
        require_stretch(self.stretch)

    @property
    def name(self) -> str:  # type: ignore[override]
        """The base's name with "-stretched" behind it."""
        return f"{self.base.name}-stretched"

    @property
    def initial_log_alpha(self) -> float:  # type: ignore[override]
        """Where the base starts."""
        return self.base.initial_log_alpha

    def at(self, progress: float, affordable: Callable[[], int]) -> StretchedGate:
        """The same stretch of the base as it is at that moment."""
        base = self.base.at(progress, affordable)
        return self if base is self.base or not isinstance(base, AtomlessGate) else replace(self, base=base)

    def rsample(self, log_alpha: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """One sample a gate, shape `(n_gates,)`, in [0, 1], exactly 0 or 1 with positive probability.

        The gradient is that of the clipped value: zero where the sample is exactly 0 or 1.
        """
        return self._stretched(self.base.rsample(log_alpha, generator=generator))

    def prob_open(self, log_alpha: Tensor) -> Tensor:
        """P(z != 0), shape `(n_gates,)`, in (0, 1)."""
        return self.base.survival(log_alpha, self._before(log_alpha.new_zeros(())))

    def prob_zero(self, log_alpha: Tensor) -> Tensor:
        """P(z = 0), shape `(n_gates,)`, in (0, 1)."""
        return self.base.cdf(log_alpha, self._before(log_alpha.new_zeros(())))

    def prob_one(self, log_alpha: Tensor) -> Tensor:
        """P(z = 1), shape `(n_gates,)`, in (0, 1)."""
        return self.base.survival(log_alpha, self._before(log_alpha.new_ones(())))

    def mean(self, log_alpha: Tensor) -> Tensor:
        """E[z], shape `(n_gates,)`, in (0, 1), by Gauss-Legendre quadrature of P(z > x) over x in [0, 1]."""
        nodes, weights = unit_legendre(log_alpha)
        return self.base.survival(log_alpha.unsqueeze(-1), self._before(nodes)) @ weights

    def cdf(self, log_alpha: Tensor, x: Tensor) -> Tensor:
        """P(z <= x) for any real `x`: 0 below 0, a step of P(z = 0) at 0, and 1 from 1 on."""
        value = self.base.cdf(log_alpha, self._before(x.clamp(0, 1)))
        return torch.where(x < 0, torch.zeros_like(value), torch.where(x >= 1, torch.ones_like(value), value))

    def survival(self, log_alpha: Tensor, x: Tensor) -> Tensor:
        """P(z > x) for any real `x`."""
        value = self.base.survival(log_alpha, self._before(x.clamp(0, 1)))
        return torch.where(x < 0, torch.ones_like(value), torch.where(x >= 1, torch.zeros_like(value), value))

    def icdf(self, log_alpha: Tensor, u: Tensor) -> Tensor:
        """The quantile at `u` in [0, 1]: 0 for u <= P(z = 0), 1 for u >= 1 - P(z = 1)."""
        return self._stretched(self.base.icdf(log_alpha, u))

    def log_prob(self, log_alpha: Tensor, x: Tensor) -> Tensor:
        """Log density on (0, 1), log mass at exactly 0 and 1, -inf outside [0, 1]."""
        gamma, zeta = self.stretch
        before = self._before(x.clamp(0, 1))
        value = self.base.log_prob(log_alpha, before) - math.log(zeta - gamma)
        value = torch.where(x == 0, torch.log(self.base.cdf(log_alpha, before)), value)
        value = torch.where(x == 1, torch.log(self.base.survival(log_alpha, before)), value)
        return torch.where((x < 0) | (x > 1), torch.full_like(value, -math.inf), value)

    def median(self, log_alpha: Tensor) -> Tensor:
        """Median of z: the stretched, clipped median of the base; 0 exactly where P(z != 0) <= 1/2."""
        return self._stretched(self.base.median(log_alpha))

    def _stretched(self, x: Tensor) -> Tensor:
        gamma, zeta = self.stretch
        return torch.clamp(x * (zeta - gamma) + gamma, 0.0, 1.0)

    def _before(self, z: Tensor) -> Tensor:
        """What is stretched to `z`."""
        gamma, zeta = self.stretch
        return (z - gamma) / (zeta - gamma)


_QUADRATURE_POINTS = 64


def require_stretch(stretch: tuple[float, float]) -> None:
    """Refuse a stretch that does not hold [0, 1] in its interior.

    Raises:
        ConfigError: says what was given.
    """
    try:
        gamma, zeta = (float(end) for end in stretch)
    except (TypeError, ValueError):
        gamma = zeta = math.nan
    if not (-math.inf < gamma < 0 and 1 < zeta < math.inf):
        raise ConfigError(
            f"stretch is {stretch!r}; expected (gamma, zeta) with gamma < 0 and zeta > 1, (-0.1, 1.1) by default"
        )


def unit_legendre(like: Tensor) -> tuple[Tensor, Tensor]:
    """64 Gauss-Legendre nodes on [0, 1] and their weights, with the dtype and device of `like`."""
    nodes, weights = _points()
    return torch.as_tensor(nodes).to(like), torch.as_tensor(weights).to(like)


@lru_cache(maxsize=1)
def _points() -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = np.polynomial.legendre.leggauss(_QUADRATURE_POINTS)
    return (nodes + 1) / 2, weights / 2
