"""Gates that move on evidence: each is as far open as its unit is worth more to the loss than its share of the cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from l0prune.flow.branches import Branch
from l0prune.gates.bank import GateBank
from l0prune.gates.optimizer import GateOptimizerConfig, average_over_processes_
from l0prune.goals.goal import Pursuit

__all__ = ["EvidenceMover"]

_BEYOND, _LARGEST = 20.0, 700.0
"""How far beyond what any unit is worth a price is looked for, and the largest that is reported; logarithms."""
_WEIGHING, _LEAST_WEIGHT = 5.0, 1e-3
_LEAST_WORTH = 1e-12
"""Of the greatest: what a unit counts that the loss was never seen to depend on."""


class EvidenceMover:
    """Places gates by what their units are worth, at the price that the budget leaves.

    The worth of a unit is the running mean of (z dL/dz)^2 over the steps in which its gate was open, the diagonal of the Fisher
    information, by which the loss grows when the unit closes: at the minimum that a trained network is in, the gradient of a gate
    says nothing about closing it, and its square does. Of what was seen before the first step the proportions count alone: in
    evaluation, a trained network has squares 10^5 times smaller than those of steps, which would outweigh them at once. The
    location of a gate is

        log_alpha_i = start_i + sharpness * (log(worth_i / cost_i) - log(price)),

    its log-odds of being worth what it costs, where cost_i is what opening it adds to the expected cost. The price is the one at
    which the expected cost is on the target of the step. So a gate closes because others are worth more for their cost, not
    because a step was noisy; and what the network loses is measured while its weights adapt to what it has lost already.

    A branch has a location of its own, by what its units are worth together (`Branch.worth`) and what all of them cost, and is
    a ceiling for those of its units: the odds that a unit closes are those that it or its branch does,
    1/odds = 1/odds_i + 1/odds_b + 1/both. What a unit is worth its cost is asked as if its branch were open.

    Args:
        gates: What is moved.
        pursuit: Targets of the step, and what a gate adds to the costs.
        config: Memory and sharpness.
        branches: Sets of gates that may close together.

    Source: the estimate, Molchanov et al. (2019), arXiv:1906.10771, equation 8, and Theis et al. (2018), arXiv:1801.05787,
    equation 8; closing in small steps between which it is measured again is theirs too. Placing gates by it is this project's.
    """

    def __init__(
        self, gates: GateBank, pursuit: Pursuit, config: GateOptimizerConfig, branches: Sequence[Branch] = ()
    ) -> None:
        self._gates, self._pursuit, self._config = gates, pursuit, config
        self._start: Tensor | None = None
        self._price = 0.0
        n_bounds = len(pursuit.constraints)
        self._weights = torch.full((n_bounds,), 1 / max(1, n_bounds), dtype=torch.float64)
        self._worth = torch.zeros(gates.n_gates, dtype=torch.float64)
        self._seen = torch.zeros(gates.n_gates, dtype=torch.float64)
        self._branches = branches
        self._inside = [torch.from_numpy(branch.gates) for branch in branches]
        self._alone: Tensor | None = None
        self._is_level = False

    def observe(self, squares: Tensor, count: float = 1.0) -> None:
        """Take in squared effects.

        Args:
            squares: Means of (z dL/dz)^2, shape `(n_gates,)`; 0 where a gate was closed, which is no evidence.
            count: Of how many batches.
        """
        squares = squares.detach().to(self._worth)
        is_new = (squares > 0) & squares.isfinite()
        self._seen += count * is_new
        weight = (count / self._seen.clamp_max(self._config.memory).clamp_min(count)) * is_new
        self._worth = self._worth.lerp(torch.where(is_new, squares, self._worth), weight)

    def _level(self, squares: Tensor) -> None:
        """Bring what was seen before the first step to the sum that the squares of this step have at the same gates."""
        squares = squares.detach().to(self._worth)
        is_known = (squares > 0) & squares.isfinite() & (self._seen > 0)
        if bool(is_known.any()):
            self._worth *= float(squares[is_known].sum() / self._worth[is_known].sum())
        self._is_level = True

    @property
    def worth(self) -> Tensor | None:
        """Running means of (z dL/dz)^2, shape `(n_gates,)`, float64; None before anything was seen."""
        return self._worth.clone() if bool(self._seen.any()) else None

    def step(self, effects: Tensor) -> list[float]:
        """Take in the effects of a step, and move the gates to where the target wants them.

        Args:
            effects: z dL/dz, shape `(n_gates,)`.

        Returns:
            The price of each cost that is bounded.
        """
        average_over_processes_(effects)
        squares = effects.square()
        if not self._is_level:
            self._level(squares)
        self.observe(squares)
        return self._place()

    @torch.no_grad()
    def _place(self) -> list[float]:
        bank = self._gates
        if self._start is None:
            self._start = (bank.locations - bank.distribution.initial_log_alpha).double().cpu()
        start = self._start
        costs = self._weights @ self._pursuit.marginal(bank.open_probability()).double().cpu()
        branch_value = self._branch_values(costs)
        is_free = costs <= 0
        worth = self._worth.clamp_min(_LEAST_WORTH * float(self._worth.max()) or 1.0)
        value = worth.log() - costs.where(~is_free, torch.ones_like(costs)).log()

        def placed(price: float) -> Tensor:
            raw = alone(price)
            for gates, value_of_all in zip(self._inside, branch_value, strict=True):
                ceiling = self._config.sharpness * (value_of_all - price)
                own = raw[gates]
                raw[gates] = -torch.stack([-own, -ceiling.expand_as(own), -own - ceiling]).logsumexp(0)
            return _within(raw, bank.bound)

        def alone(price: float) -> Tensor:
            raw = start + self._config.sharpness * (value - price)
            return raw.where(~is_free, torch.full_like(raw, bank.bound))

        def over(price: float) -> float:
            return max(self._pursuit.over(bank.open_probability(placed(price))))

        if bank.distribution.needs_budget:  # which fixes the number of open gates by itself
            price = float(value.median())
        else:
            price = _least(over, self._price, float(value.min()) - _BEYOND, float(value.max()) + _BEYOND)
        bank.log_alpha.copy_(placed(price))
        self._price = price
        if self._branches:
            self._alone = _within(alone(price), bank.bound)
        prices = (math.exp(min(price, _LARGEST)) * self._weights).tolist()
        if len(prices) > 1:
            self._weigh()
        return prices

    def _branch_values(self, costs: Tensor) -> Tensor:
        """Logarithm of what each branch is worth for what it costs; what its units cost is set to what it is where it is open.

        Args:
            costs: What opening each gate costs, shape `(n_gates,)`; those of units in branches are replaced.

        Returns:
            Shape `(n_branches,)`, infinite where nothing was seen or it costs nothing.
        """
        bank = self._gates
        if not self._branches:
            return costs.new_zeros(0)
        is_open = (
            bank.open_probability() if self._alone is None else bank.open_probability(self._alone.to(bank.log_alpha))
        )
        inside = torch.cat(self._inside).unique()
        costs[inside] = (self._weights @ self._pursuit.marginal(is_open).double().cpu())[inside]
        every = torch.tensor(self._pursuit.over(is_open), dtype=torch.float64)
        saved = []
        for gates in self._inside:
            without = is_open.index_fill(0, gates.to(is_open.device), 0.0)
            saved.append(self._weights @ (every - torch.tensor(self._pursuit.over(without), dtype=torch.float64)))
        cost = torch.stack(saved)
        of_units = self._worth.numpy()
        worth = torch.tensor([branch.worth(of_units) for branch in self._branches], dtype=torch.float64)
        known = (worth > 0) & (cost > 0)
        return torch.where(known, worth.log() - cost.clamp_min(_LEAST_WORTH).log(), math.inf)

    def _weigh(self) -> None:
        """Let the budget that is furthest over its target count more in what a gate costs."""
        over = torch.tensor(self._pursuit.over(self._gates.open_probability()), dtype=torch.float64)
        weights = self._weights * torch.exp(_WEIGHING * over)
        self._weights = (weights / weights.sum()).clamp_min(_LEAST_WEIGHT)

    def state_dict(self) -> dict[str, Any]:
        """What has been seen, as tensors."""
        return {
            "start": self._start,
            "worth": self._worth,
            "seen": self._seen,
            "alone": self._alone,
            "price": self._price,
            "weights": self._weights,
            "is_level": self._is_level,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._start, self._price, self._is_level = state["start"], state["price"], state.get("is_level", True)
        self._worth, self._seen, self._weights = (state[name].clone() for name in ("worth", "seen", "weights"))
        self._alone = state.get("alone")


def _within(raw: Tensor, bound: float) -> Tensor:
    """Numbers brought into (-bound, bound), their order kept: as they are up to three quarters of it, and slower from there."""
    linear = 0.75 * bound
    beyond = (raw.abs() - linear).clamp_min(0)
    return raw.sign() * (raw.abs().clamp_max(linear) + (bound - linear) * beyond / (beyond + 2 * bound))


def _least(over: Callable[[float], float], near: float, low: float, high: float) -> float:
    """The least price within [low, high] at which nothing is over its target, to 1e-4; over falls with the price."""
    if over(low) <= 0:
        return low
    width, left, right = 0.05, min(max(near, low), high), min(max(near, low), high)
    if over(left) > 0:
        while right < high and over(right := min(right + width, high)) > 0:
            left, width = right, 4 * width
    else:
        while over(left := max(left - width, low)) <= 0:
            right, width = left, 4 * width
    while right - left > 1e-4:
        middle = (left + right) / 2
        left, right = (middle, right) if over(middle) > 0 else (left, middle)
    return right
