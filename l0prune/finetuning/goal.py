"""What a run aims at: a budget that must hold, or a price that open gates pay."""

from __future__ import annotations

from l0prune.errors import ConfigError
from l0prune.goals.budget import Budget
from l0prune.goals.penalty import Penalty

__all__ = ["Goal", "metric_of", "one_goal", "record_of"]

Goal = Budget | Penalty


def one_goal(budget: Budget | None, penalty: Penalty | None) -> Goal:
    """The one that is given.

    Raises:
        ConfigError: if both are, or neither.
    """
    if budget is not None and penalty is not None:
        raise ConfigError(
            f"budget {budget} and penalty {penalty} exclude each other: a budget finds the price of open gates by"
            " itself; give one of them"
        )
    goal = budget if penalty is None else penalty
    if goal is None:
        raise ConfigError("nothing says what may be kept: give a budget (macs=0.5) or a penalty (lambda=0.1)")
    return goal


def metric_of(goal: Goal) -> str:
    """What `hard_cost` and `expected_cost` of a run count: the budget's metric, "macs" under a penalty."""
    return goal.metric if isinstance(goal, Budget) else "macs"


def record_of(goal: Goal) -> dict[str, str | None]:
    """Plain values for files: `budget` and `penalty` as they are written on the command line, one of them None."""
    is_budget = isinstance(goal, Budget)
    return {"budget": str(goal) if is_budget else None, "penalty": None if is_budget else str(goal)}
