"""What moves the gates beside the task: the goal as it is pursued, and the gates' own optimizer."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from l0prune.cost.kinds import Costs
from l0prune.errors import ConfigError
from l0prune.gated.evidence import EvidenceMover
from l0prune.gates.bank import GateBank
from l0prune.gates.optimizer import GateOptimizerConfig, average_over_processes_, hold_
from l0prune.goals.goal import Goal, Pursuit

__all__ = ["GateTraining"]


class GateTraining:
    """Steps the gates of a model towards a goal.

    Args:
        gates: What is trained.
        costs: Of the model.
        goal: What is wanted of them.
        steps: Number of training steps with gates, >= 1; needed where anything is wanted.
        optimizer: Settings of the gates' optimizer.

    Raises:
        ConfigError: a goal without steps.

    Attributes:
        goal: As given.
        pursuit: The goal as it is pursued over these steps.
    """

    def __init__(
        self,
        gates: GateBank,
        costs: Costs,
        goal: Goal,
        steps: int | None = None,
        *,
        optimizer: GateOptimizerConfig | None = None,
    ) -> None:
        if goal.kind and (steps is None or steps < 1):
            raise ConfigError(
                f"steps is {steps}; a budget or penalty needs the number of training steps, 1 or more, to set its pace"
            )
        self._steps = steps or 1
        self.goal = goal
        config = optimizer or GateOptimizerConfig()
        self.pursuit: Pursuit = goal.pursuit(costs, self._steps, placed=config.places)
        self._gates = gates
        self._done = 0
        self._optimizer = config.build(gates.trained, self._steps)
        places = config.places and bool(self.pursuit.constraints)
        self._evidence = EvidenceMover(gates, self.pursuit, config, goal.branches(costs)) if places else None
        gates.watched = places
        self.advance()

    def penalty(self) -> Tensor:
        """What goes to the objective, scalar. Zero once the gates are frozen.

        Raises:
            ConfigError: there is neither a budget nor a penalty.
        """
        self._require_goal()
        gates = self._gates
        if gates.frozen:
            return gates.locations.new_zeros(())
        return self.pursuit.penalty(gates.open_probability())

    def step(self) -> None:
        """After `backward()`: move the gates and the multiplier on, and clear the gates' gradient.

        Raises:
            ConfigError: there is neither a budget nor a penalty.
        """
        self._require_goal()
        log_alpha = self._gates.log_alpha
        effects = self._gates.take_effects()
        if self._evidence is not None and effects is not None and not self._gates.frozen:
            log_alpha.grad = None
            prices = self._evidence.step(effects)
            self._done += 1
            self.pursuit.step(self._gates, prices=prices)
            self.advance()
            return
        if self._gates.frozen or log_alpha.grad is None:
            log_alpha.grad = None
            return
        average_over_processes_(log_alpha.grad)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._gates.clamp_()
        self._done += 1
        self.pursuit.step(self._gates)
        self.advance()
        if self._steps < self._gates.distribution.held_below:
            self._hold()

    def observe(self, squares: Tensor, count: float) -> None:
        """Take in evidence that was gathered before the first step; nothing where gates follow their gradient.

        Args:
            squares: Means of (z dL/dz)^2 over batches, shape `(n_gates,)`.
            count: Number of the batches.
        """
        if self._evidence is not None:
            self._evidence.observe(squares, count)

    @property
    def worth(self) -> Tensor | None:
        """What each unit was seen to be worth to the loss, shape `(n_gates,)`; None where nothing was seen."""
        return None if self._evidence is None else self._evidence.worth

    def state_dict(self) -> dict[str, Any]:
        """Optimizer, multiplier, position and noise, as tensors and plain numbers, to resume exactly."""
        return {
            "optimizer": self._optimizer.state_dict(),
            "evidence": None if self._evidence is None else self._evidence.state_dict(),
            "constraint": self.pursuit.state_dict(),
            "steps": self._done,
            "noise": self._gates.get_rng_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self._optimizer.load_state_dict(state["optimizer"])
        if state.get("evidence") is None:  # the gates of this state follow their gradient
            self._evidence, self._gates.watched = None, False
        elif self._evidence is not None:
            self._evidence.load_state_dict(state["evidence"])
        if state["constraint"] is not None:
            self.pursuit.load_state_dict(state["constraint"])
        self._done = state["steps"]
        self._gates.set_rng_state(state["noise"])
        self.advance()

    def advance(self) -> None:
        """Tell the gates where in their phase they are; it follows from the steps done and the locations alone."""
        scores = self._gates.log_alpha.detach()
        self._gates.advance(
            min(self._done / self._steps, 1.0), lambda: self.pursuit.affordable(scores.double().cpu().numpy())
        )

    def _hold(self) -> None:
        """Let the gates not run past the targets that come next."""
        hold_(self._gates, self.pursuit.excess, 0.0)

    def _require_goal(self) -> None:
        if not self.goal.kind:
            raise ConfigError(
                "the gated model has neither a budget nor a penalty; pass budget= or penalty=, and steps=, to inject()"
            )
