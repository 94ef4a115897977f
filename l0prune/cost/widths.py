"""Gates that are alike put into widths: choosing open gates becomes choosing one count a width; and the least choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from l0prune.cost.cost import Cost, FloatArray, IntArray, classes_of_columns
from l0prune.errors import ConfigError
from l0prune.flow.branches import Branch
from l0prune.flow.costs import Dimension

__all__ = ["Floor", "Widths", "smallest_counts"]

_MAX_EXACT_WIDTHS = 14

BoolArray = npt.NDArray[np.bool_]


class Widths:
    """The widths of a network: sets of gates that cost the same and live in the same dimensions.

    Within a width only the number of open gates matters for cost and alignment, so the best-ranked ones stay open and
    a selection is a vector of counts, shape `(n_widths,)`. "Counts" below may also be a batch, shape `(n_widths, n)`.

    Args:
        scores: rank of the gates, higher is kept first, shape `(n_gates,)`; equal scores rank by gate number.
        costs: gates that any of them tells apart are not alike.
        dimensions: dimensions that must not vanish, or are to be aligned.
        groups: gates with different numbers are never put into one width, shape `(n_gates,)`.
        first: gates that rank before all others of their width, shape `(n_gates,)`, bool; optional.
        branches: sets of gates that may close together; each before those that are nested in it.

    Raises:
        ConfigError: if a shape is wrong or a score is not a number.
    """

    def __init__(
        self,
        scores: npt.ArrayLike,
        costs: Sequence[Cost],
        dimensions: Sequence[Dimension],
        groups: npt.ArrayLike,
        *,
        first: BoolArray | None = None,
        branches: Sequence[Branch] = (),
    ) -> None:
        n_gates = len(np.atleast_1d(groups)) if not costs else costs[0].n_gates
        self.costs = tuple(costs)
        self.scores = _checked("scores", scores, n_gates).astype(np.float64)
        wrong = ~np.isfinite(self.scores)
        if wrong.any():
            gate = int(wrong.argmax())
            raise ConfigError(
                f"gate {gate} has score {self.scores[gate]}; expected finite numbers to rank the gates by"
            )
        members = _dimension_members(dimensions, n_gates)
        dimension_class, _ = classes_of_columns(members)
        classes = [cost.sides.gate_class for cost in costs]
        keys = np.stack([_checked("groups", groups, n_gates).astype(np.int64), *classes, dimension_class])
        _, representative, inverse = np.unique(keys, axis=1, return_index=True, return_inverse=True)
        self.of_gate: IntArray = inverse.reshape(-1).astype(np.int64)
        self.sizes: IntArray = np.bincount(self.of_gate, minlength=len(representative)).astype(np.int64)
        self.in_sides: list[FloatArray] = [
            cost.sides.per_class[:, cost.sides.gate_class[representative]] for cost in costs
        ]
        self.in_dimensions: IntArray = np.asarray(members[:, representative].todense(), dtype=np.int64)
        self.ungated: IntArray = np.array([dimension.n_ungated for dimension in dimensions], dtype=np.int64)
        self.totals: IntArray = self.ungated + self.in_dimensions @ self.sizes
        removable = np.array([dimension.removable for dimension in dimensions], dtype=bool)
        self.required: IntArray = np.where(removable | (self.totals == 0), 0, 1)
        self.in_branches: BoolArray = np.zeros((len(branches), self.n), bool)
        self.exits: list[list[IntArray]] = []
        for row, branch in zip(self.in_branches, branches, strict=True):
            row[self.of_gate[branch.gates]] = True
            self.exits.append([np.unique(self.of_gate[exit_gates]) for exit_gates in branch.exits])
        inside = self.in_dimensions.astype(bool)
        self._freed: BoolArray = np.asarray(~(inside[:, None, :] & ~self.in_branches[None, :, :]).any(axis=2))
        late = np.zeros(n_gates, bool) if first is None else ~first
        self.order: IntArray = np.lexsort((np.arange(n_gates), -self.scores, late, self.of_gate)).astype(np.int64)
        self.starts: IntArray = np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)

    @property
    def n(self) -> int:
        """Number of widths."""
        return len(self.sizes)

    def cost(self, counts: npt.NDArray[Any]) -> FloatArray:
        """Fraction of the dense cost, by each of the costs; shape `(n_costs,)` or `(n_costs, n)`."""
        return np.array([cost.of_counts(sides) for cost, sides in zip(self.costs, self._sides(counts), strict=True)])

    def cost_of_moves(self, counts: IntArray, widths: IntArray, new_counts: IntArray) -> FloatArray:
        """Costs after setting one of `widths` to its entry of `new_counts`, one at a time; shape `(n_costs, n_moves)`."""
        step = new_counts - counts[widths]
        sides = zip(self.costs, self.in_sides, self._sides(counts), strict=True)
        return np.array([cost.of_counts(start[:, None] + inside[:, widths] * step) for cost, inside, start in sides])

    def _sides(self, counts: npt.NDArray[Any]) -> list[FloatArray]:
        """Counts of the sides of each cost, shape `(n_sides,)` or `(n_sides, n)`."""
        shape = (-1, *([1] * (counts.ndim - 1)))
        return [
            cost.sides.ungated.reshape(shape) + inside @ counts.astype(np.float64)
            for cost, inside in zip(self.costs, self.in_sides, strict=True)
        ]

    def dimension_counts(self, counts: IntArray) -> IntArray:
        """Kept indices of every dimension, shape `(n_dimensions,)` or `(n_dimensions, n)`."""
        inside = (self.in_dimensions.astype(np.float64) @ counts.astype(np.float64)).astype(np.int64)  # exact, and fast
        return self.ungated.reshape(-1, *([1] * (counts.ndim - 1))) + inside

    def closed_branches(self, counts: IntArray) -> BoolArray:
        """Which branches have no open gate, shape `(n_branches,)` or `(n_branches, n)`."""
        return np.asarray(self.in_branches.astype(np.float64) @ (counts > 0) == 0)

    def missing(self, counts: IntArray) -> BoolArray:
        """Dimensions that are empty and must not be, shape `(n_dimensions,)` or `(n_dimensions, n)`.

        One that lies within a branch all of which is closed may be.
        """
        required = self.required.reshape(-1, *([1] * (counts.ndim - 1)))
        empty = self.dimension_counts(counts) < required
        if len(self.in_branches) and empty.any():
            empty &= ~(self._freed.astype(np.float64) @ self.closed_branches(counts) > 0)
        return np.asarray(empty)

    def covers(self, counts: IntArray) -> npt.NDArray[np.bool_]:
        """Whether what must not vanish stays, and nothing is open in a branch that is cut off, shape `()` or `(n,)`."""
        legal = ~self.missing(counts).any(axis=0)
        for inside, exits in zip(self.in_branches, self.exits, strict=True):
            cut_off = np.any([~counts[widths].any(axis=0) for widths in exits], axis=0)
            legal &= ~(cut_off & counts[inside].any(axis=0))
        return np.asarray(legal)

    def without_idle(self, counts: IntArray) -> IntArray:
        """The same counts, but nothing open in branches that are cut off because all gates of an exit are closed."""
        counts = counts.copy()
        for inside, exits in zip(self.in_branches, self.exits, strict=True):
            if any(not counts[widths].any() for widths in exits):
                counts[inside] = 0
        return counts

    def counts_of(self, is_open: BoolArray) -> IntArray:
        """Open gates of every width, shape `(n_widths,)`."""
        return np.bincount(self.of_gate[is_open], minlength=self.n).astype(np.int64)

    def best_gates(self, counts: IntArray) -> BoolArray:
        """The gates that are open when each width keeps its `counts` best, shape `(n_gates,)`."""
        rank = np.empty(len(self.order), np.int64)
        rank[self.order] = np.arange(len(self.order)) - self.starts[self.of_gate[self.order]]
        return np.asarray(rank < counts[self.of_gate])


def _checked(name: str, values: npt.ArrayLike, n_gates: int) -> npt.NDArray[Any]:
    array = np.asarray(values)
    if array.shape != (n_gates,):
        raise ConfigError(f"{name} have shape {array.shape}; expected ({n_gates},), one per gate")
    return array


def _dimension_members(dimensions: Sequence[Dimension], n_gates: int) -> sparse.csr_array:
    """Multiplicity of every gate in every dimension, shape `(n_dimensions, n_gates)`."""
    gates = [np.asarray(dimension.gates, np.int64) for dimension in dimensions]
    rows = np.repeat(np.arange(len(gates)), [len(members) for members in gates])
    columns = np.concatenate([*gates, np.empty(0, np.int64)])
    members = sparse.csr_array((np.ones(len(rows), np.int64), (rows, columns)), shape=(len(gates), n_gates))
    members.sum_duplicates()
    return members


@dataclass(frozen=True)
class Floor:
    """The smallest reachable cost.

    Attributes:
        fraction: fraction of the dense cost, in [0, 1].
        held_by: (name of the cost term, its share of the dense cost), the largest first; shares add up to `fraction`.
    """

    fraction: float
    held_by: tuple[tuple[str, float], ...]

    @classmethod
    def of(cls, cost: Cost, dimensions: Sequence[Dimension], branches: Sequence[Branch] = ()) -> Floor:
        """The smallest cost that leaves no dimension empty unless it is removable, or in a branch all of which closes."""
        alike = np.zeros(cost.n_gates)
        widths = Widths(alike, [cost], dimensions, alike, branches=branches)
        shares = cost.hard_layers(widths.best_gates(smallest_counts(widths)))
        order = np.argsort(-shares, kind="stable")
        held_by = tuple((cost.layers[layer], float(shares[layer])) for layer in order if shares[layer] > 0)
        return cls(float(widths.cost(smallest_counts(widths))[0]), held_by)


def smallest_counts(widths: Widths, keep: FloatArray | float = 1.0) -> IntArray:
    """Counts with the least cost that leave no required dimension empty, shape `(n_widths,)`, each 0 or 1.

    Of several costs, the one that is largest beside its part of `keep`, shape `(n_costs,)`, is made least.

    Exact where each required dimension has a width of its own, as in nearly every network, and where at most 14 widths
    are left to choose between; greedy beyond.
    """
    counts = np.zeros(widths.n, np.int64)
    members = widths.in_dimensions > 0
    while True:
        empty = widths.missing(counts)
        forced = members[empty & (members.sum(axis=1) == 1)].any(axis=0)
        if not forced.any():
            break
        counts[forced] = 1
    if not empty.any():
        return counts
    useful = np.flatnonzero(members[empty].any(axis=0))
    if len(useful) <= _MAX_EXACT_WIDTHS:
        patterns = (np.arange(2 ** len(useful)) >> np.arange(len(useful))[:, None]) & 1
        batch = np.repeat(counts[:, None], patterns.shape[1], axis=1)
        batch[useful] = patterns
        load = np.where(widths.covers(batch), _load(widths.cost(batch), keep), np.inf)
        return batch[:, int(load.argmin())]
    return _greedy_cover(widths, counts, keep)


def _load(cost: FloatArray, keep: FloatArray | float) -> FloatArray:
    """The largest of several costs beside its part of `keep`; `(n_costs, n)` -> `(n,)`."""
    return np.asarray((cost.T / keep).max(axis=-1))


def _greedy_cover(widths: Widths, counts: IntArray, keep: FloatArray | float) -> IntArray:
    """Open one gate at a time, least cost for each newly covered dimension; then close what turned out needless."""
    counts = counts.copy()
    members = widths.in_dimensions > 0
    while (empty := widths.missing(counts)).any():
        useful = np.flatnonzero(members[empty].any(axis=0))
        opened_cost = widths.cost_of_moves(counts, useful, np.ones(len(useful), np.int64))
        added = _load(opened_cost, keep) - _load(widths.cost(counts), keep)
        counts[useful[int(np.argmin(added / members[empty][:, useful].sum(axis=0)))]] = 1
    opened = np.flatnonzero(counts)
    closed_cost = widths.cost_of_moves(counts, opened, np.zeros(len(opened), np.int64))
    for width in opened[np.argsort(-_load(closed_cost, keep))][::-1]:
        without = counts.copy()
        without[width] = 0
        if widths.covers(without):
            counts = without
    return counts
