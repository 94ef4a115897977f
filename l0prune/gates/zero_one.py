"""Gates whose samples are exactly 0 or 1."""

from typing import ClassVar

import torch
from torch import Tensor

from l0prune.gates.distribution import GateDistribution

__all__ = ["ZeroOneGate"]


class ZeroOneGate(GateDistribution):
    """A gate that is 1 with probability `prob_open` and 0 otherwise; nothing in between, so there is no density."""

    estimators: ClassVar[tuple[str, ...]] = ("median", "mean")

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
