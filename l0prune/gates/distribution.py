"""The interface of a gate: a random variable on [0, 1] that is exactly 0 with a probability that can be trained."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints

from l0prune.errors import ConfigError

__all__ = ["GateDistribution", "uniform_noise"]

_SMALLEST_UNIFORM = 2.0**-54


def uniform_noise(n: int, generator: torch.Generator | None = None) -> Tensor:
    """Uniform numbers in the open interval (0, 1), float64 on the CPU.

    They are drawn on the CPU in float64 whatever the gates' device and dtype, so one seed gives the same gates
    on every device and on every rank.

    Args:
        n: how many, >= 0.
        generator: CPU generator; None is torch's default generator.

    Returns:
        Shape `(n,)`, float64, CPU.
    """
    return torch.rand(n, generator=generator, dtype=torch.float64).clamp_(min=_SMALLEST_UNIFORM)


class GateDistribution(ABC):
    """A family of gate distributions, in the vocabulary of `torch.distributions`, with the location as an argument.

    Objects hold the family's fixed parameters (a temperature, say) and nothing that is trained: every method takes
    the locations `log_alpha`, shape `(n_gates,)`, any real values, and treats gates as independent. All results
    are differentiable in `log_alpha` where that makes sense, and follow its dtype and device.
    """

    name: ClassVar[str]
    """What the registry and the command line call the family."""

    arg_constraints: ClassVar[Mapping[str, constraints.Constraint]] = {"log_alpha": constraints.real}
    support: ClassVar[constraints.Constraint] = constraints.unit_interval

    initial_log_alpha: ClassVar[float]
    """Location at which a gate of an already trained network starts: surely open, mean near 1, still trainable."""

    estimators: ClassVar[tuple[str, ...]] = ("median", "mean")
    """Names that `test_value` understands; the first is the default."""

    @abstractmethod
    def rsample(self, log_alpha: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """One reparameterised sample a gate, shape `(n_gates,)`, in [0, 1]; the noise comes from a CPU generator."""

    @abstractmethod
    def prob_open(self, log_alpha: Tensor) -> Tensor:
        """P(z != 0), shape `(n_gates,)`, in (0, 1): the gate's share in the expected cost."""

    @abstractmethod
    def prob_one(self, log_alpha: Tensor) -> Tensor:
        """P(z = 1), shape `(n_gates,)`, in [0, 1)."""

    @abstractmethod
    def mean(self, log_alpha: Tensor) -> Tensor:
        """E[z], shape `(n_gates,)`, in (0, 1)."""

    @abstractmethod
    def cdf(self, log_alpha: Tensor, x: Tensor) -> Tensor:
        """P(z <= x) for any real `x`; `log_alpha` and `x` broadcast."""

    @abstractmethod
    def icdf(self, log_alpha: Tensor, u: Tensor) -> Tensor:
        """Smallest z in [0, 1] with cdf(z) >= u, for `u` in [0, 1]; `log_alpha` and `u` broadcast."""

    @abstractmethod
    def log_prob(self, log_alpha: Tensor, x: Tensor) -> Tensor:
        """Log of the density on (0, 1), of the probability mass at exactly 0 and 1, -inf outside [0, 1]."""

    def median(self, log_alpha: Tensor) -> Tensor:
        """Median of z, shape `(n_gates,)`, in [0, 1]; it is 0 exactly where P(z != 0) <= 1/2."""
        return self.icdf(log_alpha, torch.full_like(log_alpha, 0.5))

    def test_value(self, log_alpha: Tensor, *, estimator: str = "median") -> Tensor:
        """The fixed value that stands for the random gate outside training.

        Args:
            log_alpha: locations, shape `(n_gates,)`.
            estimator: one of `estimators`. The median is the rule that agrees with the expected cost: it shuts a
                gate exactly where P(z != 0) <= 1/2.

        Returns:
            Shape `(n_gates,)`, in [0, 1].

        Raises:
            ConfigError: if the family does not know `estimator`.
        """
        if estimator == "median":
            return self.median(log_alpha)
        if estimator == "mean":
            return self.mean(log_alpha)
        raise ConfigError(
            f"unknown test-time estimator {estimator!r} for gate {self.name!r}; "
            f"use one of: {', '.join(self.estimators)}"
        )
