"""What a fine-tuning run hands back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from l0prune.criteria.registry import GATES
from l0prune.gated.model import GatedModel
from l0prune.goals.goal import Goal

__all__ = ["Evaluate", "FinetuneResult", "Milestone", "figures_of"]

Evaluate = Callable[[nn.Module], float | Mapping[str, float]]
"""Judges a model in evaluation mode: one score, or figures by name."""


@dataclass(frozen=True)
class Milestone:
    """How good the network was at one moment.

    Attributes:
        step: Optimizer steps done.
        when: "warmup", "gate", "settle" or "recovery" at the end of an epoch, "freeze" just after the cut, "end".
        hard_cost: Cost of the open units, fraction of dense.
        figures: What `evaluate` returned.
    """

    step: int
    when: str
    hard_cost: float
    figures: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)


@dataclass(frozen=True, eq=False, repr=False)
class FinetuneResult:
    """The outcome of `finetune`.

    Attributes:
        compact: The network cut and recovered, in evaluation mode.
        gated: The gated model with the same weights and its gates frozen; it computes what `compact` does.
        goal: What was asked for.
        hard_costs: Cost of `compact` as a fraction of dense, in the metric of each budget, in order; under a penalty, in MACs.
        expected_cost: Expected cost under the gate distributions just before the freeze; 1 under a criterion.
        n_open: Gates that stayed open.
        steps: Optimizer steps of the run.
        history: Evaluations in order; empty without `evaluate`.
        method: What chose the units: "gates", or the name of a criterion.
        doubts: What speaks against the gate phase, in a sentence each.
    """

    compact: nn.Module
    gated: GatedModel
    goal: Goal
    hard_costs: dict[str, float]
    expected_cost: float
    n_open: int
    steps: int
    history: tuple[Milestone, ...]
    method: str = GATES
    doubts: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """One line: what was asked for and reached."""
        figures = "".join(f", {name} {value:.4g}" for name, value in self.evaluation.items())
        reached = f"cost {self.hard_cost:.4f} of dense, {self.n_open} of {self.gated.n_gates} gates open"
        return f"<FinetuneResult {self.goal}: {reached}, {self.steps} steps{figures}>"

    @property
    def budget_met(self) -> bool:
        """Whether the hard costs are at or under all budgets; True under a penalty, which sets none."""
        return self.goal.met(self.gated.costs, self.hard_costs)

    @property
    def hard_cost(self) -> float:
        """Cost of `compact`, fraction of dense, in the metric of the first budget; under a penalty in MACs."""
        return next(iter(self.hard_costs.values()))

    @property
    def evaluation(self) -> dict[str, float]:
        """Figures of the compact network at the end; empty without `evaluate`."""
        return dict(self.history[-1].figures) if self.history else {}

    def to_json(self) -> dict[str, Any]:
        """The figures as a JSON object, without the models."""
        return {
            **self.goal.record(),
            "method": self.method,
            "budget_met": self.budget_met,
            "hard_cost": self.hard_cost,
            "hard_costs": self.hard_costs,
            "expected_cost": self.expected_cost,
            "n_gates": self.gated.n_gates,
            "n_open": self.n_open,
            "steps": self.steps,
            "evaluation": self.evaluation,
            "doubts": "\n".join(self.doubts) or None,
            "history": [milestone.to_json() for milestone in self.history],
        }


def figures_of(outcome: float | Mapping[str, float]) -> dict[str, float]:
    """What an `Evaluate` returned, by name; a bare number is called "score"."""
    if isinstance(outcome, Mapping):
        return {str(name): float(value) for name, value in outcome.items()}
    return {"score": float(outcome)}
