"""Local and exhaustive search over counts of open gates, under upper bounds on their costs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from l0prune.cost.cost import FloatArray, IntArray
from l0prune.cost.widths import Widths
from l0prune.goals.grids import Grid, Grids, n_combinations
from l0prune.goals.values import Values

__all__ = ["CountSearch", "Moves"]

_REACH = 64
_MAX_FILL = 200
_PAIR_BATCH = 128
_PAIR_BATCHES = 32
_MAX_COMBINATIONS = 100_000
_BATCH_ELEMENTS = 2_000_000
_MOST_SLACK = 0.05
"""How far the costs of two changes may be from the sum of what each adds."""


@dataclass(frozen=True, eq=False)
class Moves:
    """Single changes: width -> new count, with the costs after it, shape `(n_costs, n_moves)`, and the value it adds."""

    widths: IntArray
    new_counts: IntArray
    cost: FloatArray
    gain: FloatArray


class CountSearch:
    """Looks for counts of high value whose cost lies in the window (keep - tolerance, keep].

    Of several costs each is at or under its bound, and at least one lies in its window.

    Args:
        widths: gates by width.
        keep: upper bound of each cost, fraction of dense, shape `(n_costs,)`.
        tolerance: width of the windows, > 0; a number, or one for each cost.
        values: what counts are worth.
    """

    def __init__(
        self,
        widths: Widths,
        keep: FloatArray,
        tolerance: float | FloatArray,
        values: Values,
    ) -> None:
        self.widths = widths
        self.keep = keep
        self.low = keep - tolerance
        self.values = values

    def value(self, counts: IntArray) -> float:
        """Value of the counts; only differences between counts mean something."""
        return float(self.values.of(counts))

    def fits(self, counts: IntArray) -> bool:
        """Whether each cost is at or under its bound."""
        return bool(self.within(self.widths.cost(counts)))

    def lands(self, counts: IntArray) -> bool:
        """Whether each cost is at or under its bound, and one of them in its window."""
        return bool(self._lands(self.widths.cost(counts)))

    def shortfall(self, counts: IntArray) -> FloatArray:
        """How far the cost that is nearest its bound is below it, 0 in the window; shape `()` or `(n,)`."""
        cost = self.widths.cost(counts)
        return np.asarray(np.where(self._above(cost, self.low), 0.0, (self.keep - cost.T).min(axis=-1)))

    def within(self, cost: FloatArray, slack: float | FloatArray = 0.0) -> npt.NDArray[np.bool_]:
        """Whether costs are at or under their bounds, `(n_costs, ...)` -> `(...)`."""
        return np.all([one <= keep for one, keep in zip(cost, self.keep + slack, strict=True)], axis=0)

    def _above(self, cost: FloatArray, low: FloatArray) -> npt.NDArray[np.bool_]:
        """Whether any of the costs is above its `low`; `(n_costs, ...)` -> `(...)`."""
        return np.any([one > bound for one, bound in zip(cost, low, strict=True)], axis=0)

    def _lands(self, cost: FloatArray) -> npt.NDArray[np.bool_]:
        return self.within(cost) & self._above(cost, self.low)

    def reduce(self, counts: IntArray, grids: Sequence[Grid]) -> IntArray:
        """Step down the grids, least value lost for the cost saved, until each cost fits or nothing more can go."""
        counts = counts.copy()
        cost = self.widths.cost(counts)
        while not self.within(cost):
            moves = self.moves(counts, grids, down=1, up=0)
            if not len(moves.widths):
                break
            excess = np.maximum(cost - self.keep, 0.0)
            saved = np.minimum(cost - moves.cost.T, excess).sum(axis=-1)
            loss = np.maximum(-moves.gain, 0.0) + 1e-12
            best = int(np.argmin(np.where(saved > 0, loss / np.maximum(saved, 1e-300), np.inf)))
            counts[moves.widths[best]] = moves.new_counts[best]
            cost = moves.cost[:, best]
        return counts

    def extend(self, counts: IntArray, grids: Sequence[Grid]) -> IntArray:
        """Step up the grids while each cost fits and all are below their windows."""
        counts = counts.copy()
        cost = self.widths.cost(counts)
        while not self._above(cost, self.low):
            moves = self.moves(counts, grids, down=0, up=_REACH)
            growth = (moves.cost.T - cost).max(axis=-1)
            allowed = self.within(moves.cost) & (growth > 0)
            if not allowed.any():
                break
            landing = allowed & self._above(moves.cost, self.low)
            if landing.any():
                best = int(np.argmax(np.where(landing, moves.gain, -np.inf)))
            else:
                large = allowed & (growth >= 0.25 * growth[allowed].max())
                best = int(np.argmax(np.where(large, moves.gain / np.where(large, growth, 1.0), -np.inf)))
            counts[moves.widths[best]] = moves.new_counts[best]
            cost = moves.cost[:, best]
        return counts

    def land_by_one(self, counts: IntArray, grids: Sequence[Grid]) -> IntArray | None:
        """The most valuable change of one width that lands in the window, or None."""
        moves = self.moves(counts, grids, down=_REACH, up=_REACH)
        landing = self._lands(moves.cost)
        if not landing.any():
            return None
        best = int(np.argmax(np.where(landing, moves.gain, -np.inf)))
        changed = counts.copy()
        changed[moves.widths[best]] = moves.new_counts[best]
        return changed

    def land_by_two(
        self, counts: IntArray, grids: Sequence[Grid], others: Sequence[Grid], *, reach: int, at_least: float = -np.inf
    ) -> IntArray | None:
        """The most valuable change of two widths, one on each list of grids, that lands in the window, or None.

        Args:
            counts: where to start.
            grids: allowed counts of the one width.
            others: allowed counts of the other one.
            reach: how many grid points a width may move.
            at_least: only accept changes that add more value than this.
        """
        one = self.moves(counts, grids, down=reach, up=reach)
        two = one if others is grids else self.moves(counts, others, down=reach, up=reach)
        if not len(one.widths) or not len(two.widths):
            return None
        cost, slack = self.widths.cost(counts), np.minimum(self.keep - self.low, _MOST_SLACK)
        together = one.cost[:, :, None] + two.cost[:, None, :] - cost[:, None, None]
        gain = one.gain[:, None] + two.gain[None, :]
        likely = self._above(together, self.low - slack) & self.within(together, slack) & (gain > at_least)
        likely &= one.widths[:, None] != two.widths[None, :]
        first, second = np.nonzero(likely)
        ranked = np.argsort(-gain[first, second], kind="stable")[: _PAIR_BATCH * _PAIR_BATCHES]
        for begin in range(0, len(ranked), _PAIR_BATCH):
            chosen = ranked[begin : begin + _PAIR_BATCH]
            batch = np.repeat(counts[:, None], len(chosen), axis=1)
            columns = np.arange(len(chosen))
            batch[one.widths[first[chosen]], columns] = one.new_counts[first[chosen]]
            batch[two.widths[second[chosen]], columns] = two.new_counts[second[chosen]]
            batch = batch[:, self._lands(self.widths.cost(batch))]
            legal = self.widths.covers(batch)
            if legal.any():
                return batch[:, int(legal.argmax())]
        return None

    def fill(self, counts: IntArray, grids: Sequence[Grid]) -> IntArray:
        """Spend what is left under the bounds, the most valuable step up first, while a tenth of each window is left."""
        counts = counts.copy()
        enough = self.keep - 0.1 * (self.keep - self.low)
        for _ in range(_MAX_FILL):
            moves = self.moves(counts, grids, down=0, up=1)
            allowed = self.within(moves.cost)
            if not allowed.any() or self._above(self.widths.cost(counts), enough):
                break
            steps = moves.new_counts - counts[moves.widths]
            best = int(np.argmax(np.where(allowed, moves.gain / steps, -np.inf)))
            counts[moves.widths[best]] = moves.new_counts[best]
        return counts

    def polish(self, counts: IntArray, grids: Sequence[Grid], *, rounds: int = 30) -> IntArray:
        """Exchange between pairs of widths while that adds value inside the window."""
        for _ in range(rounds):
            better = self.land_by_two(counts, grids, grids, reach=1, at_least=1e-9)
            if better is None:
                break
            counts = better
        return counts

    def enumerate(self, grids: Sequence[Grid], alignment: Grids) -> IntArray | None:
        """The best of all combinations, or None where there are too many or none fits.

        Best is closest below the bound up to the window, then fewest misaligned dimensions, then highest value.
        """
        if n_combinations(list(grids)) > _MAX_COMBINATIONS:
            return None
        shape = tuple(len(grid) for grid in grids)
        total = int(np.prod(shape, dtype=np.int64))
        best: tuple[tuple[float, int, float], IntArray] | None = None
        n_sides = sum(len(inside) for inside in self.widths.in_sides)
        size = max(1, _BATCH_ELEMENTS // (n_sides + self.widths.n))
        for begin in range(0, total, size):
            index = np.unravel_index(np.arange(begin, min(begin + size, total)), shape) if shape else ()
            columns = [grid[i] for grid, i in zip(grids, index, strict=True)]
            batch = np.array(columns, dtype=np.int64).reshape(len(shape), -1 if shape else 1)
            batch = batch[:, self.within(self.widths.cost(batch)) & self.widths.covers(batch)]
            if not batch.shape[1]:
                continue
            short = self.shortfall(batch)
            value = self.values.of(batch)
            misaligned = alignment.n_misaligned(batch)
            winner = int(np.lexsort((-value, misaligned, short))[0])
            rank = (float(short[winner]), int(misaligned[winner]), -float(value[winner]))
            if best is None or rank < best[0]:
                best = (rank, batch[:, winner])
        return None if best is None else best[1]

    def moves(self, counts: IntArray, grids: Sequence[Grid], *, down: int, up: int) -> Moves:
        """Changes of one width to a neighbouring grid point that leave no required dimension empty."""
        widths: list[npt.NDArray[np.int64]] = []
        targets: list[npt.NDArray[np.int64]] = []
        for width, grid in enumerate(grids):
            below = int(np.searchsorted(grid, counts[width], side="left"))
            above = int(np.searchsorted(grid, counts[width], side="right"))
            near = np.concatenate([grid[max(0, below - down) : below], grid[above : above + up]])
            targets.append(near)
            widths.append(np.full(len(near), width))
        which = np.concatenate([*widths, np.empty(0, np.int64)]).astype(np.int64)
        new = np.concatenate([*targets, np.empty(0, np.int64)]).astype(np.int64)
        change = self.widths.in_dimensions[:, which] * (new - counts[which])
        kept = self.widths.dimension_counts(counts)[:, None] + change
        legal = ((kept >= self.widths.required[:, None]) | (change >= 0)).all(axis=0)
        which, new = which[legal], new[legal]
        cost = self.widths.cost_of_moves(counts, which, new)
        return Moves(which, new, cost, self.values.gain(counts, which, new))
