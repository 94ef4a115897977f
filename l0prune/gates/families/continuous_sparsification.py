"""Deterministic gates that harden as training goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from l0prune.gates.distribution import GateDistribution, Parameter, as_scalar, require_positive

__all__ = ["ContinuousSparsification"]


@dataclass(frozen=True)
class ContinuousSparsification(GateDistribution):
    """z = sigmoid(log_alpha / temperature), with a temperature that falls exponentially over the gate phase.

    There is no noise: the gate is a point mass, without a density. It takes part in the expected cost with its value, and
    is closed where log_alpha <= 0. The reference code divides by the initial sigmoid, so that gates start at 1; here they
    start open instead.

    Attributes:
        temperature: > 0, at the begin of the gate phase.
        final_temperature: > 0, at its end.

    Raises:
        ConfigError: if a temperature is not positive and finite.

    Source: Savarese, Silva, Maire (2020), arXiv:1912.04427, section 3. Its experiments end at 1/200; the gates' optimizer
    here moves locations by 0.05 and more a step, which would be ten times the width of that.
    """

    temperature: Parameter = 1.0
    final_temperature: float = 1 / 20

    name: ClassVar[str] = "continuous-sparsification"
    estimators: ClassVar[tuple[str, ...]] = ("rounded", "mean")
    threshold: ClassVar[float] = 0.5
    is_relaxed: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check both temperatures."""
        require_positive("temperature", self.temperature, "1")
        require_positive("final_temperature", self.final_temperature, "1/20")

    def at(self, progress: float, affordable: Callable[[], int]) -> ContinuousSparsification:
        """As cold as it is after this share of the gate phase."""
        del affordable
        if progress <= 0:
            return self
        cooled = (self.final_temperature / self.temperature) ** min(progress, 1.0)
        return replace(self, temperature=self.temperature * cooled)

    def rsample(self, log_alpha: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """The value of each gate, shape `(n_gates,)`, in [0, 1]; there is nothing random in it."""
        del generator
        return self.mean(log_alpha)

    def prob_open(self, log_alpha: Tensor) -> Tensor:
        """The value itself, shape `(n_gates,)`: what the expected cost counts of a unit, 0 or 1 once it has hardened."""
        return self.mean(log_alpha)

    def prob_zero(self, log_alpha: Tensor) -> Tensor:
        """1 where the value is 0 by rounding, else 0."""
        return (self.mean(log_alpha) == 0).to(log_alpha.dtype)

    def prob_one(self, log_alpha: Tensor) -> Tensor:
        """1 where the value is 1 by rounding, else 0."""
        return (self.mean(log_alpha) == 1).to(log_alpha.dtype)

    def mean(self, log_alpha: Tensor) -> Tensor:
        """The value: sigmoid(log_alpha / temperature), shape `(n_gates,)`."""
        return torch.sigmoid(log_alpha / as_scalar(self.temperature))

    def cdf(self, log_alpha: Tensor, x: Tensor) -> Tensor:
        """1 from the value on, 0 below it."""
        return (x >= self.mean(log_alpha)).to(log_alpha.dtype)

    def icdf(self, log_alpha: Tensor, u: Tensor) -> Tensor:
        """The value, at every level."""
        return self.mean(log_alpha) + torch.zeros_like(u)

    def log_prob(self, log_alpha: Tensor, x: Tensor) -> Tensor:
        """Log of the probability mass: 0 at the value, -inf elsewhere."""
        return torch.log(x == self.mean(log_alpha)).to(log_alpha.dtype)

    def _estimate(self, log_alpha: Tensor, estimator: str) -> Tensor:
        """`rounded` is the ticket the gates harden to: 1 where log_alpha > 0, else 0."""
        return self.mean(log_alpha) if estimator == "mean" else (log_alpha > 0).to(log_alpha.dtype)
