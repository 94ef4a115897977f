"""Binary samples in the forward pass with the slopes of a relaxed gate in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from l0prune.gates.distribution import GateDistribution
from l0prune.gates.pathwise import pathwise
from l0prune.gates.zero_one import ZeroOneGate

__all__ = ["StraightThroughGate"]


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
