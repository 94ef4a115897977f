"""Tables from timed graphs: a few terms that are fitted to all times of a kind, and a smooth correction of what they miss."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import nnls

from l0prune.latency.profile import REGIONS, Axis, Piece
from l0prune.latency.tables import region_of

__all__ = ["Observations", "closed_piece", "pieces"]

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

STEPS = (1, 4, 8, 16)
"""Multiples that counts may be rounded up to."""
_BETTER = 0.99
_LENGTH = 0.5
_NOISES, _AMPLITUDES = (1e-4, 4e-4, 1e-3, 4e-3), (2.5e-4, 1e-3, 4e-3, 1.6e-2)
_MOST = 500
_FEWEST = 6
_OUTLIER = 6.0


@dataclass(frozen=True, eq=False)
class Observations:
    """Times of parts of one kind.

    Attributes:
        counts: Of their sides, shape `(n, n_sides)`.
        us: Microseconds, shape `(n,)`.
        tail: Number of the tail that each part has, shape `(n,)`.
    """

    counts: IntArray
    us: FloatArray
    tail: IntArray

    def __getitem__(self, rows: npt.NDArray[np.bool_] | IntArray) -> Observations:
        """Some of them."""
        return Observations(self.counts[rows], self.us[rows], self.tail[rows])

    def __len__(self) -> int:
        """How many."""
        return len(self.us)


@dataclass(frozen=True)
class Blocks:
    """What is known of the processor's kernels.

    Attributes:
        block: Channels of a block.
        multiple: Counts from a block on are in the blocked layout where they are multiples of this.
        knows_blocks: Whether the kind has such a layout; matrix products have none.
    """

    block: int
    multiple: int
    knows_blocks: bool

    def regions(self, counts: IntArray) -> IntArray:
        """Of counts >= 1."""
        if not self.knows_blocks:
            return np.ones_like(counts)
        return region_of(counts, block=self.block, multiple=self.multiple)


def pieces(observed: Observations, largest: Sequence[int], blocks: Blocks, n_tails: int) -> list[tuple[Piece, ...]]:
    """Tables over counts, for each tail.

    Args:
        observed: With counts >= 1.
        largest: Counts of each side.
        blocks: Of the processor.
        n_tails: Number of tails.

    Returns:
        The pieces of each tail; those of regions with too few observations are left out, and the nearest stands for them.
    """
    n_sides = observed.counts.shape[1]
    made: list[list[Piece]] = [[] for _ in range(n_tails)]
    region = blocks.regions(observed.counts[:, 0])
    fits = {
        at: _Fit.of(observed[region == at], n_tails, blocks)
        for at in range(len(REGIONS))
        if (region == at).sum() >= _FEWEST
    }
    if not fits:
        fits = {1: _Fit.of(observed, n_tails, blocks)}
    for first, fit in fits.items():
        others = range(len(REGIONS)) if n_sides > 1 and blocks.knows_blocks else (1,)
        for second in others:
            regions = (first, second)[:n_sides]
            axes = [_axis(at, step, size, blocks) for at, step, size in zip(regions, fit.steps, largest, strict=False)]
            if any(axis is None for axis in axes):
                continue
            known = tuple(axis for axis in axes if axis is not None)
            grid = np.array(list(itertools.product(*(axis.knots for axis in known))), np.int64)
            for tail in range(n_tails):
                times = np.maximum(fit(grid, np.full(len(grid), tail)), 0.0)
                made[tail].append(Piece(known, tuple(float(f"{time:.4g}") for time in times)))
    return [tuple(one) for one in made]


def closed_piece(counts: IntArray, us: FloatArray, largest: int) -> Piece:
    """Times over one count where nothing else is known: a constant and a slope."""
    terms = np.stack([np.ones(len(counts)), counts], axis=1) / np.maximum(us, 0.5)[:, None]
    (constant, slope), _ = nnls(terms, us / np.maximum(us, 0.5))
    knots = (1, largest) if largest > 1 else (1,)
    return Piece((Axis("whole", 1, knots),), tuple(float(f"{constant + slope * knot:.4g}") for knot in knots))


def _axis(region: int, step: int, largest: int, blocks: Blocks) -> Axis | None:
    """Counts at which a table has values: dense below four blocks, then in growing steps; None where the region has none."""
    block = blocks.block
    if REGIONS[region] == "small":
        knots = {1, *range(2, block, 2), block - 1}
    elif not blocks.knows_blocks:
        knots = {1, *_growing(block, largest), largest}
    elif REGIONS[region] == "whole":
        knots = {*_growing(block, largest), largest if step == 1 else -(-largest // step) * step}
    else:
        knots = {block + 1, *(knot - 1 for knot in _growing(block, largest) if knot > block), largest}
    kept = sorted(knot for knot in knots if 1 <= knot <= max(-(-largest // step) * step, 1))
    if REGIONS[region] != "small" and blocks.knows_blocks:
        kept = [knot for knot in kept if knot >= block]
    return Axis(REGIONS[region], step, tuple(kept)) if kept else None


def _growing(block: int, largest: int) -> list[int]:
    found, at = [], block
    while at <= largest + block:
        found.append(at)
        at += block * max(1, at // (8 * block))
    return found


class _Fit:
    """Times of one kind in one region of what it reads.

    The terms are those of a blocked kernel: a constant, the counts rounded up, their product, what an output off the blocks
    costs, and what follows it. Their coefficients are not negative and minimise relative errors. A Gaussian process over the
    logarithms of the counts corrects them.
    """

    def __init__(self, observed: Observations, n_tails: int, blocks: Blocks) -> None:
        self._blocks, self._n_tails = blocks, n_tails
        self._scale = np.maximum(observed.us, 0.05)
        best: tuple[float, tuple[int, ...], FloatArray] | None = None
        steps = STEPS if blocks.block >= STEPS[-1] else tuple(step for step in STEPS if step <= blocks.block)
        for chosen in itertools.product(steps, repeat=observed.counts.shape[1]):
            terms = self._terms(observed.counts, observed.tail, chosen) / self._scale[:, None]
            size = np.maximum(np.abs(terms).max(axis=0), 1e-12)
            weights, residual = nnls(terms / size, observed.us / self._scale, maxiter=1000)
            if best is None or residual < best[0] * _BETTER:
                best = residual, chosen, weights / size
        assert best is not None
        _, self.steps, self._weights = best
        self._learn(observed)

    @classmethod
    def of(cls, observed: Observations, n_tails: int, blocks: Blocks) -> _Fit:
        """Fitted twice, the second time without what was far off."""
        if len(observed) > _MOST:
            observed = observed[np.random.default_rng(0).choice(len(observed), _MOST, replace=False)]
        first = cls(observed, n_tails, blocks)
        off = np.abs(observed.us / np.maximum(first(observed.counts, observed.tail), 0.05) - 1)
        kept = off <= max(_OUTLIER * float(np.median(off)), 0.05)
        return first if kept.all() or kept.sum() < _FEWEST else cls(observed[kept], n_tails, blocks)

    def __call__(self, counts: IntArray, tail: IntArray) -> FloatArray:
        """Microseconds, shape `(n,)`."""
        near = _kernel(self._place(counts), self._places)
        correction = np.clip(self._amplitude * near @ self._pull, -0.4, 0.4)
        return self._prior(counts, tail) * (1 + correction)

    def _prior(self, counts: IntArray, tail: IntArray) -> FloatArray:
        return np.asarray(self._terms(counts, tail, self.steps) @ self._weights)

    def _terms(self, counts: IntArray, tail: IntArray, steps: Sequence[int]) -> FloatArray:
        rounded = [_up(column, step) for column, step in zip(counts.T, steps, strict=True)]
        terms = [np.ones(len(counts)), *rounded]
        last = rounded[-1]  # as the tables are read
        if len(rounded) > 1:
            terms.append(rounded[0] * rounded[1])
            if self._blocks.knows_blocks:
                for at in (0, 2):
                    off = (self._blocks.regions(counts[:, 1]) == at).astype(np.float64)
                    terms += [off, off * last]
        for one in range(self._n_tails if self._n_tails > 1 else 0):  # of every tail: coefficients cannot take away
            has_it = (tail == one).astype(np.float64)
            terms += [has_it, has_it * last]
        return np.stack(terms, axis=1)

    def _learn(self, observed: Observations) -> None:
        """The correction: noise and amplitude by the evidence."""
        self._places = self._place(observed.counts)
        prior = np.maximum(self._prior(observed.counts, observed.tail), 0.05)
        residual = np.clip(observed.us / prior - 1, -0.3, 0.3)
        near = _kernel(self._places, self._places)
        best = -np.inf
        for noise, amplitude in itertools.product(_NOISES, _AMPLITUDES):
            factor = cho_factor(amplitude * near + noise * np.eye(len(residual)), lower=True)
            pull = cho_solve(factor, residual)
            evidence = -0.5 * float(residual @ pull) - float(np.log(np.diag(factor[0])).sum())
            if evidence > best:
                best, self._pull, self._amplitude = evidence, pull, amplitude

    def _place(self, counts: IntArray) -> FloatArray:
        return np.log(np.stack([_up(column, step) for column, step in zip(counts.T, self.steps, strict=True)], axis=1))


def _up(counts: IntArray, step: int) -> FloatArray:
    return (-(-counts // step) * step).astype(np.float64)


def _kernel(one: FloatArray, other: FloatArray) -> FloatArray:
    return np.exp(-((one[:, None] - other[None]) ** 2).sum(axis=-1) / (2 * _LENGTH**2))
