"""Local and exhaustive search over counts of open gates, under an upper bound on the cost."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from l0prune.cost.cost import FloatArray, IntArray
from l0prune.cost.widths import Widths
from l0prune.goals.grids import Grid, Grids, n_combinations

__all__ = ["CountSearch"]

_REACH = 64
_MAX_FILL = 200
_PAIR_BATCH = 1024
_PAIR_BATCHES = 4
_MAX_COMBINATIONS = 100_000
_BATCH_ELEMENTS = 2_000_000


@dataclass(frozen=True, eq=False)
class _Moves:
    """Single changes: width -> new count, with the cost after it and the value it adds."""

    widths: IntArray
    new_counts: IntArray
    cost: FloatArray
    gain: FloatArray


class CountSearch:
    """Looks for counts of high value whose cost lies in the window (keep - tolerance, keep].

    The value of a selection is how little capacity its widths lose against the counts that the ranking wants. Where the
    gates' salience is known, the share of it that stays open is added: salience tells which small change hurts least
    now, capacity keeps large ones from taking what the recovery would need.

    Args:
        widths: gates by width.
        keep: upper bound of the cost, fraction of dense.
        tolerance: width of the window, > 0.
        wanted: counts that the ranking of the gates wants, shape `(n_widths,)`.
        threshold: score between the open and the closed gates.
        salience: how much the loss suffers when a gate closes, >= 0, shape `(n_gates,)`; None if nobody measured it.
    """

    def __init__(
        self,
        widths: Widths,
        keep: float,
        tolerance: float,
        *,
        wanted: IntArray,
        threshold: float,
        salience: FloatArray | None = None,
    ) -> None:
        self.widths = widths
        self.keep = keep
        self.low = keep - tolerance
        self._values = widths.capacities(wanted, threshold)
        if salience is not None and salience.any():
            self._values = widths.kept_salience(salience) + self._values / len(widths.scores)
        self._first = widths.starts[:-1] + np.arange(widths.n)

    def value(self, counts: IntArray) -> float:
        """Value of the counts; only differences between counts mean something."""
        return float(self._values[self._first + counts].sum())

    def fits(self, counts: IntArray) -> bool:
        """Whether the cost is at or under the bound."""
        return bool(self.widths.cost(counts) <= self.keep)

    def lands(self, counts: IntArray) -> bool:
        """Whether the cost lies in the window."""
        return bool(self.low < self.widths.cost(counts) <= self.keep)

    def reduce(self, counts: IntArray, grids: Sequence[Grid]) -> IntArray:
        """Step down the grids, least value lost for the cost saved, until the cost fits or nothing more can go."""
        counts = counts.copy()
        cost = float(self.widths.cost(counts))
        while cost > self.keep:
            moves = self._moves(counts, grids, down=1, up=0)
            if not len(moves.widths):
                break
            saved = np.minimum(cost - moves.cost, cost - self.keep)
            loss = np.maximum(-moves.gain, 0.0) + 1e-12
            best = int(np.argmin(np.where(saved > 0, loss / np.maximum(saved, 1e-300), np.inf)))
            counts[moves.widths[best]] = moves.new_counts[best]
            cost = float(moves.cost[best])
        return counts

    def extend(self, counts: IntArray, grids: Sequence[Grid]) -> IntArray:
        """Step up the grids while the cost fits and is below the window."""
        counts = counts.copy()
        cost = float(self.widths.cost(counts))
        while cost <= self.low:
            moves = self._moves(counts, grids, down=0, up=_REACH)
            growth = moves.cost - cost
            allowed = (moves.cost <= self.keep) & (growth > 0)
            if not allowed.any():
                break
            landing = allowed & (moves.cost > self.low)
            if landing.any():
                best = int(np.argmax(np.where(landing, moves.gain, -np.inf)))
            else:
                large = allowed & (growth >= 0.25 * growth[allowed].max())
                best = int(np.argmax(np.where(large, moves.gain / np.where(large, growth, 1.0), -np.inf)))
            counts[moves.widths[best]] = moves.new_counts[best]
            cost = float(moves.cost[best])
        return counts

    def land_by_one(self, counts: IntArray, grids: Sequence[Grid]) -> IntArray | None:
        """The most valuable change of one width that lands in the window, or None."""
        moves = self._moves(counts, grids, down=_REACH, up=_REACH)
        landing = (moves.cost > self.low) & (moves.cost <= self.keep)
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
        one = self._moves(counts, grids, down=reach, up=reach)
        two = one if others is grids else self._moves(counts, others, down=reach, up=reach)
        if not len(one.widths) or not len(two.widths):
            return None
        cost = float(self.widths.cost(counts))
        slack = self.keep - self.low
        together = one.cost[:, None] + two.cost[None, :] - cost
        gain = one.gain[:, None] + two.gain[None, :]
        likely = (together > self.low - slack) & (together <= self.keep + slack) & (gain > at_least)
        likely &= one.widths[:, None] != two.widths[None, :]
        first, second = np.nonzero(likely)
        ranked = np.argsort(-gain[first, second], kind="stable")[: _PAIR_BATCH * _PAIR_BATCHES]
        for begin in range(0, len(ranked), _PAIR_BATCH):
            chosen = ranked[begin : begin + _PAIR_BATCH]
            batch = np.repeat(counts[:, None], len(chosen), axis=1)
            columns = np.arange(len(chosen))
            batch[one.widths[first[chosen]], columns] = one.new_counts[first[chosen]]
            batch[two.widths[second[chosen]], columns] = two.new_counts[second[chosen]]
            exact = self.widths.cost(batch)
            landing = (exact > self.low) & (exact <= self.keep) & self.widths.covers(batch)
            if landing.any():
                return batch[:, int(landing.argmax())]
        return None

    def fill(self, counts: IntArray, grids: Sequence[Grid]) -> IntArray:
        """Spend what is left under the bound, the most valuable step up first, while a tenth of the window is left."""
        counts = counts.copy()
        enough = self.keep - 0.1 * (self.keep - self.low)
        for _ in range(_MAX_FILL):
            moves = self._moves(counts, grids, down=0, up=1)
            allowed = moves.cost <= self.keep
            if not allowed.any() or self.widths.cost(counts) > enough:
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
        size = max(1, _BATCH_ELEMENTS // (len(self.widths.flat.ungated) + self.widths.n))
        for begin in range(0, total, size):
            index = np.unravel_index(np.arange(begin, min(begin + size, total)), shape) if shape else ()
            columns = [grid[i] for grid, i in zip(grids, index, strict=True)]
            batch = np.array(columns, dtype=np.int64).reshape(len(shape), -1 if shape else 1)
            cost = self.widths.cost(batch)
            allowed = np.flatnonzero((cost <= self.keep) & self.widths.covers(batch))
            if not len(allowed):
                continue
            batch, cost = batch[:, allowed], cost[allowed]
            short = np.where(cost > self.low, 0.0, self.keep - cost)
            value = self._values[self._first[:, None] + batch].sum(axis=0)
            misaligned = alignment.n_misaligned(batch)
            winner = int(np.lexsort((-value, misaligned, short))[0])
            rank = (float(short[winner]), int(misaligned[winner]), -float(value[winner]))
            if best is None or rank < best[0]:
                best = (rank, batch[:, winner])
        return None if best is None else best[1]

    def _moves(self, counts: IntArray, grids: Sequence[Grid], *, down: int, up: int) -> _Moves:
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
        first = self._first[which]
        return _Moves(which, new, cost, self._values[first + new] - self._values[first + counts[which]])
