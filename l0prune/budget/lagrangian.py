"""The budget as an inequality constraint on the expected cost: a moving target and a multiplier that follows it."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from l0prune.errors import ConfigError

__all__ = ["Constraint", "ConstraintConfig"]


@dataclass(frozen=True)
class ConstraintConfig:
    """Settings of the constraint.

    Attributes:
        ramp: share of the steps in which the target goes down from the initial cost to the budget, in [0, 1].
        proportional: gain of the multiplier on the violation itself, >= 0.
        integral: gain of the multiplier on the summed violation, per step, >= 0.
    """

    ramp: float = 0.65
    proportional: float = 100.0
    integral: float = 1.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 <= self.ramp <= 1:
            raise ConfigError(f"constraint ramp is {self.ramp}; expected a share of the steps in [0, 1]")
        if not (self.proportional >= 0 and self.integral >= 0):
            raise ConfigError(f"constraint gains are {self.proportional} and {self.integral}; expected numbers >= 0")


class Constraint:
    """Keeps the expected cost at or under a target that ramps down to the budget.

    Args:
        keep: final target, fraction of the dense cost, in (0, 1].
        steps: steps of the gate phase, >= 1.
        config: gains and ramp.
    """

    def __init__(self, keep: float, steps: int, config: ConstraintConfig | None = None) -> None:
        if not 0 < keep <= 1:
            raise ConfigError(f"constraint keep is {keep}; expected a fraction of the dense cost in (0, 1]")
        if steps < 1:
            raise ConfigError(f"constraint steps is {steps}; expected 1 or more")
        self.keep = keep
        self.steps = steps
        self.config = ConstraintConfig() if config is None else config
        self.multiplier = 0.0
        self.hard_cost = 1.0
        self._integral = 0.0
        self._step = 0
        self._initial_cost = 1.0

    @property
    def target(self) -> float:
        """Target of the current step, fraction of the dense cost, in [keep, 1]."""
        ramp_steps = self.config.ramp * self.steps
        progress = 1.0 if self._step >= ramp_steps else self._step / ramp_steps
        return self._initial_cost + (min(self.keep, self._initial_cost) - self._initial_cost) * progress

    def penalty(self, expected_cost: Tensor) -> Tensor:
        """What to add to the loss: multiplier * (expected cost - target), a scalar."""
        return self.multiplier * (expected_cost - self.target)

    def step(self, expected_cost: float, hard_cost: float) -> None:
        """Move target and multiplier on by one step.

        Args:
            expected_cost: expected cost of the gates, fraction of dense.
            hard_cost: cost after thresholding, fraction of dense; reported, not acted on.
        """
        if self._step == 0:
            self._initial_cost = expected_cost
        self._step += 1
        violation = expected_cost - self.target
        self._integral = max(0.0, self._integral + self.config.integral * violation)
        self.multiplier = max(0.0, self._integral + self.config.proportional * violation)
        self.hard_cost = hard_cost

    def state_dict(self) -> dict[str, float]:
        """Everything that changes, as plain numbers."""
        return {
            "step": float(self._step),
            "multiplier": self.multiplier,
            "integral": self._integral,
            "initial_cost": self._initial_cost,
            "hard_cost": self.hard_cost,
        }

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continue from `state_dict`."""
        self._step = int(state["step"])
        self.multiplier = state["multiplier"]
        self._integral = state["integral"]
        self._initial_cost = state["initial_cost"]
        self.hard_cost = state["hard_cost"]
