"""Binary concrete gates, computed in logit space: a relaxed Bernoulli variable, without atoms."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from l0prune.gates.distribution import (
    AtomlessGate,
    Parameter,
    as_number,
    as_scalar,
    inside,
    outside_is,
    require_positive,
)
from l0prune.gates.numerics import in_blocks, logistic_noise, pathwise, random_words

__all__ = ["BinaryConcrete"]

_STEP, _REACH = 0.1, 5.0


@dataclass(frozen=True)
class BinaryConcrete(AtomlessGate):
    """z = sigmoid(Y) with Y = (logit u + log_alpha) / temperature and uniform u.

    P(z > 1/2) = sigmoid(log_alpha) at every temperature; that is `prob_open`.

    Attributes:
        temperature: > 0; towards 0 the gate is Bernoulli, and at most 1 its density has no mode inside (0, 1).

    Raises:
        ConfigError: if `temperature` is not positive and finite.

    Source: Maddison, Mnih, Teh (2017), arXiv:1611.00712, appendix B (equation 17); 2/3 from appendix C.4.
    """

    temperature: Parameter = 2 / 3

    name: ClassVar[str] = "concrete"

    def __post_init__(self) -> None:
        """Check the temperature."""
        require_positive("temperature", self.temperature, "2/3")

    def rsample(self, log_alpha: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """One sample a gate, shape `(n_gates,)`, in [0, 1]; 0 and 1 only by rounding."""
        temperature = as_scalar(self.temperature)
        cold = as_number(self.temperature)

        def sample(location: Tensor, words: Tensor) -> tuple[Tensor, ...]:
            logit = logistic_noise(words, location.dtype).add_(location).div_(cold)
            value = torch.sigmoid(logit)
            slope = torch.sigmoid(-logit).mul_(value).div_(cold)
            return (value, slope, -slope * logit) if temperature.requires_grad else (value, slope)

        value, *slopes = in_blocks(sample, log_alpha.detach(), random_words(log_alpha, generator))
        return pathwise(value, (log_alpha, temperature), slopes)

    def logit_rsample(self, log_alpha: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """One sample of Y = logit z a gate, shape `(n_gates,)`, any real number: what `rsample` cannot round."""
        noise = logistic_noise(random_words(log_alpha, generator), log_alpha.dtype)
        return (log_alpha + noise) / as_scalar(self.temperature)

    def logit_log_prob(self, log_alpha: Tensor, y: Tensor) -> Tensor:
        """Log density of Y = logit z at any real `y`; `log_alpha` and `y` broadcast.

        Source: Maddison, Mnih, Teh (2017), appendix C.3.2: log t - t y + log_alpha - 2 softplus(log_alpha - t y).
        """
        temperature = as_scalar(self.temperature)
        centred = log_alpha - temperature * y
        return torch.log(temperature) + F.logsigmoid(centred) + F.logsigmoid(-centred)

    def mean(self, log_alpha: Tensor) -> Tensor:
        """E[z], shape `(n_gates,)`, in (0, 1), by quadrature of P(Y > y) dsigmoid(y) over the real line.

        The error is below 1e-9 for temperatures from 0.02 to 1, and below 1e-4 up to 10.
        """
        steps = np.arange(-_REACH, _REACH + _STEP / 2, _STEP)
        at = 2 * np.sinh(steps)
        weights = _STEP * 2 * np.cosh(steps) / (2 * np.cosh(at / 2)) ** 2
        nodes = torch.as_tensor(at, dtype=log_alpha.dtype, device=log_alpha.device)
        survival = torch.sigmoid(log_alpha.unsqueeze(-1) - as_scalar(self.temperature) * nodes)
        return survival @ torch.as_tensor(weights, dtype=log_alpha.dtype, device=log_alpha.device)

    def cdf(self, log_alpha: Tensor, x: Tensor) -> Tensor:
        """P(z <= x) = sigmoid(temperature logit(x) - log_alpha) on (0, 1), for any real `x`."""
        value = torch.sigmoid(as_scalar(self.temperature) * torch.logit(inside(x)) - log_alpha)
        return outside_is(value, x, below=0.0, above=1.0)

    def survival(self, log_alpha: Tensor, x: Tensor) -> Tensor:
        """P(z > x), for any real `x`."""
        value = torch.sigmoid(log_alpha - as_scalar(self.temperature) * torch.logit(inside(x)))
        return outside_is(value, x, below=1.0, above=0.0)

    def icdf(self, log_alpha: Tensor, u: Tensor) -> Tensor:
        """The quantile at `u` in [0, 1]: sigmoid((logit(u) + log_alpha) / temperature)."""
        return torch.sigmoid((torch.logit(u) + log_alpha) / as_scalar(self.temperature))

    def log_prob(self, log_alpha: Tensor, x: Tensor) -> Tensor:
        """Log density on (0, 1), -inf elsewhere."""
        at = inside(x)
        value = self.logit_log_prob(log_alpha, torch.logit(at)) - torch.log(at) - torch.log1p(-at)
        return torch.where((x > 0) & (x < 1), value, torch.full_like(value, -torch.inf))

    def median(self, log_alpha: Tensor) -> Tensor:
        """Median of z: sigmoid(log_alpha / temperature)."""
        return torch.sigmoid(log_alpha / as_scalar(self.temperature))
