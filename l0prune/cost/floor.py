"""The smallest cost that gates can reach, and which layers hold it there."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from l0prune.cost.cost import IntArray
from l0prune.cost.widths import Widths

__all__ = ["Floor", "rounded_up", "smallest_counts"]

_MAX_EXACT_WIDTHS = 14


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
    def of(cls, widths: Widths, names: Sequence[str]) -> "Floor":
        """The floor of a network whose cost terms have these names."""
        counts = smallest_counts(widths)
        shares = widths.flat.term_costs(widths.flat.ungated + widths.in_sides @ counts)
        order = np.argsort(-shares, kind="stable")
        held_by = tuple((names[term], float(shares[term])) for term in order if shares[term] > 0)
        return cls(float(widths.cost(counts)), held_by)


def smallest_counts(widths: Widths) -> IntArray:
    """Counts with the least cost that leave no required dimension empty, shape `(n_widths,)`, each 0 or 1.

    Exact where each required dimension has a width of its own, as in nearly every network, and where at most 14 widths
    are left to choose between; greedy beyond.
    """
    counts = np.zeros(widths.n, np.int64)
    members = widths.in_dimensions > 0
    while True:
        empty = widths.dimension_counts(counts) < widths.required
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
        cost = np.where(widths.covers(batch), widths.cost(batch), np.inf)
        return batch[:, int(cost.argmin())]
    return _greedy_cover(widths, counts)


def _greedy_cover(widths: Widths, counts: IntArray) -> IntArray:
    """Open one gate at a time, least cost for each newly covered dimension; then close what turned out needless."""
    counts = counts.copy()
    members = widths.in_dimensions > 0
    while (empty := widths.dimension_counts(counts) < widths.required).any():
        useful = np.flatnonzero(members[empty].any(axis=0))
        added = widths.cost_of_moves(counts, useful, np.ones(len(useful), np.int64)) - widths.cost(counts)
        counts[useful[int(np.argmin(added / members[empty][:, useful].sum(axis=0)))]] = 1
    opened = np.flatnonzero(counts)
    for width in opened[np.argsort(-widths.cost_of_moves(counts, opened, np.zeros(len(opened), np.int64)))][::-1]:
        without = counts.copy()
        without[width] = 0
        if widths.covers(without):
            counts = without
    return counts


def rounded_up(share: float, *, digits: int = 3) -> float:
    """A share of the dense cost, rounded up to so many significant digits, so that asking for it works."""
    if share <= 0:
        return 0.0
    places = digits - 1 - math.floor(math.log10(share))
    return min(1.0, math.ceil(round(share * 10**places, 9)) / 10**places)
