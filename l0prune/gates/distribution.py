"""The interface of a gate: a random variable on [0, 1] with a location that can be trained until it is shut."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints

from l0prune.errors import ConfigError

__all__ = ["AtomlessGate", "GateDistribution", "Parameter", "as_number", "as_scalar", "require_positive"]

Parameter = float | Tensor
"""A family's fixed parameter: a number, or a scalar tensor to differentiate in."""


def as_scalar(value: Parameter) -> Tensor:
    """A parameter as a scalar float64 tensor; beside a vector it takes on the vector's dtype and device."""
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)


def as_number(value: Parameter) -> float:
    """A parameter as a plain number, for computations that are not differentiated."""
    return float(value.detach()) if isinstance(value, Tensor) else value


def require_positive(name: str, value: Parameter, usual: str) -> None:
    """Refuse a parameter that is not a positive, finite number.

    Raises:
        ConfigError: names it and the usual value.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number and not (isinstance(value, Tensor) and value.numel() == 1):
        found = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise ConfigError(f"{name} is {found}; expected one positive number, {usual} by default")
    number = as_number(value)
    if not 0 < number < math.inf:
        raise ConfigError(f"{name} is {number!r}; expected a positive number, {usual} by default")


class GateDistribution(ABC):
    """A family of gate distributions, in the vocabulary of `torch.distributions`, with the location as an argument.

    Objects hold the family's fixed parameters (such as a temperature) and nothing that is trained: every method takes
    the locations `log_alpha`, shape `(n_gates,)`, any real values. Where it makes sense, results are differentiable in
    `log_alpha`, and in the temperature if it is a tensor. They have the dtype and device of `log_alpha`.
    """

    name: ClassVar[str]
    """What the registry and the command line call the family."""

    arg_constraints: ClassVar[Mapping[str, constraints.Constraint]] = {"log_alpha": constraints.real}
    support: ClassVar[constraints.Constraint] = constraints.unit_interval

    initial_log_alpha: ClassVar[float] = 3.0
    """Location at which a gate of an already trained network starts: surely open, mean near 1, still trainable."""

    estimators: ClassVar[tuple[str, ...]] = ("median", "mean")
    """Names that `test_value` understands; the first is the default."""

    threshold: ClassVar[float] = 0.0
    """A sampled value above this stands for an open unit where only open or closed counts, as in a norm's statistics."""

    needs_budget: ClassVar[bool] = False
    """Whether the number of open gates is fixed by what a budget pays for, so that a price for each has no effect."""

    is_relaxed: ClassVar[bool] = True
    """Whether samples lie between 0 and 1 at random, so that "-st" has something to round."""

    stretched_temperature: ClassVar[float | None] = None
    """Temperature with "-stretched" behind the name; None where there is no such gate.

    However far a stretched mixture is shut, its component at 0 reaches beyond the clip. At these temperatures a shut gate still
    counts 4 to 5 % in the expected cost, at those of the plain mixtures 7 to 9 %.
    """

    held_below: ClassVar[float] = math.inf
    """Under a budget, gates are kept from running past its target (`gates.holding`) in phases of fewer steps than this."""

    def at(self, progress: float, affordable: Callable[[], int]) -> GateDistribution:
        """The family at one moment of training; itself, unless one of its parameters changes over time.

        Args:
            progress: Share of the gate phase that is over, in [0, 1].
            affordable: Returns how many gates, highest location first, the budget currently allows to be open.
        """
        del progress, affordable
        return self

    @abstractmethod
    def rsample(self, log_alpha: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """One reparameterised sample per gate, shape `(n_gates,)`, in [0, 1]; the noise comes from a CPU generator."""

    @abstractmethod
    def prob_open(self, log_alpha: Tensor) -> Tensor:
        """Probability that the unit is open, shape `(n_gates,)`, in [0, 1]: the gate's share in the expected cost.

        It is P(z != 0) where the family has an atom at 0; each other family defines it.
        """

    def prob_zero(self, log_alpha: Tensor) -> Tensor:
        """P(z = 0), shape `(n_gates,)`, in [0, 1]."""
        return 1 - self.prob_open(log_alpha)

    @abstractmethod
    def prob_one(self, log_alpha: Tensor) -> Tensor:
        """P(z = 1), shape `(n_gates,)`, in [0, 1]."""

    @abstractmethod
    def mean(self, log_alpha: Tensor) -> Tensor:
        """E[z], shape `(n_gates,)`, in [0, 1]."""

    @abstractmethod
    def cdf(self, log_alpha: Tensor, x: Tensor) -> Tensor:
        """P(z <= x) for any real `x`; `log_alpha` and `x` broadcast."""

    def survival(self, log_alpha: Tensor, x: Tensor) -> Tensor:
        """P(z > x) for any real `x`, accurate also where it is far below the rounding of 1 - cdf."""
        return 1 - self.cdf(log_alpha, x)

    @abstractmethod
    def icdf(self, log_alpha: Tensor, u: Tensor) -> Tensor:
        """Smallest z in [0, 1] with cdf(z) >= u, for `u` in [0, 1]; `log_alpha` and `u` broadcast."""

    @abstractmethod
    def log_prob(self, log_alpha: Tensor, x: Tensor) -> Tensor:
        """Log of the density on (0, 1), or of the probability mass where there is an atom; -inf outside [0, 1]."""

    def median(self, log_alpha: Tensor) -> Tensor:
        """Median of z, shape `(n_gates,)`, in [0, 1]; with an atom at 0, it is 0 exactly where P(z != 0) <= 1/2."""
        return self.icdf(log_alpha, torch.full_like(log_alpha, 0.5))

    def test_value(self, log_alpha: Tensor, *, estimator: str | None = None) -> Tensor:
        """The fixed value that stands for the random gate outside training.

        Args:
            log_alpha: locations, shape `(n_gates,)`.
            estimator: one of `estimators`; None is the first. The default closes a gate exactly where `prob_open` is at
                most 1/2, in agreement with the expected cost.

        Returns:
            Shape `(n_gates,)`, in [0, 1].

        Raises:
            ConfigError: if the family does not know `estimator`.
        """
        if estimator is None:
            estimator = self.estimators[0]
        if estimator not in self.estimators:
            raise ConfigError(
                f"unknown test-time estimator {estimator!r} for gate {self.name!r}; "
                f"use one of: {', '.join(self.estimators)}"
            )
        return self._estimate(log_alpha, estimator)

    def _estimate(self, log_alpha: Tensor, estimator: str) -> Tensor:
        """`test_value` for one of `estimators`."""
        return self.mean(log_alpha) if estimator == "mean" else self.median(log_alpha)


class AtomlessGate(GateDistribution):
    """A gate with a density on (0, 1) and no atom: in exact arithmetic it is never 0 and never 1.

    Such a gate stands for a binary one, which `prob_open` is the probability of. It is closed where that is at most 1/2,
    and its test-time value is 0 then; a sample counts as open above 1/2.
    """

    initial_log_alpha: ClassVar[float] = 4.0
    estimators: ClassVar[tuple[str, ...]] = ("median", "mean", "rounded")
    threshold: ClassVar[float] = 0.5

    def prob_open(self, log_alpha: Tensor) -> Tensor:
        """Probability that the binary gate behind this one is 1: sigmoid(log_alpha), shape `(n_gates,)`, in (0, 1)."""
        return torch.sigmoid(log_alpha)

    def prob_zero(self, log_alpha: Tensor) -> Tensor:
        """Zero: there is no atom."""
        return torch.zeros_like(log_alpha)

    def prob_one(self, log_alpha: Tensor) -> Tensor:
        """Zero: there is no atom."""
        return torch.zeros_like(log_alpha)

    def _estimate(self, log_alpha: Tensor, estimator: str) -> Tensor:
        """The median, the mean or 1 where the gate is open, 0 where it is closed."""
        is_open = log_alpha > 0
        if estimator == "rounded":
            return is_open.to(log_alpha.dtype)
        value = super()._estimate(log_alpha, estimator)
        return torch.where(is_open, value, torch.zeros_like(value))


def outside_is(value: Tensor, x: Tensor, *, below: float, above: float) -> Tensor:
    """`value` on (0, 1), `below` at and under 0, `above` at and over 1."""
    value = torch.where(x <= 0, torch.full_like(value, below), value)
    return torch.where(x >= 1, torch.full_like(value, above), value)


def inside(x: Tensor) -> Tensor:
    """`x` on (0, 1) and 1/2 elsewhere, so that nothing infinite enters a gradient."""
    return torch.where((x > 0) & (x < 1), x, torch.full_like(x, 0.5))
