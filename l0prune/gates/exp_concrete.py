"""The n-ary concrete distribution, on the simplex and as logarithms: a relaxed choice of one among n."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints

from l0prune.errors import ConfigError
from l0prune.gates.distribution import Parameter, as_scalar, require_positive
from l0prune.gates.numerics import gumbel_noise, random_words

__all__ = ["Concrete", "ExpConcrete", "conservative_temperature"]


def conservative_temperature(n: int) -> float:
    """Largest temperature at which the density is log-convex, so that it has no mode inside the simplex: 1 / (n - 1).

    Args:
        n: Number of choices, >= 2.

    Raises:
        ConfigError: if there are fewer than two choices.

    Source: Maddison, Mnih, Teh (2017), arXiv:1611.00712, proposition 1 (d). Their best measured temperatures are higher:
    1 for n = 4, 2/3 for n = 8, and 2/3 for 2, 4 and 8 together (appendix C.4).
    """
    if n < 2:
        raise ConfigError(f"n is {n}; a choice needs 2 or more")
    return 1 / (n - 1)


@dataclass(frozen=True)
class ExpConcrete:
    """Y = (log_alpha + G) / temperature - logsumexp of it, with Gumbel noise G: the logarithm of a concrete variable.

    It keeps its digits where the components of the concrete variable underflow. The last dimension of every argument
    holds the n choices.

    Attributes:
        temperature: > 0, a number or a scalar tensor; towards 0 the choice is discrete.

    Raises:
        ConfigError: if `temperature` is not positive and finite.

    Source: Maddison, Mnih, Teh (2017), arXiv:1611.00712, section 3.3 and appendix C.3 (equation 26).
    """

    temperature: Parameter = 2 / 3

    support: ClassVar[constraints.Constraint] = constraints.real_vector

    def __post_init__(self) -> None:
        """Check the temperature."""
        require_positive("temperature", self.temperature, "2/3")

    def rsample(self, log_alpha: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """One sample, shape `(..., n)`; the exponentials of the last dimension add up to 1."""
        noise = gumbel_noise(random_words(log_alpha, generator), log_alpha.dtype)
        return torch.log_softmax((log_alpha + noise) / as_scalar(self.temperature), dim=-1)

    def log_prob(self, log_alpha: Tensor, y: Tensor) -> Tensor:
        """Log density at `y`, shape `(...)`, with respect to the simplex of exp(y) in logarithms of n - 1 components."""
        temperature, n = as_scalar(self.temperature), log_alpha.shape[-1]
        score = log_alpha - temperature * y
        constant = math.lgamma(n) + (n - 1) * torch.log(temperature)
        return constant + score.sum(-1) - n * torch.logsumexp(score, dim=-1)

    def prob_chosen(self, log_alpha: Tensor) -> Tensor:
        """P(component k is the largest), shape `(..., n)`: softmax(log_alpha), at every temperature."""
        return torch.softmax(log_alpha, dim=-1)


@dataclass(frozen=True)
class Concrete:
    """X = softmax((log_alpha + G) / temperature) with Gumbel noise G, on the open simplex.

    Attributes:
        temperature: > 0, a number or a scalar tensor; see `conservative_temperature`.

    Raises:
        ConfigError: if `temperature` is not positive and finite.

    Source: Maddison, Mnih, Teh (2017), arXiv:1611.00712, section 3.1 (equations 10 and 11).
    """

    temperature: Parameter = 2 / 3

    support: ClassVar[constraints.Constraint] = constraints.simplex

    def __post_init__(self) -> None:
        """Check the temperature."""
        require_positive("temperature", self.temperature, "2/3")

    def rsample(self, log_alpha: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """One sample on the simplex, shape `(..., n)`."""
        return ExpConcrete(self.temperature).rsample(log_alpha, generator=generator).exp()

    def log_prob(self, log_alpha: Tensor, x: Tensor) -> Tensor:
        """Log density at `x` on the simplex, shape `(...)`, in the first n - 1 components; -inf elsewhere.

        A component of 0, to which samples at low temperatures round, counts as the least number the dtype has.
        """
        limits = torch.finfo(x.dtype)
        tolerance = max(1e-6, x.shape[-1] * limits.eps)
        is_inside = (x >= 0).all(-1) & ((x.sum(-1) - 1).abs() <= tolerance)
        y = torch.log(x.clamp(min=limits.smallest_normal))
        value = ExpConcrete(self.temperature).log_prob(log_alpha, y) - y.sum(-1)
        return torch.where(is_inside, value, torch.full_like(value, -math.inf))

    def prob_chosen(self, log_alpha: Tensor) -> Tensor:
        """P(component k is the largest), shape `(..., n)`: softmax(log_alpha), at every temperature."""
        return torch.softmax(log_alpha, dim=-1)
