"""What moves the gates beside the task: a budget's constraint or a fixed penalty, and the gates' own optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from l0prune.cost.products import ProductCost
from l0prune.errors import ConfigError
from l0prune.gates.bank import GateBank
from l0prune.gates.holding import hold_
from l0prune.gates.optimizer import GateOptimizerConfig
from l0prune.goals.budget import Budget
from l0prune.goals.lagrangian import Constraint

__all__ = ["GateTraining", "require_priceable"]


def require_priceable(gates: GateBank) -> None:
    """See that a price changes which gates are open.

    Raises:
        ConfigError: if only a budget does.
    """
    if gates.distribution.needs_budget:
        raise ConfigError(
            f"{gates.distribution.name} gates have as many open as a budget pays for: give a budget instead of a penalty,"
            " or choose another gate"
        )


class GateTraining:
    """Steps the gates of a model towards a budget, or against a price for each of them.

    Args:
        gates: What is trained.
        costs: Metric to cost model.
        budget: What the open gates may cost, or None.
        prices: Added to the objective for each open gate, shape `(n_gates,)`, or None; not with a budget.
        steps: Number of training steps with gates, >= 1; needed with either.
        optimizer: Settings of the gates' optimizer.

    Raises:
        ConfigError: a budget or prices without steps, or prices for gates whose number only a budget sets.

    Attributes:
        budget: As given.
        constraint: Target ramp and multiplier, or None without a budget.
    """

    def __init__(
        self,
        gates: GateBank,
        costs: Callable[[str], ProductCost],
        *,
        budget: Budget | None = None,
        prices: Tensor | None = None,
        steps: int | None = None,
        optimizer: GateOptimizerConfig | None = None,
    ) -> None:
        has_goal = budget is not None or prices is not None
        if has_goal and (steps is None or steps < 1):
            raise ConfigError(
                f"steps is {steps}; a budget or penalty needs the number of training steps, 1 or more, to set its pace"
            )
        if prices is not None:
            require_priceable(gates)
        self.budget = budget
        self.constraint = None if budget is None or steps is None else Constraint(budget.keep, steps)
        self._gates = gates
        self._costs = costs
        self._prices = prices
        self._steps = steps or 1
        self._done = 0
        self._optimizer = (optimizer or GateOptimizerConfig()).build([gates.log_alpha], self._steps)
        self._expected_cost: float | None = None
        self._advance()

    @property
    def has_goal(self) -> bool:
        """Whether there is anything but the task that moves the gates."""
        return self.budget is not None or self._prices is not None

    def penalty(self) -> Tensor:
        """What goes to the objective, scalar. Zero once the gates are frozen.

        Raises:
            ConfigError: there is neither a budget nor a penalty.
        """
        self._require_goal()
        gates = self._gates
        if gates.frozen:
            return gates.log_alpha.new_zeros(())
        is_open = gates.open_probability()
        if self._prices is not None:
            return torch.dot(self._prices.to(is_open), is_open)
        constraint, budget = self._constrained()
        expected = self._costs(budget.metric).expected(is_open)
        self._expected_cost = float(expected.detach())
        return constraint.penalty(expected)

    def step(self) -> None:
        """After `backward()`: move the gates and the multiplier on, and clear the gates' gradient.

        Raises:
            ConfigError: there is neither a budget nor a penalty.
        """
        self._require_goal()
        log_alpha = self._gates.log_alpha
        if self._gates.frozen or log_alpha.grad is None:
            log_alpha.grad = None
            return
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(log_alpha.grad)
            log_alpha.grad /= dist.get_world_size()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._gates.clamp_()
        self._done += 1
        if self.constraint is not None:
            self._follow()
        self._advance()
        is_held = self._steps < self._gates.distribution.held_below
        if is_held and self.constraint is not None and self.constraint.presses:
            self._hold()

    def state_dict(self) -> dict[str, Any]:
        """Optimizer, multiplier, position and noise, as tensors and plain numbers, to resume exactly."""
        return {
            "optimizer": self._optimizer.state_dict(),
            "constraint": None if self.constraint is None else self.constraint.state_dict(),
            "steps": self._done,
            "noise": self._gates.get_rng_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self._optimizer.load_state_dict(state["optimizer"])
        if self.constraint is not None and state["constraint"] is not None:
            self.constraint.load_state_dict(state["constraint"])
        self._done = state["steps"]
        self._gates.set_rng_state(state["noise"])
        self._advance()

    def _follow(self) -> None:
        """Let the multiplier follow the cost the gates have now."""
        constraint, budget = self._constrained()
        costs = self._costs(budget.metric)
        if self._expected_cost is None:
            self._expected_cost = float(costs.expected(self._gates.open_probability()).detach())
        constraint.step(self._expected_cost, costs.hard(self._gates.values().detach() != 0))
        self._expected_cost = None

    def _hold(self) -> None:
        """Let the gates not run past the target that comes next."""
        constraint, budget = self._constrained()
        floor = constraint.target - constraint.config.slack
        hold_(self._gates, self._costs(budget.metric).expected, floor)

    def _advance(self) -> None:
        """Tell the gates where in their phase they are; it follows from the steps done and the locations alone."""
        constraint, budget = self.constraint, self.budget
        if constraint is None or budget is None:
            self._gates.advance(min(self._done / self._steps, 1.0), lambda: self._gates.n_gates)
            return
        costs, target = self._costs(budget.metric), constraint.target
        scores = self._gates.log_alpha.detach()
        self._gates.advance(constraint.progress, lambda: costs.affordable(scores.double().cpu().numpy(), target))

    def _constrained(self) -> tuple[Constraint, Budget]:
        if self.constraint is None or self.budget is None:
            raise RuntimeError("there is no budget")
        return self.constraint, self.budget

    def _require_goal(self) -> None:
        if not self.has_goal:
            raise ConfigError(
                "the gated model has neither a budget nor a penalty; pass budget= or penalty=, and steps=, to inject()"
            )
