"""Mixture of two mirrored power functions."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from l0prune.errors import ConfigError
from l0prune.gates.distribution import Parameter, as_number, as_scalar
from l0prune.gates.mixture import MixtureGate
from l0prune.gates.numerics import fast_exp, find_root

__all__ = ["MdrPower"]

_LOG_HALF = -0.6931471805599453
_VANISHED = 1e4


@dataclass(frozen=True)
class MdrPower(MixtureGate):
    """Component at 0: r(z) = z^(1/beta - 1) / beta, cdf z^(1/beta), on (0, 1). The quantile is a root.

    Attributes:
        temperature: beta >= 1, a number or a scalar tensor; LARGER is closer to Bernoulli, 1 is uniform. The papers use 10
            to 80.

    Raises:
        ConfigError: if `temperature` is below 1 or not finite: the components would lean away from their ends.

    Source: as `MixtureGate`; the components of Vahdat et al. (2018), arXiv:1805.07445, section 3.
    """

    temperature: Parameter = 20.0

    name: ClassVar[str] = "mdr-power"
    stretched_temperature: ClassVar[float | None] = 40.0

    def __post_init__(self) -> None:
        """Check the temperature."""
        super().__post_init__()
        if as_number(self.temperature) < 1:
            raise ConfigError(f"temperature is {as_number(self.temperature)!r}; expected 1 or more, 20 by default")

    def component_mean(self) -> Tensor:
        """Mean of the component at 0, scalar, in (0, 1/2)."""
        return 1 / (1 + as_scalar(self.temperature))

    def component_cdf(self, t: Tensor) -> Tensor:
        """P(component at 0 <= sigmoid(t))."""
        return torch.exp(F.logsigmoid(t) / as_scalar(self.temperature))

    def component_survival(self, t: Tensor) -> Tensor:
        """P(component at 0 > sigmoid(t))."""
        return -torch.expm1(F.logsigmoid(t) / as_scalar(self.temperature))

    def component_log_prob(self, t: Tensor) -> Tensor:
        """Log density of the component at 0 in z = sigmoid(t)."""
        beta = as_scalar(self.temperature)
        return F.logsigmoid(t) * (1 / beta - 1) - torch.log(beta)

    def component_cdf_slope(self, t: Tensor) -> Tensor:
        """Derivative of the component's cdf in beta at fixed z = sigmoid(t)."""
        beta = as_scalar(self.temperature)
        exponent = (F.logsigmoid(t) / beta).clamp(min=-_VANISHED)  # e^x x has the limit 0, not -inf * 0
        return -torch.exp(exponent) * exponent / beta

    def lower_quantile(self, q: Tensor, p: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x, R - R1 and density where cdf(x) = u, by Halley's method for log(cdf / u) over log x."""
        beta = as_number(self.temperature)
        rate = 1 / beta

        def parts(log_x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            """x, R(x), R1(x), and x / (1 - x)."""
            x = fast_exp(log_x)
            mirrored = torch.log1p(-x).mul_(rate).expm1_().neg_()
            return x, fast_exp(log_x * rate), mirrored, x / (1 - x)

        def mismatch(log_x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            _, risen, mirrored, odds = parts(log_x)
            near = p * risen
            cdf = torch.addcmul(near, q, mirrored)
            far = odds * (1 - mirrored) * q
            slope = (near + far).mul_(rate).div_(cdf)
            curvature = (odds * (1 - rate)).add_(1).mul_(far).add_(near, alpha=rate).mul_(rate).div_(cdf)
            # log(cdf / u), to the third order
            value = (cdf - u).div_(cdf + u).mul_(2)
            return value, slope, curvature.addcmul_(slope, slope, value=-1)

        # Each component alone bounds the root from above; with half of u, one of them does from below.
        log_u, log_p, log_q = torch.log(u), torch.log(p), torch.log(q)
        half = -math.expm1(_LOG_HALF * rate)
        first, second = (log_u - log_p).mul_(beta), log_u - log_q
        high = torch.minimum(first, second + math.log(beta)).clamp_(max=_LOG_HALF)
        low = torch.minimum(first + beta * _LOG_HALF, second - math.log(4 * half)).minimum(high)
        x, risen, mirrored, odds = parts(find_root(mismatch, high, low, high))
        near = p * risen
        return x, risen - mirrored, (odds * (1 - mirrored) * q).add_(near).mul_(rate).div_(x)
