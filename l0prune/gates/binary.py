"""Gates whose samples are exactly 0 or 1, among them those that pass the slopes of a relaxed gate straight through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from l0prune.gates.distribution import GateDistribution
from l0prune.gates.numerics import pathwise

__all__ = ["StraightThroughGate", "ZeroOneGate"]


class ZeroOneGate(GateDistribution):
    """A gate that is 1 with probability `prob_open` and 0 otherwise; nothing in between, so there is no density."""

    estimators: ClassVar[tuple[str, ...]] = ("median", "mean")
    is_relaxed: ClassVar[bool] = False

    def prob_one(self, log_alpha: Tensor) -> Tensor:
        """P(z = 1), the same as `prob_open`."""
        return self.prob_open(log_alpha)

    def mean(self, log_alpha: Tensor) -> Tensor:
        """E[z], the same as `prob_open`."""
        return self.prob_open(log_alpha)

    def cdf(self, log_alpha: Tensor, x: Tensor) -> Tensor:
        """P(z <= x): 0 below 0, P(z = 0) on [0, 1), 1 from 1 on."""
        closed = self.prob_zero(log_alpha) + torch.zeros_like(x)
        return torch.where(x < 0, torch.zeros_like(closed), torch.where(x >= 1, torch.ones_like(closed), closed))

    def survival(self, log_alpha: Tensor, x: Tensor) -> Tensor:
        """P(z > x) for any real `x`."""
        opened = self.prob_open(log_alpha) + torch.zeros_like(x)
        return torch.where(x < 0, torch.ones_like(opened), torch.where(x >= 1, torch.zeros_like(opened), opened))

    def icdf(self, log_alpha: Tensor, u: Tensor) -> Tensor:
        """The quantile at `u` in [0, 1]: 0 for u <= P(z = 0), 1 above."""
        return (u > self.prob_zero(log_alpha)).to(log_alpha.dtype)

    def log_prob(self, log_alpha: Tensor, x: Tensor) -> Tensor:
        """Log of the probability mass at 0 and 1, -inf elsewhere."""
        mass = torch.where(x == 0, self.prob_zero(log_alpha), torch.zeros_like(log_alpha + x))
        return torch.log(torch.where(x == 1, self.prob_open(log_alpha), mass))


@dataclass(frozen=True)
class StraightThroughGate(ZeroOneGate):
    """1 where the base's sample is above 1/2, else 0; the gradient is that of the base's sample, as if it had passed.

    There is no gap between a training step and the cut network, at the price of a biased gradient: it is that of no loss
    function (Maddison, Mnih, Teh, 2017, arXiv:1611.00712, section 6).

    Attributes:
        base: The relaxed gate.

    Source: Bengio, Léonard, Courville (2013), arXiv:1308.3432, section 4; with concrete samples Jang, Gu, Poole (2017),
    arXiv:1611.01144, section 2.2.
    """

    base: GateDistribution

    initial_log_alpha: ClassVar[float] = 4.0

    @property
    def name(self) -> str:  # type: ignore[override]
        """The base's name with "-st" behind it."""
        return f"{self.base.name}-st"

    def at(self, progress: float, affordable: Callable[[], int]) -> StraightThroughGate:
        """The same of the base as it is at that moment."""
        base = self.base.at(progress, affordable)
        return self if base is self.base else replace(self, base=base)

    def rsample(self, log_alpha: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """One sample a gate, shape `(n_gates,)`, exactly 0 or 1."""
        relaxed = self.base.rsample(log_alpha, generator=generator)
        rounded = (relaxed.detach() > 0.5).to(relaxed.dtype)
        return pathwise(rounded, (relaxed,), (torch.ones_like(rounded),))

    def prob_open(self, log_alpha: Tensor) -> Tensor:
        """P(z = 1), the probability that the base is above 1/2, shape `(n_gates,)`, in (0, 1)."""
        return self.base.survival(log_alpha, log_alpha.new_full((), 0.5))

    def prob_zero(self, log_alpha: Tensor) -> Tensor:
        """P(z = 0), shape `(n_gates,)`, in (0, 1)."""
        return self.base.cdf(log_alpha, log_alpha.new_full((), 0.5))
