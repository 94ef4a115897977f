"""A trained model with L0 gates on the weights that consume its units; the model itself stays as it is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from l0prune.cost.kinds import Costs
from l0prune.errors import ConfigError, TraceError
from l0prune.flow.channel_flow import ChannelFlow
from l0prune.gated.calling import SHARED, CalledLikeItsModel
from l0prune.gated.in_step import sizes_in_step
from l0prune.gated.initial import DropRate, initial_locations
from l0prune.gated.open_norms import MaskedNorms
from l0prune.gated.substitution import Substitution
from l0prune.gated.tensors import Origin, places_of, require_same_model, tensor_of
from l0prune.gated.training import GateTraining
from l0prune.gates.bank import GateBank
from l0prune.gates.distribution import GateDistribution
from l0prune.gates.optimizer import GateOptimizerConfig
from l0prune.gates.registry import gate_distribution
from l0prune.goals.budget import Budget, Budgets, one_goal
from l0prune.goals.goal import Goal
from l0prune.goals.lagrangian import Constraint
from l0prune.goals.penalty import Penalty
from l0prune.model_call import set_mode, signature_of
from l0prune.recomputation import in_backward_pass, kept_for_backward

__all__ = ["GatedModel", "inject"]


def inject(
    model: nn.Module,
    flow: ChannelFlow,
    *,
    gate: str | GateDistribution = "hard-concrete",
    gate_args: Mapping[str, Any] | None = None,
    budget: Budget | Sequence[Budget] | None = None,
    penalty: Penalty | None = None,
    steps: int | None = None,
    gate_optimizer: GateOptimizerConfig | None = None,
    droprate: DropRate | None = None,
    depth: bool | None = None,
    uniform: bool = False,
    seed: int = 0,
) -> GatedModel:
    """Put gates on the units that `flow` found in `model`.

    Args:
        model: The traced model. It is used, not copied, and not edited: its parameters stay its own.
        flow: From `trace(model, ...)`.
        gate: The gate distribution: one of the names `l0prune.gates.registry.gate_names()`, or a `GateDistribution` of your own.
        gate_args: Parameters that replace the defaults of a distribution given by name, as in `{"temperature": 0.5}`.
        budget: What the open units may cost, as one or several bounds; `penalty()` and `step()` need this or a penalty.
        penalty: Price of open units instead of a budget; its `n_samples` must be known.
        steps: Number of training steps with gates; required with either, since it sets the ramp and the learning rate.
        gate_optimizer: Settings of the gates' own optimizer.
        droprate: In (0, 1); gates start at log((1 - droprate) / droprate). Can be given by layer, as in `{"fc1": 0.2}`, with
            the empty name for the other gates. None starts all of them nearly fully open.
        depth: Whether residual branches may close as a whole; None lets them under a budget whose metric goes in steps.
        uniform: Whether all layers end with the same widths, as the configuration of a model of transformers can say them
            (`l0prune.hf.save_pretrained` then writes a folder that transformers loads alone); needs a budget.
        seed: Seed of initial jitter and sampling noise.

    Returns:
        The gated model.

    Raises:
        ConfigError: unknown gate, parameter of it or layer, a drop rate out of range, a budget or penalty without steps, or both.
        BudgetInfeasibleError: closing every gate does not meet the budget; says what can be met, and which layers prevent more.
        PlanMismatchError: `flow` was traced on a model with other tensors.
    """
    require_same_model(model, flow)
    distribution = gate_distribution(gate, **(gate_args or {}))
    start = distribution.initial_log_alpha
    initial = None if droprate is None else initial_locations(flow, droprate, default=start)
    bank = GateBank(flow.n_gates, distribution=distribution, initial=initial, seed=seed)
    goal = None if budget is None and penalty is None else one_goal(budget, penalty).with_depth(depth)
    if uniform:
        goal = (Goal() if goal is None else goal).uniform(sizes_in_step(model))
    return GatedModel(model, flow, bank, goal=goal, steps=steps, gate_optimizer=gate_optimizer)


class GatedModel(nn.Module):
    """Computes what `model` would compute if each unit were scaled by its gate wherever it is consumed.

    In training mode every call draws new gates, one value per gate for the whole batch; in evaluation mode gates take
    their test-time values. State-dict keys are `model.*` and `gates.*`. `parameters()` yields only the model's own
    parameters: the gates have their own optimizer, stepped by `step()`, and are buffers, so that averages of the model
    include them.

    Attributes:
        model: The user's model.
        flow: What was traced.
        gates: The gate bank.
        costs: Metric -> cost of the model as a function of its gates.
    """

    def __init__(
        self,
        model: nn.Module,
        flow: ChannelFlow,
        gates: GateBank,
        *,
        goal: Goal | None = None,
        steps: int | None = None,
        gate_optimizer: GateOptimizerConfig | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.gates = gates
        self.flow = flow
        self.costs = Costs(flow)
        self.set_goal(goal, steps, gate_optimizer=gate_optimizer)
        indices = [torch.from_numpy(consumer.gates) for consumer in flow.consumers]
        indices += [torch.from_numpy(site.gates) for site in flow.norms]
        flat = torch.cat(indices) if indices else torch.zeros(0, dtype=torch.int64)
        # -1 (not gated) points at the one that is appended to the gate values.
        self._index = torch.where(flat < 0, flow.n_gates, flat)  # no buffer: averages of buffers would break it
        self._lengths = [len(index) for index in indices]
        self._n_consumed = sum(self._lengths[: len(flow.consumers)])
        self._places = places_of(model, {consumer.parameter for consumer in flow.consumers})
        self._origin = Origin(model, gates.locations)
        self._dense: tuple[nn.Module, ...] = ()

    def __getattr__(self, name: str) -> Any:
        """What trainers ask of the model itself."""
        if name in SHARED and "model" in self.__dict__.get("_modules", {}):
            return getattr(self.model, name)
        return super().__getattr__(name)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begin as a copy."""
        super().__setstate__(state)
        self._origin = Origin(self.model, self.gates.locations)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GatedModel:
        """Move or convert weights and gates."""
        is_as_made = not self._origin.weights_moved(self.model)
        super()._apply(fn, recurse)
        if is_as_made:
            self._origin = Origin(self.model, self.gates.locations)
        return self

    def require_own_gates(self) -> None:
        """Check that gates which are about to be cut were trained, or averaged, if the weights were.

        Raises:
            ConfigError: the weights have changed since this model was made or copied, but its gates have not.
        """
        if not self._origin.gates_moved(self.gates.locations) and self._origin.weights_moved(self.model):
            raise ConfigError(
                "the weights have moved since this gated model was made or copied, but its gates have not: an average of"
                " parameters() must take the buffers along, or have the gates of the model that is trained,"
                " averaged.gates.load_state_dict(gated.gates.state_dict()); a loop of your own must call gated.step();"
                " and gates that are to stay as they are must be frozen, gated.freeze()"
            )

    @property
    def n_gates(self) -> int:
        """Number of gates."""
        return self.gates.n_gates

    @property
    def __signature__(self) -> inspect.Signature | None:
        """What the model's own forward pass takes."""
        return signature_of(self.model)

    @property
    def frozen(self) -> bool:
        """Whether the gates are fixed numbers."""
        return self.gates.frozen

    def train(self, mode: bool = True) -> GatedModel:
        """Set the mode; the module of an exported program keeps its own."""
        self.training = mode
        for part in self.children():
            set_mode(part, training=mode)
        return self

    @CalledLikeItsModel
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model with gated weights, or the compact one that stands in for it.

        Raises:
            TraceError: the model takes another path than when it was traced; or new gates would be drawn in a backward pass.
        """
        if self._dense:
            return self.model(*args, **kwargs)
        if self.training and not self.frozen and in_backward_pass():
            raise TraceError(
                "the gated model is called in a backward pass, as a checkpoint around it does, and would draw other gates than"
                " in the forward pass: put checkpoints inside the model that has the gates, or freeze() them"
            )
        z = self.gates()
        with torch.inference_mode(mode=False):  # it is kept, and autograd takes no tensor of inference mode
            self._index = self._index.to(z.device)
        extended = torch.cat([z, z.new_ones(1)])[self._index]
        weights = self._gated_weights(extended[: self._n_consumed])
        placed = {place: weight for name, weight in weights.items() for place in self._places[name]}
        with ExitStack() as stack:
            if self.flow.norms:
                is_open = extended[self._n_consumed :].detach() > self.gates.threshold
                masks = is_open.split(self._lengths[len(self.flow.consumers) :])
                stack.enter_context(kept_for_backward(self._masked_norms(masks)))
            stack.enter_context(kept_for_backward(Substitution(self.model, placed)))
            return self.model(*args, **kwargs)

    def _masked_norms(self, masks: Sequence[Tensor]) -> MaskedNorms:
        called = self.flow.captured.norms
        by_weight: dict[int, Tensor | None] = {id(tensor_of(self.model, name)): None for name in called.weights}
        by_order: dict[tuple[str, int], Tensor] = {}
        for site, mask in zip(self.flow.norms, masks, strict=True):
            if site.weight is None:
                by_order[site.kind, site.order] = mask
            else:
                by_weight[id(tensor_of(self.model, site.weight))] = mask
        return MaskedNorms(by_weight, by_order, called.n_others)

    def _gated_weights(self, factors: Tensor) -> dict[str, Tensor]:
        """Consumers multiplied by their gates along the contracting dimension."""
        weights: dict[str, Tensor] = {}
        pieces = factors.split(self._lengths[: len(self.flow.consumers)])
        for consumer, piece in zip(self.flow.consumers, pieces, strict=True):
            weight = weights.get(consumer.parameter)
            if weight is None:
                weight = tensor_of(self.model, consumer.parameter)
            shape = [1] * weight.dim()
            shape[consumer.dim] = -1
            weights[consumer.parameter] = weight * piece.to(weight.dtype).view(shape)
        return weights

    def stand_for_(self, compact: nn.Module | None) -> None:
        """Hold a network that was cut from this one in place of the model, so that its weights are called, trained and saved.

        Args:
            compact: The network; None takes the model back.
        """
        if compact is not None:
            self._dense = self._dense or (self.model,)  # in a tuple it is no part of this module
            self.model = compact
        elif self._dense:
            self.model, self._dense = self._dense[0], ()

    @property
    def starts_open(self) -> bool:
        """Whether the gates are still where `inject` puts them when nobody says where."""
        return not self.gates.is_placed and not self._origin.gates_moved(self.gates.locations)

    def place_gates_(self, locations: Tensor) -> None:
        """Put the gates at locations of shape `(n_gates,)`, before they are trained; multipliers and optimizer stay."""
        self.gates.place_(locations)
        self._gate_training.advance()

    def open_probability(self) -> Tensor:
        """Probability that each unit is open, shape `(n_gates,)`; 0 or 1 once frozen."""
        return self.gates.open_probability()

    def gate_values(self) -> Tensor:
        """Test-time value of every gate, shape `(n_gates,)`, in [0, 1]; a copy."""
        return self.gates.values().detach().clone()

    def freeze(self, values: Tensor | None = None) -> None:
        """Fix the gates.

        Args:
            values: Shape `(n_gates,)`, in [0, 1]; None takes the test-time values.

        Raises:
            ConfigError: wrong shape or range.
        """
        self.gates.freeze(values)

    def unfreeze(self) -> None:
        """Make the gates random again."""
        self.gates.unfreeze()

    def expected_cost(self, metric: str | None = None) -> Tensor:
        """Expected cost under the gate distributions, fraction of dense, scalar, differentiable in the gates.

        Args:
            metric: What to count; None is the metric of the first budget, "macs" without one.
        """
        return self.costs(metric or self.goal.metrics[0]).expected(self.open_probability())

    def hard_cost(self, metric: str | None = None) -> float:
        """Cost with the gates that are open at test time, fraction of dense; `metric` as in `expected_cost`."""
        return self.costs(metric or self.goal.metrics[0]).hard(self.gate_values() != 0)

    def set_goal(
        self, goal: Goal | None, steps: int | None, *, gate_optimizer: GateOptimizerConfig | None = None
    ) -> None:
        """Set the goal of the gates; multipliers and the gate optimizer are reset, and the gates stay where they are.

        Args:
            goal: Budgets or a penalty; None removes the current goal.
            steps: Number of training steps with gates, >= 1; needed with a goal.
            gate_optimizer: Settings of the gates' own optimizer.

        Raises:
            ConfigError: a goal without steps, or one that these gates or layers cannot follow; nothing has changed then.
            BudgetInfeasibleError: with every gate closed the model costs more; nothing has changed then.
        """
        goal = Goal() if goal is None else goal
        goal.check(self.costs, self.gates)
        self._gate_training = GateTraining(self.gates, self.costs, goal, steps, optimizer=gate_optimizer)

    def set_budget(
        self,
        budget: Budget | Sequence[Budget] | None,
        steps: int | None,
        *,
        gate_optimizer: GateOptimizerConfig | None = None,
    ) -> None:
        """Limit what the open units may cost, by one or several budgets: `set_goal`. None removes budget and penalty."""
        self.set_goal(None if budget is None else Budgets.of(budget), steps, gate_optimizer=gate_optimizer)

    def set_penalty(
        self, penalty: Penalty, steps: int | None, *, gate_optimizer: GateOptimizerConfig | None = None
    ) -> None:
        """Put a fixed price on open units instead of a budget: `set_goal`. Its `n_samples` must be known."""
        self.set_goal(penalty, steps, gate_optimizer=gate_optimizer)

    @property
    def goal(self) -> Goal:
        """The goal of the gates."""
        return self._gate_training.goal

    @property
    def constraints(self) -> Mapping[str, Constraint]:
        """Metric -> target ramp and multiplier of each budget."""
        return self._gate_training.pursuit.constraints

    def penalty(self) -> Tensor:
        """What the budget or the prices add to the loss, scalar. Zero once the gates are frozen.

        Raises:
            ConfigError: the model was injected without either.
        """
        return self._gate_training.penalty()

    def step(self) -> None:
        """After `backward()`: update the gates and the multiplier, and clear the gates' gradient.

        Raises:
            ConfigError: the model was injected without a budget or penalty.
        """
        self._gate_training.step()

    def observe(self, squares: Tensor, count: float = 1.0) -> None:
        """Take in evidence of what units are worth, gathered before the first `step()`.

        Args:
            squares: Means over batches of (z dL/dz)^2, shape `(n_gates,)`.
            count: Number of the batches, > 0.
        """
        self._gate_training.observe(squares, count)

    @property
    def worth(self) -> Tensor | None:
        """What each unit was seen to be worth to the loss, shape `(n_gates,)`; None where gates follow their gradient."""
        return self._gate_training.worth

    def training_state(self) -> dict[str, Any]:
        """Optimizer, multiplier and noise of the gates, as tensors and plain numbers, to resume exactly."""
        return self._gate_training.state_dict()

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Continue from `training_state()`."""
        self._gate_training.load_state_dict(state)
