"""Mixture of two mirrored, truncated exponential densities."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from l0prune.errors import ConfigError
from l0prune.gates.distribution import Parameter, as_number, as_scalar
from l0prune.gates.mixture import MixtureGate

__all__ = ["MdrExponential", "exponential_cdf_slope", "exponential_root", "require_single_precision"]

_MAX_TEMPERATURE = 80.0
_DOUBLE_ABOVE = 20.0  # products with e^(-beta) leave single precision where the gate is nearly shut


@dataclass(frozen=True)
class MdrExponential(MixtureGate):
    """Component at 0: r(z) = beta e^(-beta z) / (1 - e^(-beta)) on (0, 1). The quantile has a closed form.

    Attributes:
        temperature: beta in (0, 80], a number or a scalar tensor; LARGER is closer to Bernoulli. The papers use 8 to 15.

    Raises:
        ConfigError: if `temperature` is out of range: above 80, e^(-beta) leaves single precision.

    Source: as `MixtureGate`; the components of Rolfe (2017), arXiv:1609.02200, section 2.
    """

    temperature: Parameter = 11.0

    name: ClassVar[str] = "mdr-exponential"
    stretched_temperature: ClassVar[float | None] = 15.0

    def __post_init__(self) -> None:
        """Check the temperature."""
        super().__post_init__()
        require_single_precision(self.temperature)

    def component_mean(self) -> Tensor:
        """Mean of the component at 0, scalar, in (0, 1/2)."""
        beta = as_scalar(self.temperature)
        return 1 / beta - 1 / torch.expm1(beta)

    def component_cdf(self, t: Tensor) -> Tensor:
        """P(component at 0 <= sigmoid(t))."""
        beta = as_scalar(self.temperature)
        return torch.expm1(-beta * torch.sigmoid(t)) / torch.expm1(-beta)

    def component_survival(self, t: Tensor) -> Tensor:
        """P(component at 0 > sigmoid(t))."""
        beta = as_scalar(self.temperature)
        return torch.exp(-beta * torch.sigmoid(t)) * torch.expm1(-beta * torch.sigmoid(-t)) / torch.expm1(-beta)

    def component_log_prob(self, t: Tensor) -> Tensor:
        """Log density of the component at 0 in z = sigmoid(t)."""
        beta = as_scalar(self.temperature)
        return torch.log(beta / -torch.expm1(-beta)) - beta * torch.sigmoid(t)

    def component_cdf_slope(self, t: Tensor) -> Tensor:
        """Derivative of the component's cdf in beta at fixed z = sigmoid(t)."""
        return exponential_cdf_slope(as_scalar(self.temperature), t)

    def lower_quantile(self, q: Tensor, p: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x, R - R1 and density where cdf(x) = u, from a quadratic equation for e^(-beta x)."""
        beta = as_number(self.temperature)
        end, whole = math.exp(-beta), -math.expm1(-beta)
        if beta > _DOUBLE_ABOVE:
            q, p, u = q.double(), p.double(), u.double()
        x, fallen, decay = exponential_root(beta, q, p, u)
        mirrored = end / decay
        return x, (1 - mirrored).mul_(fallen).div_(whole), (p * decay).addcmul_(q, mirrored).mul_(beta / whole)


def require_single_precision(beta: Parameter) -> None:
    """Refuse a temperature at which e^(-beta) leaves the range of single precision.

    Raises:
        ConfigError: names the bound.
    """
    if as_number(beta) > _MAX_TEMPERATURE:
        raise ConfigError(f"temperature is {as_number(beta)!r}; expected at most {_MAX_TEMPERATURE:g}")


def exponential_cdf_slope(beta: Tensor, t: Tensor) -> Tensor:
    """Derivative of (1 - e^(-beta z)) / (1 - e^(-beta)) in beta at fixed z = sigmoid(t).

    With y = 1 - z the numerator z e^(-beta z) (1 - e^(-beta)) - (1 - e^(-beta z)) e^(-beta) equals
    e^(-beta z) ((1 - e^(-beta y)) - y (1 - e^(-beta))), which does not cancel next to 1.
    """
    x, y = torch.sigmoid(t), torch.sigmoid(-t)
    whole = -torch.expm1(-beta)
    decay = torch.exp(-beta * x)
    near_zero = x * decay * whole + torch.expm1(-beta * x) * torch.exp(-beta)
    near_one = decay * (-torch.expm1(-beta * y) - y * whole)
    return torch.where(t < 0, near_zero, near_one) / whole.square()


def exponential_root(beta: float, q: Tensor, p: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where the cdf of the exponential mixture is `u`, for roots up to 1/2: x, 1 - e^(-beta x) and e^(-beta x).

    m = e^(-beta x) solves p m^2 + b m - q e^(-beta) = 0 with b = u (1 - e^(-beta)) + q e^(-beta) - p. Of the two forms of
    its root the one without cancellation is taken, by the sign of b; 1 - m comes from the equation for it, and x from
    both, so that it keeps its digits next to 0.
    """
    end, whole = math.exp(-beta), -math.expm1(-beta)
    reached, rest = u * whole, q * end
    b = (reached + rest).sub_(p)
    root = torch.sqrt((4 * p).mul_(rest).addcmul_(b, b))
    fallen = 2 * reached / (reached + rest).add_(p).add_(root)
    outer = b.abs() + root
    is_positive = torch.copysign(torch.full_like(b, 0.5), b).add_(0.5)
    numerator = torch.lerp(outer, 2 * rest, is_positive)
    denominator = torch.lerp(2 * p, outer, is_positive)
    decay = numerator / denominator
    return torch.log1p(fallen / decay).div_(beta).clamp_(max=0.5), fallen, decay
