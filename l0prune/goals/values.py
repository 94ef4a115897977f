"""What counts of open gates are worth: capacity, the loss that was measured, and whole branches by themselves."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from l0prune.cost.cost import FloatArray, IntArray
from l0prune.cost.widths import Widths

__all__ = ["Values"]

_TRIFLE = 1e-6


class Values:
    """Value of counts: how little capacity their widths lose against the counts that the ranking wants.

    Where the gates' salience is known, the share of it that stays open is added: salience tells which small change hurts
    least now, capacity keeps large ones from taking what the recovery would need.

    A branch that is closed entirely is not worth what its widths are one by one. It loses its units' capacity, each counting
    once, and the salience that was measured of all of them together, where it was.

    Args:
        widths: gates by width.
        wanted: counts that the ranking of the gates wants, shape `(n_widths,)`.
        threshold: score between the open and the closed gates.
        salience: how much the loss suffers when a gate closes, >= 0, shape `(n_gates,)`; None if nobody measured it.
        of_branches: how much it suffers when a branch closes, in the same unit, shape `(n_branches,)`; None takes the sum.
        monotone: whether more open gates are never worth less, also beyond what is wanted.
        weights: units that a gate stands for, > 0, shape `(n_gates,)`; None for one each.
    """

    def __init__(
        self,
        widths: Widths,
        *,
        wanted: IntArray,
        threshold: float,
        salience: FloatArray | None = None,
        of_branches: FloatArray | None = None,
        monotone: bool = False,
        weights: FloatArray | None = None,
    ) -> None:
        self._widths = widths
        self._first = widths.starts[:-1] + np.arange(widths.n)
        weights = np.ones(len(widths.scores)) if weights is None else weights
        capacity, units = _capacities(widths, wanted, threshold, weights)
        if monotone:
            capacity = _never_falling(widths, capacity)
        measured = np.zeros_like(capacity)
        scale = 1.0
        if salience is not None and salience.any():
            measured, scale = _kept_salience(widths, salience), 1.0 / float(weights.sum())
        self._table = measured + scale * capacity
        inside = widths.in_branches.astype(np.float64)
        self._closed = -scale * (inside @ units)
        if salience is not None and of_branches is not None and salience.any():
            all_of = inside @ measured[self._first + widths.sizes]
            self._closed += all_of - of_branches / float(salience.sum())
        self._at_zero = inside @ self._table[self._first]

    def of(self, counts: IntArray) -> FloatArray:
        """Value of the counts, `(n_widths, ...)` -> `(...)`; only differences mean something."""
        first = self._first.reshape(-1, *([1] * (counts.ndim - 1)))
        value = np.asarray(self._table[first + counts].sum(axis=0))
        if not len(self._closed):
            return value
        closed = self._widths.closed_branches(counts)
        counted = np.zeros(counts.shape, bool)
        for row, inside, gain in zip(closed, self._widths.in_branches, self._closed - self._at_zero, strict=True):
            own = row & ~counted[inside].any(axis=0)
            value = value + np.where(own, gain, 0.0)
            counted[inside] |= row
        return value

    def gain(self, counts: IntArray, widths: IntArray, new: IntArray) -> FloatArray:
        """What setting one of `widths` to its entry of `new` adds, one at a time, whole branches aside; shape `(n_moves,)`."""
        first = self._first[widths]
        return self._table[first + new] - self._table[first + counts[widths]]


def _never_falling(widths: Widths, values: FloatArray) -> FloatArray:
    """Values that do not go down with the count, and up by a trifle."""
    result = values.copy()
    for width, (start, stop) in enumerate(zip(widths.starts[:-1], widths.starts[1:], strict=True)):
        own = slice(start + width, stop + width + 1)
        result[own] = np.maximum.accumulate(values[own]) + _TRIFLE * np.arange(stop - start + 1)
    return result


def _kept_salience(widths: Widths, salience: FloatArray) -> FloatArray:
    """Share of all salience that the best `count` gates of a width hold; laid out as `_capacities`.

    Args:
        widths: gates by width.
        salience: how much the loss suffers when a gate closes, >= 0, shape `(n_gates,)`.
    """
    ordered = salience[widths.order] / max(float(salience.sum()), 1e-300)
    values = np.zeros(len(ordered) + widths.n)
    for width, (start, stop) in enumerate(zip(widths.starts[:-1], widths.starts[1:], strict=True)):
        values[start + width + 1 : stop + width + 1] = np.cumsum(ordered[start:stop])
    return values


def _capacities(
    widths: Widths, counts: IntArray, threshold: float, weights: FloatArray
) -> tuple[FloatArray, npt.NDArray[np.float64]]:
    """Value of every possible count of every width, relative to `counts`; width after width, sizes + 1 entries each.

    What a width can represent is taken to grow with the logarithm of its open gates, as in a divergence: with r the
    gates kept over those in `counts`, a width of n gates is worth -n (r - 1 - log r). So taking a fifth from a width
    costs little, emptying one that the ranking wants costs most, and adding to one is hardly rewarded. Gates count
    by how far they rank above `threshold`, from a quarter (never wanted) to one, times the units they stand for.

    Returns:
        The values, and n of every width, shape `(n_widths,)`.
    """
    distance = np.clip(widths.scores[widths.order] - threshold, -30.0, 30.0)
    worth = (0.25 + 0.75 / (1.0 + np.exp(-distance))) * weights[widths.order]
    values = np.zeros(len(worth) + widths.n)
    units = np.zeros(widths.n)
    for width, (start, stop) in enumerate(zip(widths.starts[:-1], widths.starts[1:], strict=True)):
        kept = np.concatenate([[0.0], np.cumsum(worth[start:stop])])
        wanted = units[width] = kept[counts[width]]
        if wanted > 0:
            share = np.maximum(kept, 0.1) / wanted
            values[start + width : stop + width + 1] = -wanted * (share - 1.0 - np.log(share))
        else:
            values[start + width : stop + width + 1] = -0.01 * kept
    return values, units
