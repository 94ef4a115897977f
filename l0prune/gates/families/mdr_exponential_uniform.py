"""Mixture of two mirrored densities, each exponential with a uniform floor."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from l0prune.errors import ConfigError
from l0prune.gates.distribution import Parameter, as_number, as_scalar
from l0prune.gates.families.mdr_exponential import exponential_cdf_slope, exponential_root, require_single_precision
from l0prune.gates.mixture import MixtureGate
from l0prune.gates.numerics import fast_exp, find_root

__all__ = ["MdrExponentialUniform"]


@dataclass(frozen=True)
class MdrExponentialUniform(MixtureGate):
    """Component at 0: (1 - floor) times the truncated exponential density, plus floor. The quantile is a root.

    Attributes:
        temperature: beta in (0, 80], a number or a scalar tensor; LARGER is closer to Bernoulli. The papers use 9 to 40.
        floor: Weight of the uniform density, in (0, 1); it bounds the slope of a sample in q by 1 / floor.

    Raises:
        ConfigError: if a parameter is out of range.

    Source: as `MixtureGate`; the components of Vahdat et al. (2018), arXiv:1805.07445, appendix.
    """

    temperature: Parameter = 15.0
    floor: float = 0.05

    name: ClassVar[str] = "mdr-exponential-uniform"
    stretched_temperature: ClassVar[float | None] = 20.0

    def __post_init__(self) -> None:
        """Check both parameters."""
        super().__post_init__()
        require_single_precision(self.temperature)
        if not isinstance(self.floor, int | float) or not 0 < self.floor < 1:
            raise ConfigError(f"floor is {self.floor!r}; expected a number in (0, 1), 0.05 by default")

    def component_mean(self) -> Tensor:
        """Mean of the component at 0, scalar, in (0, 1/2)."""
        beta = as_scalar(self.temperature)
        return (1 - self.floor) * (1 / beta - 1 / torch.expm1(beta)) + self.floor / 2

    def component_cdf(self, t: Tensor) -> Tensor:
        """P(component at 0 <= sigmoid(t))."""
        beta, x = as_scalar(self.temperature), torch.sigmoid(t)
        return (1 - self.floor) * torch.expm1(-beta * x) / torch.expm1(-beta) + self.floor * x

    def component_survival(self, t: Tensor) -> Tensor:
        """P(component at 0 > sigmoid(t))."""
        beta, x, y = as_scalar(self.temperature), torch.sigmoid(t), torch.sigmoid(-t)
        return (1 - self.floor) * torch.exp(-beta * x) * torch.expm1(-beta * y) / torch.expm1(-beta) + self.floor * y

    def component_log_prob(self, t: Tensor) -> Tensor:
        """Log density of the component at 0 in z = sigmoid(t)."""
        beta = as_scalar(self.temperature)
        peak = (1 - self.floor) * beta / -torch.expm1(-beta)
        return torch.log(peak * torch.exp(-beta * torch.sigmoid(t)) + self.floor)

    def component_cdf_slope(self, t: Tensor) -> Tensor:
        """Derivative of the component's cdf in beta at fixed z = sigmoid(t)."""
        return (1 - self.floor) * exponential_cdf_slope(as_scalar(self.temperature), t)

    def lower_quantile(self, q: Tensor, p: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x, R - R1 and density where cdf(x) = u, by Halley's method for the relative excess of the cdf."""
        beta = as_number(self.temperature)
        end, share = math.exp(-beta), (1 - self.floor) / -math.expm1(-beta)

        def parts(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            """1 - e^(-beta x), e^(-beta (1 - x)), and the components' shares of the density over share * beta."""
            exponent = x * -beta
            decay = fast_exp(exponent)
            mirrored = end / decay
            return torch.expm1(exponent).neg_(), mirrored, p * decay, q * mirrored

        def excess(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            fallen, _, near, far = parts(x)
            cdf = (far + p).mul_(fallen).mul_(share).add_(x, alpha=self.floor)
            density = (near + far).mul_(share * beta).add_(self.floor)
            return (cdf - u).div_(u), density.div_(u), (far - near).mul_(share * beta * beta).div_(u)

        # The exponential part alone and the uniform part alone bound the root from above, the peak slope from below.
        high = torch.full_like(u, 0.5)
        low = (u / (share * beta * (p + q * math.exp(-beta / 2)) + self.floor)).minimum(high)
        guess = torch.minimum(exponential_root(beta, q, p, u)[0], u / self.floor)
        x = find_root(excess, torch.maximum(guess, low).minimum(high), low, high)
        fallen, mirrored, near, far = parts(x)
        return x, share * fallen * (1 - mirrored), (near + far).mul_(share * beta).add_(self.floor)
