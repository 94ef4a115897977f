"""Which counts of open gates make the widths of a network multiples of what the hardware likes."""

import math

import numpy as np
import numpy.typing as npt

from l0prune.cost.cost import IntArray
from l0prune.cost.widths import Widths
from l0prune.errors import ConfigError

__all__ = ["Grids", "finer_alignments"]

Grid = IntArray
"""Counts that a width may take, ascending."""


def finer_alignments(align: int) -> list[int]:
    """`align` and its halves while they are whole, then 1: 16 -> [16, 8, 4, 2, 1], 12 -> [12, 6, 3, 1]."""
    steps = [align]
    while steps[-1] % 2 == 0:
        steps.append(steps[-1] // 2)
    return steps if steps[-1] == 1 else [*steps, 1]


class Grids:
    """Multiples of `align` for every dimension of a network.

    A dimension is aligned if it keeps a multiple of `align` indices, or all it has. A dimension with no more than `align`
    indices is held to multiples of a quarter of it, or less where that leaves it no choice.

    Args:
        widths: gates by width, and the dimensions they live in.
        align: >= 1.
        start: counts to stay close to where no multiple can be reached, shape `(n_widths,)`.

    Raises:
        ConfigError: if `align` is not a whole number >= 1.
    """

    def __init__(self, widths: Widths, align: int, start: IntArray) -> None:
        if align != int(align) or align < 1:
            raise ConfigError(f"align is {align!r}; expected a whole number, 1 or more")
        self.widths = widths
        self.align = int(align)
        self.wanted = np.array([_reachable_multiple(self.align, int(total)) for total in widths.totals], dtype=np.int64)
        self.steps = self._steps()
        self.residues = self._residues(start)
        self.grids: list[Grid] = [self._grid(width) for width in range(widths.n)]

    def n_misaligned(self, counts: IntArray) -> IntArray:
        """Dimensions that are not aligned, shape `()` or `(n,)`."""
        trailing = [1] * (counts.ndim - 1)
        kept = self.widths.dimension_counts(counts)
        aligned = (kept % self.wanted.reshape(-1, *trailing) == 0) | (kept == self.widths.totals.reshape(-1, *trailing))
        return np.asarray((~aligned).sum(axis=0))

    def _steps(self) -> IntArray:
        """Smallest change of each width's count that keeps every dimension it lives in aligned."""
        steps = np.ones(self.widths.n, np.int64)
        for wanted, members in zip(self.wanted, self.widths.in_dimensions, strict=True):
            inside = members > 0
            steps[inside] = np.lcm(steps[inside], wanted // np.gcd(wanted, members[inside]))
        return steps

    def _residues(self, start: IntArray) -> IntArray:
        """Remainder of each count by its step: zero, unless another one aligns more dimensions.

        Widths too small for a multiple of their step begin with the count they have in `start`.
        """
        small = self.widths.sizes < self.steps
        residues = np.where(small, start, 0)
        for _ in range(3):
            before = residues.copy()
            for dimension in np.flatnonzero(self.widths.dimension_counts(residues) % self.wanted):
                for width in np.flatnonzero(self.widths.in_dimensions[dimension]):
                    residues[width] = self._best_residue(residues, int(width))
            if np.array_equal(before, residues):
                break
        return residues

    def _best_residue(self, residues: IntArray, width: int) -> int:
        """The remainder of one width that aligns most of its dimensions, the others being fixed."""
        inside = np.flatnonzero(self.widths.in_dimensions[:, width])
        options = np.arange(min(int(self.steps[width]), int(self.widths.sizes[width]) + 1))
        others = (
            self.widths.dimension_counts(residues)[inside] - self.widths.in_dimensions[inside, width] * residues[width]
        )
        kept = others[:, None] + self.widths.in_dimensions[inside, width][:, None] * options
        n_aligned = (kept % self.wanted[inside][:, None] == 0).sum(axis=0)
        current = int(residues[width])
        best = int(n_aligned.argmax())
        return best if current >= len(options) or n_aligned[best] > n_aligned[current] else current

    def _grid(self, width: int) -> Grid:
        size, step = int(self.widths.sizes[width]), int(self.steps[width])
        grid = np.arange(int(self.residues[width]) % step, size + 1, step)
        inside = self.widths.in_dimensions[:, width] > 0
        alone = bool(((self.widths.in_dimensions[inside] > 0).sum(axis=1) == 1).all())
        return np.union1d(grid, [size]) if alone or not len(grid) else grid

    def rounded(self, counts: IntArray, *, up: bool) -> IntArray:
        """Nearest allowed counts at or above (`up`) or at or below `counts`; the other way where there is none."""
        result = np.empty_like(counts)
        for width, grid in enumerate(self.grids):
            index = np.searchsorted(grid, counts[width], side="left" if up else "right") - (0 if up else 1)
            result[width] = grid[min(max(int(index), 0), len(grid) - 1)]
        return result


def _reachable_multiple(align: int, total: int) -> int:
    """The multiple a dimension of `total` indices is held to: below one block, a quarter of one is as good."""
    if total > align:
        return align
    quarter = max(1, align // 4) if align % 4 == 0 else 1
    return next((step for step in finer_alignments(quarter) if 2 * step <= total), 1)


def full_grids(sizes: npt.NDArray[np.int64]) -> list[Grid]:
    """Every count from 0 to each width's size."""
    return [np.arange(int(size) + 1) for size in sizes]


def n_combinations(grids: list[Grid]) -> float:
    """How many vectors of counts the grids allow."""
    return math.prod(float(len(grid)) for grid in grids)
