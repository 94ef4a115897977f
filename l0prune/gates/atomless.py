"""What gates have in common whose density has no atom: they come near 0 and 1, and a rule says which are closed."""

from typing import ClassVar

import torch
from torch import Tensor

from l0prune.gates.distribution import GateDistribution

__all__ = ["AtomlessGate"]


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
