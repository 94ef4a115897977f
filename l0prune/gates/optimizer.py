"""How gates are trained: their own Adam, with a learning rate that fits the number of steps, kept from running past a target."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from l0prune.errors import ConfigError
from l0prune.gates.bank import GateBank

__all__ = [
    "GateOptimizerConfig",
    "average_over_processes_",
    "hold_",
]


@dataclass(frozen=True)
class GateOptimizerConfig:
    """Settings of what moves the gates.

    Under a budget they are placed by evidence (`gated/evidence.py`); under a penalty, or where `lr` is given, they follow their
    gradient, by Adam without weight decay and without a schedule.

    Attributes:
        lr: learning rate of the locations, > 0; None lets `learning_rate` choose.
        betas: Adam's two decay rates, each in [0, 1).
        by_evidence: whether gates under a budget are placed by evidence; None does so where no `lr` is given.
        memory: steps that the running mean of the evidence is taken over, >= 1.
        sharpness: how fast the log-odds of being open grow with the logarithm of worth over cost, > 0.

    Raises:
        ConfigError: if a value is out of range.
    """

    lr: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    by_evidence: bool | None = None
    memory: float = 20.0
    sharpness: float = 4.0

    @property
    def places(self) -> bool:
        """Whether gates under a budget are placed by evidence."""
        return self.lr is None if self.by_evidence is None else self.by_evidence

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.lr is not None and not self.lr > 0:
            raise ConfigError(
                f"gate learning rate is {self.lr!r}; expected a positive number, or none for the rule of thumb"
            )
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"gate betas are {self.betas!r}; expected two numbers in [0, 1)")
        if not self.memory >= 1:
            raise ConfigError(f"memory of the evidence is {self.memory!r}; expected a number of steps, 1 or more")
        if not self.sharpness > 0:
            raise ConfigError(f"sharpness of the gates is {self.sharpness!r}; expected a positive number")

    def learning_rate(self, steps: int) -> float:
        """`lr`, or else 60 / steps in [0.002, 0.05]: a gate can cross its range a few times without a random walk.

        In phases shorter than 600 steps it is 30 / steps, at most 0.3: faster gates would decide on noise, and slower ones
        not at all (benchmarks/constraint_simulation.py).

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


def average_over_processes_(values: Tensor) -> None:
    """Replace values by their mean over the processes of a run, in place; alone they stay as they are."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)
        values /= dist.get_world_size()


_HALVINGS = 16


@torch.no_grad()
def hold_(gates: GateBank, cost: Callable[[Tensor], Tensor | float], floor: float) -> bool:
    """Raise all locations by the same amount, the least that brings the expected cost to `floor`, if it is below.

    Adam's momentum goes on for about ten steps after the multiplier has let go; where a step is a tenth of a gate's
    range, that is far past the target, and closed gates hardly hear the task loss any more. A shift that all gates share
    keeps what tells them apart. Their momentum stays as it is: without what it has in common they would drift apart by noise.

    Args:
        gates: Their locations move, within their bounds.
        cost: Expected cost of open probabilities of shape `(n_gates,)`, scalar, increasing in each of them.
        floor: Where to hold the cost.

    Returns:
        Whether they have moved.
    """
    start = gates.log_alpha.detach().clone()

    def cost_after(shift: float) -> float:
        gates.log_alpha.copy_(start + shift)
        gates.clamp_()
        return float(cost(gates.open_probability()))

    if cost_after(0.0) >= floor:
        return False
    low, high = 0.0, 2 * gates.bound
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if cost_after(middle) < floor else (low, middle)
    cost_after(high)
    return True
