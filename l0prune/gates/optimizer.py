"""How gates are trained: their own Adam, with a learning rate that fits the number of steps."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from l0prune.errors import ConfigError

__all__ = ["GateOptimizerConfig"]


@dataclass(frozen=True)
class GateOptimizerConfig:
    """Settings of the gates' optimizer: Adam without weight decay and without a schedule.

    Attributes:
        lr: learning rate of the locations, > 0; None lets `learning_rate` choose.
        betas: Adam's two decay rates, each in [0, 1).

    Raises:
        ConfigError: if a value is out of range.
    """

    lr: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.lr is not None and not self.lr > 0:
            raise ConfigError(
                f"gate learning rate is {self.lr!r}; expected a positive number, or none for the rule of thumb"
            )
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"gate betas are {self.betas!r}; expected two numbers in [0, 1)")

    def learning_rate(self, steps: int) -> float:
        """`lr`, or else 60 / steps in [0.002, 0.05]: a gate can cross its range a few times, and not random-walk.

        In phases shorter than 600 steps 30 / steps, at most 0.3: faster gates would decide on noise, slower ones not at
        all (benchmarks/constraint_simulation.py).

        Args:
            steps: optimizer steps in which the gates are trained, >= 1.
        """
        if self.lr is not None:
            return self.lr
        steps = max(steps, 1)
        return max(0.002, min(60.0 / steps, max(0.05, 30.0 / steps), 0.3))

    def build(self, parameters: Iterable[Tensor], steps: int) -> torch.optim.Adam:
        """The optimizer over `parameters` for a phase of `steps` steps."""
        return torch.optim.Adam(parameters, lr=self.learning_rate(steps), betas=self.betas, weight_decay=0.0)
