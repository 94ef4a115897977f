"""What a run aims at, behind one interface: what it adds to the loss, which gates it keeps, how it is written down."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from l0prune.cost.kinds import Costs
from l0prune.errors import ConfigError
from l0prune.gates.bank import GateBank
from l0prune.goals.selection import align_open, covered

if TYPE_CHECKING:
    from l0prune.flow.branches import Branch
    from l0prune.goals.budget import Bound
    from l0prune.goals.lagrangian import Constraint
    from l0prune.goals.uniform import Alike

__all__ = ["Goal", "Pursuit"]

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]


class Goal:
    """What is wanted of the gates beside the task. This one wants nothing: exactly the gates that training closed are cut.

    Attributes:
        kind: The argument and the key in files it is given by: "budget" or "penalty"; empty where nothing is wanted.
        cuts_as_trained: Whether what training closed is what is cut, instead of what the goal chooses.
        n_samples: Number of training samples it counts by, or None.
    """

    kind: ClassVar[str] = ""
    cuts_as_trained: ClassVar[bool] = True
    n_samples: int | None = None

    @property
    def knows_widths(self) -> bool:
        """Whether what it costs to keep a width is known so well that kept widths need no rounding."""
        return False

    @property
    def metrics(self) -> tuple[str, ...]:
        """What costs are counted in, the one of `hard_cost` first."""
        return ("macs",)

    def branches(self, costs: Costs) -> tuple[Branch, ...]:
        """The branches of the network that may close as a whole."""
        return ()

    def with_depth(self, depth: bool | None) -> Goal:
        """The same goal, with branches that may close as a whole or not; None leaves that as it is."""
        return self

    def uniform(self, alike: Alike | None) -> Goal:
        """The same goal, with sizes that have to be alike.

        Raises:
            ConfigError: it does not choose what is kept, but takes what training leaves.
        """
        if alike is not None:
            raise ConfigError(
                "uniform widths are chosen under a budget: give one, such as macs=0.5, or leave uniform out"
            )
        return self

    def bounds(self, costs: Costs) -> tuple[Bound, ...]:
        """What the compact network must not cost more than."""
        return ()

    def check(self, costs: Costs, gates: GateBank) -> None:
        """See that it can be reached with these gates.

        Raises:
            BudgetInfeasibleError: closing every gate costs more than a bound.
            ConfigError: the gates cannot be trained towards it, or it names what the network has not.
        """

    def pursuit(self, costs: Costs, steps: int, *, placed: bool = False) -> Pursuit:
        """The goal as it is pursued over a gate phase of so many steps, by gates that are placed or that follow a gradient."""
        return Pursuit()

    def over_samples(self, count: Callable[[], int]) -> Goal:
        """The same goal for data of `count()` training samples, where it counts by them and does not know yet."""
        return self

    def choose_open(
        self,
        costs: Costs,
        scores: FloatArray,
        is_open: BoolArray,
        *,
        align: int,
        salience: FloatArray | None = None,
    ) -> BoolArray:
        """The gates that stay open.

        Args:
            costs: Of the network.
            scores: Rank of the gates, higher is kept first, shape `(n_gates,)`.
            is_open: Which ones training left open, shape `(n_gates,)`.
            align: Kept widths are multiples of this, where the bounds allow it, >= 1.
            salience: How much the loss suffers when a gate closes, >= 0, shape `(n_gates,)`, where it was measured.

        Returns:
            Shape `(n_gates,)`, bool. Without bounds, the best of each dimension that would vanish stay as well.
        """
        chosen = covered(is_open, scores, costs.flow.dimensions)
        return self.rounded(costs, scores, chosen, align=align) if align > 1 else chosen

    def rounded(self, costs: Costs, scores: FloatArray, is_open: BoolArray, *, align: int) -> BoolArray:
        """Open gates whose widths are multiples of `align`: up where the bounds still hold, else down."""
        flow = costs.flow
        return align_open(is_open, scores, flow.dimensions, flow.gate_group, align=align, bounds=self.bounds(costs))

    def met(self, costs: Costs, hard: Mapping[str, float]) -> bool:
        """Whether all bounds hold.

        Args:
            costs: Of the network.
            hard: Metric -> cost of the compact network, fraction of dense, for each of `metrics`.
        """
        return all(hard[bound.budget.metric] <= bound.keep * (1 + 1e-9) for bound in self.bounds(costs))

    def record(self) -> dict[str, str | None]:
        """Plain values for files: `budget` and `penalty` as they are written on the command line, at most one not None."""
        return {"budget": None, "penalty": None} | ({self.kind: str(self)} if self.kind else {})


class Pursuit:
    """A goal on its way through the gate phase; this one asks for nothing.

    Attributes:
        constraints: Metric -> target and multiplier of each budget.
    """

    constraints: Mapping[str, Constraint] = {}

    def penalty(self, is_open: Tensor) -> Tensor:
        """What goes to the objective, scalar, differentiable in the probabilities of being open, shape `(n_gates,)`."""
        return is_open.new_zeros(())

    def marginal(self, is_open: Tensor) -> Tensor:
        """What opening each gate adds to each cost that is bounded, where the probabilities of being open are these.

        Returns:
            Shape `(n_bounds, n_gates)`, >= 0, as fractions of dense.
        """
        return is_open.new_zeros((0, *is_open.shape))

    def over(self, is_open: Tensor) -> list[float]:
        """How far each cost that is bounded is above its present target; negative under it."""
        return []

    def step(self, gates: GateBank, *, prices: Sequence[float] | None = None) -> None:
        """After the gates have moved; where they were placed by prices, with the price of each cost that is bounded."""

    def affordable(self, scores: FloatArray) -> int:
        """How many gates, highest score first, may be open now."""
        return len(scores)

    def excess(self, is_open: Tensor) -> float:
        """How far the gates are short of running past the next target, below 0 if they have; infinite without targets."""
        return float("inf")

    def state_dict(self) -> dict[str, Any] | None:
        """What changes from step to step, as plain numbers."""
        return None

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
