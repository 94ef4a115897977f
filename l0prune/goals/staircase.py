"""Search for the most valuable counts where costs go in steps, and where whole branches may close.

A count in the middle of a step costs as much as the one at its end, or more, so only the ends are tried. From several starts,
some of them what somebody would round to by hand, single widths, pairs of widths and whole branches change for as long as
that is worth something.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from l0prune.cost.cost import FloatArray, IntArray
from l0prune.cost.widths import Widths
from l0prune.goals.grids import Grid, Grids, full_grids
from l0prune.goals.search import CountSearch, Moves

__all__ = ["most_valuable"]

_ROUNDS = 40
_REACH = 8
_CLIMBED = 2
_PAIR_REACH = 8
_MOST_POINTS = 128
_HAND_ROUNDED = (32, 16, 8, 4)
_SMALLEST = 1e-12


def most_valuable(search: CountSearch, wanted: IntArray, least: IntArray, *, align: int = 1) -> IntArray:
    """The best counts within all bounds; exact where few enough are possible.

    Args:
        search: Over the widths; of any cost up to its bound.
        wanted: Counts that the ranking of the gates wants, shape `(n_widths,)`.
        least: Counts that fit.
        align: Kept widths are multiples of this where any such fit.
    """
    widths = search.widths
    alignment = Grids(widths, align, wanted)
    every = alignment.grids if alignment.align > 1 else full_grids(widths.sizes)
    exact = search.enumerate([np.union1d(grid, [0]) for grid in every], alignment)
    if exact is not None:
        return exact
    grids = every if alignment.align > 1 else _ends_of_steps(widths, (widths.sizes, np.maximum(wanted, 1)))
    climb = _Climb(search, grids, wanted)
    starts = {start.tobytes(): start for start in _starts(widths, wanted, align)}
    reached = sorted(map(climb.slope, starts.values()), key=search.value, reverse=True)
    found = [climb.top(counts) for counts in [c for c in reached if search.fits(c) and widths.covers(c)][:_CLIMBED]]
    best = max(found, key=search.value, default=least)
    return best if alignment.align > 1 else climb.fill(best, every)


def _starts(widths: Widths, wanted: IntArray, align: int) -> Iterable[IntArray]:
    yield widths.without_idle(wanted)
    yield widths.sizes.copy()
    for step in _HAND_ROUNDED if align == 1 else (align,):
        grids = Grids(widths, step, wanted)
        for up in (True, False):
            rounded = grids.rounded(wanted, up=up)
            yield widths.without_idle(rounded if widths.covers(rounded) else np.maximum(rounded, np.minimum(wanted, 1)))


def _ends_of_steps(widths: Widths, at: Iterable[IntArray]) -> list[Grid]:
    """Counts of each width beyond which some cost rises, the other widths being as in any of `at`."""
    grids = [np.array([size]) for size in widths.sizes]
    for counts in at:
        for width, size in enumerate(widths.sizes):
            new = np.arange(int(size) + 1)
            cost = widths.cost_of_moves(counts, np.full(len(new), width), new)
            rise = _next_least(cost) - cost[:, :-1]
            ends = np.flatnonzero((rise > _SMALLEST).any(axis=0))
            if len(ends) > _MOST_POINTS:
                steepest = np.argsort(-rise.max(axis=0)[ends], kind="stable")[: _MOST_POINTS // 2]
                even = np.linspace(0, len(ends) - 1, _MOST_POINTS // 2).round().astype(np.int64)
                ends = ends[np.union1d(steepest, even)]
            grids[width] = np.union1d(grids[width], ends)
    return grids


def _next_least(cost: FloatArray) -> FloatArray:
    """The least cost of any larger count, shape `(n_costs, size)`."""
    return np.asarray(np.minimum.accumulate(cost[:, :0:-1], axis=1)[:, ::-1])


class _Climb:
    """Changes of one selection.

    Args:
        search: Over the widths.
        grids: Counts that are tried.
        wanted: Counts with which a branch opens again.
    """

    def __init__(self, search: CountSearch, grids: list[Grid], wanted: IntArray) -> None:
        self._search, self._widths = search, search.widths
        self._wanted = wanted
        in_branch = np.atleast_1d(self._widths.in_branches.any(axis=0))
        self._grids = [
            grid[grid > 0] if inside and grid.max() > 0 else grid for grid, inside in zip(grids, in_branch, strict=True)
        ]

    def slope(self, start: IntArray) -> IntArray:
        """Where no change of one or two widths is worth more."""
        return self._exchanged(self.fill(self._fit(start), self._grids))

    def top(self, counts: IntArray) -> IntArray:
        """From there, where no branch more or less is worth more either."""
        for _ in range(_ROUNDS):
            changed = [self.fill(self._fit(other), self._grids) for other in self._with_branch_changed(counts)]
            better = max(changed, key=self._search.value, default=counts)
            if self._search.value(better) <= self._search.value(counts) + 1e-9 or not self._search.fits(better):
                break
            counts = self._exchanged(better)
        return counts

    def fill(self, counts: IntArray, grids: list[Grid]) -> IntArray:
        """Open more while it fits, the most valuable for its cost first."""
        counts = counts.copy()
        cost = self._widths.cost(counts)
        while True:
            moves = self._search.moves(counts, self._beside_closed(counts, grids), down=0, up=_REACH)
            growth = ((moves.cost.T - cost) / self._search.keep).max(axis=-1)
            allowed = self._search.within(moves.cost) & (moves.gain > 0)
            if not allowed.any():
                return counts
            self._take(counts, moves, np.where(allowed, moves.gain / np.maximum(growth, _SMALLEST), -np.inf))
            cost = self._widths.cost(counts)

    def _fit(self, counts: IntArray) -> IntArray:
        """Close widths by a step, or whole branches, least value lost for the cost saved, until all bounds hold."""
        counts = counts.copy()
        while not self._search.within(cost := self._widths.cost(counts)):
            moves = self._search.moves(counts, self._beside_closed(counts, self._grids), down=_PAIR_REACH, up=0)
            without = self._without_branches(counts)
            value = self._search.values.of(counts)
            loss = np.concatenate([-moves.gain, value - self._search.values.of(without)])
            costs = np.concatenate([moves.cost, self._widths.cost(without)], axis=1)
            excess = np.maximum(cost - self._search.keep, 0.0) / self._search.keep
            saved = np.minimum((cost - costs.T) / self._search.keep, excess).sum(axis=-1)
            rate = np.where(saved > _SMALLEST, np.maximum(loss, 0.0) + 1e-9, np.inf) / np.maximum(saved, _SMALLEST)
            if not np.isfinite(rate).any():
                break
            best = int(np.argmin(rate))
            if best < len(moves.widths):
                counts[moves.widths[best]] = moves.new_counts[best]
            else:
                counts = without[:, best - len(moves.widths)]
        return counts

    def _exchanged(self, counts: IntArray) -> IntArray:
        """Between pairs of widths, while that is worth something."""
        for _ in range(_ROUNDS):
            grids = self._beside_closed(counts, self._grids)
            better = self._search.land_by_two(counts, grids, grids, reach=_PAIR_REACH, at_least=1e-9)
            if better is None:
                break
            counts = self.fill(better, self._grids)
        return counts

    def _with_branch_changed(self, counts: IntArray) -> Iterable[IntArray]:
        """With one branch more, or less."""
        yield from self._without_branches(counts).T
        for inside in self._widths.in_branches[self._widths.closed_branches(counts)]:
            for opened in (np.maximum(self._wanted, 1), self._widths.sizes):
                yield np.where(inside, np.minimum(opened, self._widths.sizes), counts)

    def _without_branches(self, counts: IntArray) -> IntArray:
        """The selections in which one branch more is closed, shape `(n_widths, n)`."""
        there = self._widths.in_branches[~self._widths.closed_branches(counts)]
        return np.where(there.T, 0, counts[:, None])

    def _beside_closed(self, counts: IntArray, grids: list[Grid]) -> list[Grid]:
        """The grids without what would open part of a closed branch."""
        closed = np.atleast_1d(self._widths.in_branches[self._widths.closed_branches(counts)].any(axis=0))
        return [np.array([0]) if shut else grid for grid, shut in zip(grids, closed, strict=True)]

    def _take(self, counts: IntArray, moves: Moves, merit: FloatArray) -> None:
        best = int(np.argmax(merit))
        counts[moves.widths[best]] = moves.new_counts[best]
