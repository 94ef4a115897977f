"""Budgets as inequality constraints on expected costs: targets that ramp down, multipliers that follow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from l0prune.cost.cost import Cost
from l0prune.errors import ConfigError
from l0prune.gates.bank import GateBank
from l0prune.goals.goal import FloatArray, Pursuit
from l0prune.options import Options, documented, option

__all__ = ["PLACED", "ConstrainedPursuit", "Constraint", "ConstraintConfig"]

_SMALLEST_LEVEL, _LARGEST_LEVEL = 1e-3, 1e6
_LARGEST_BOOST = 100.0
_TREND_DECAY = 0.8
_STATE = ("_step", "multiplier", "_log_level", "_violation", "_trend", "_initial_cost", "expected_cost", "hard_cost")


@documented
@dataclass(frozen=True)
class ConstraintConfig(Options):
    """Settings of the target's ramp and the multiplier's controller; the defaults suit 300 to 5000 steps."""

    ramp: float = option(
        0.7, "Share of the steps in which the target goes down from the initial cost to the budget.", within="[0, 1]"
    )
    smoothness: float = option(
        0.5, "Shape of the ramp: 0 is linear, 1 is a cosine, between them their blend.", within="[0, 1]"
    )
    steepness: float = option(
        1.0, "Power by which the ramp is steep at first and flat in the end; 1 leaves its shape.", within="[1, inf)"
    )
    initial_multiplier: float = option(5.0, "Where the multiplier's level starts.", within="(0, inf)")
    gain: float = option(100.0, "How fast the logarithm of the multiplier grows with the violation.", within="[0, inf)")
    lookahead: float = option(20.0, "Steps by which the violation is extrapolated along its trend.", within="[0, inf)")
    integral_time: float = option(
        0.1,
        "Share of the steps after which a steady violation has moved the level as far as it moves the multiplier at once.",
        within="(0, inf)",
    )
    slack: float = option(
        0.01, "The multiplier is zero where the extrapolated cost is this far under the target.", within="(0, inf)"
    )


PLACED = ConstraintConfig(ramp=0.9, smoothness=0.0, steepness=3.0)
"""For gates that are placed where their target is, which need no time to follow it: most units, which are missed little, close
early, and those that matter one by one, so that the weights adapt to each. Zhu, Gupta (2017), arXiv:1710.01878, equation 1."""


class Constraint:
    """Keeps the expected cost at or under a target that ramps down to the budget.

    The multiplier is `level * exp(gain * (violation + lookahead * trend))`, where the level integrates the violation
    multiplicatively, and the factor beside it is at most 100. Working with its logarithm makes the controller
    indifferent to the scale of the task loss: it finds a multiplier of 0.1 or 1000 in about the same time. The trend
    term lets go of the gates before they overshoot, since a gate that has closed hardly hears the task loss any more;
    and the multiplier is zero as soon as the cost is under the target by `slack`, so that nothing but the task loss
    moves gates then.

    Args:
        keep: final target, fraction of the dense cost, in (0, 1].
        steps: steps of the gate phase, >= 1.
        config: ramp and controller.

    Raises:
        ConfigError: if `keep` or `steps` is out of range.

    Source: inequality constraints on gates with multipliers that restart when feasible: Gallego-Posada et al. (2022),
    arXiv:2208.04425; proportional and integral terms for multipliers: Sohrabi et al. (2024), nuPI, arXiv:2406.04558.
    The multiplicative form and the trend term are this project's.
    """

    def __init__(self, keep: float, steps: int, config: ConstraintConfig | None = None) -> None:
        if not 0 < keep <= 1:
            raise ConfigError(f"constraint keep is {keep!r}; expected a fraction of the dense cost in (0, 1]")
        if steps < 1:
            raise ConfigError(f"constraint steps is {steps!r}; expected 1 or more")
        self.keep = float(keep)
        self.steps = int(steps)
        self.config = ConstraintConfig() if config is None else config
        self.multiplier = 0.0
        """Weight of the expected cost in the loss, >= 0; zero before the first `step`."""
        self.expected_cost = 1.0
        """Expected cost at the last `step`, fraction of dense."""
        self.hard_cost = 1.0
        """Cost after thresholding at the last `step`, fraction of dense."""
        self._step = 0
        self._initial_cost = 1.0
        self._log_level = math.log(self.config.initial_multiplier)
        self._violation = 0.0
        self._trend = 0.0

    @property
    def target(self) -> float:
        """Target of the current step, fraction of the dense cost; `keep` once the ramp is over."""
        ramp_steps = self.config.ramp * self.steps
        if self._step >= ramp_steps or not self.presses:
            return self.keep
        time = self._step / ramp_steps
        cosine = (1 - math.cos(math.pi * time)) / 2
        progress = self.config.smoothness * cosine + (1 - self.config.smoothness) * time
        return self.keep + (self._initial_cost - self.keep) * (1 - progress) ** self.config.steepness

    @property
    def presses(self) -> bool:
        """Whether the cost began above the budget, so that there is a way down."""
        return self._initial_cost > self.keep

    @property
    def progress(self) -> float:
        """Share of the gate phase that is over, in [0, 1]."""
        return min(self._step / self.steps, 1.0)

    def penalty(self, expected_cost: Tensor) -> Tensor:
        """What to add to the loss: multiplier * (expected cost - target), a scalar, negative while under the target.

        Args:
            expected_cost: scalar, fraction of dense, differentiable in the gates.
        """
        return self.multiplier * (expected_cost - self.target)

    def step(self, expected_cost: float, hard_cost: float, *, price: float | None = None) -> None:
        """Move target and multiplier on by one step; call it after the gates have moved.

        Args:
            expected_cost: expected cost of the gates, fraction of dense.
            hard_cost: cost after thresholding, fraction of dense; kept for reports, not acted on.
            price: takes the multiplier's place where the gates were placed by it.
        """
        if self._step == 0:
            self._initial_cost = expected_cost
        self._step += 1
        self.expected_cost, self.hard_cost = float(expected_cost), float(hard_cost)
        if price is not None:
            self.multiplier = price
            return
        violation = expected_cost - self.target
        if self._step == 1:
            self._violation = violation
        self._trend = _TREND_DECAY * self._trend + (1 - _TREND_DECAY) * (violation - self._violation)
        self._violation = violation
        self._log_level += self.config.gain * violation / (self.config.integral_time * self.steps)
        self._log_level = min(max(self._log_level, math.log(_SMALLEST_LEVEL)), math.log(_LARGEST_LEVEL))
        ahead = violation + self.config.lookahead * self._trend
        self.multiplier = 0.0
        if ahead >= -self.config.slack:
            boost = min(self.config.gain * ahead, math.log(_LARGEST_BOOST))
            self.multiplier = math.exp(min(self._log_level + boost, math.log(_LARGEST_LEVEL)))

    def state_dict(self) -> dict[str, float]:
        """Everything that changes from step to step, as plain numbers; with it the next steps repeat exactly."""
        return {name.removeprefix("_"): float(getattr(self, name)) for name in _STATE}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continue from `state_dict`.

        Raises:
            ConfigError: if a number is missing or left over; nothing has changed then.
        """
        if set(state) != set(self.state_dict()):
            wrong = ", ".join(sorted(set(state) ^ set(self.state_dict())))
            raise ConfigError(
                f"the constraint's state has missing or unknown keys: {wrong}; was it saved by this version?"
            )
        for name in _STATE:
            setattr(self, name, float(state[name.removeprefix("_")]))


class ConstrainedPursuit(Pursuit):
    """Budgets on their way through the gate phase, a constraint each.

    Args:
        bounds: Metric, cost and the fraction of it to keep, of each budget.
        steps: Steps of the gate phase, >= 1.
        placed: Whether the gates are placed where their target is, instead of following it.
    """

    def __init__(self, bounds: Sequence[tuple[str, Cost, float]], steps: int, *, placed: bool = False) -> None:
        config = PLACED if placed else None
        self.constraints = {metric: Constraint(keep, steps, config) for metric, _, keep in bounds}
        self._pairs = [(self.constraints[metric], cost) for metric, cost, _ in bounds]
        self._expected: list[float] = []

    def penalty(self, is_open: Tensor) -> Tensor:
        """The violations of the present targets by their multipliers."""
        costs = [cost.expected(is_open) for _, cost in self._pairs]
        self._expected = [float(cost.detach()) for cost in costs]
        penalties = [pair[0].penalty(cost) for pair, cost in zip(self._pairs, costs, strict=True)]
        return sum(penalties[1:], penalties[0])

    def marginal(self, is_open: Tensor) -> Tensor:
        """What opening each gate adds to each cost, shape `(n_bounds, n_gates)`."""
        with torch.enable_grad():
            leaf = is_open.detach().clone().requires_grad_()
            slopes = [torch.autograd.grad(cost.expected(leaf), leaf)[0] for _, cost in self._pairs]
        return torch.stack(slopes)

    def over(self, is_open: Tensor) -> list[float]:
        """How far each cost is above its present target; negative under it."""
        return [float(cost.expected(is_open)) - constraint.target for constraint, cost in self._pairs]

    def step(self, gates: GateBank, *, prices: Sequence[float] | None = None) -> None:
        """Let the multipliers follow the costs the gates have now, or be the prices that placed them."""
        if prices is not None or not self._expected:
            self.penalty(gates.open_probability().detach())
        is_open = gates.values().detach() != 0
        given = [None] * len(self._pairs) if prices is None else prices
        for (constraint, cost), expected, price in zip(self._pairs, self._expected, given, strict=True):
            constraint.step(expected, cost.hard(is_open), price=price)
        self._expected = []

    def affordable(self, scores: FloatArray) -> int:
        """How many gates, highest score first, all targets pay for."""
        return min(cost.affordable(scores, constraint.target) for constraint, cost in self._pairs)

    def excess(self, is_open: Tensor) -> float:
        """How far above its next target, less the slack, that cost is which is furthest above; infinite if none presses."""
        return max(
            (
                float(cost.expected(is_open)) - (constraint.target - constraint.config.slack)
                for constraint, cost in self._pairs
                if constraint.presses
            ),
            default=math.inf,
        )

    def state_dict(self) -> dict[str, Any]:
        """The state of each constraint by metric."""
        return {metric: constraint.state_dict() for metric, constraint in self.constraints.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`, or from that of a single constraint, as older versions wrote it."""
        only = next(iter(self.constraints))
        for metric, constraint in self.constraints.items():
            constraint.load_state_dict(state if "step" in state and metric == only else state[metric])
