"""Tables of a profile as arrays: read at counts of many layers at once, as the staircase and as a smooth floor under it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from l0prune.latency.profile import REGIONS, Axis, Piece, Table

__all__ = ["ReadTable", "region_of"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def region_of(counts: IntArray, *, block: int, multiple: int) -> IntArray:
    """Index in `REGIONS` of counts >= 1."""
    return np.where(counts < block, 0, np.where(counts % multiple == 0, 1, 2))


@dataclass(frozen=True, eq=False)
class _Reading:
    """Where counts from 0 to the largest lie on an axis: the knot below, and how far on the way to the next one."""

    below: IntArray
    part: FloatArray

    @classmethod
    def of(cls, axis: Axis, largest: int) -> _Reading:
        knots = np.array(axis.knots)
        counts = np.minimum(-(-np.arange(largest + 1) // axis.step) * axis.step, knots[-1])
        below = np.clip(np.searchsorted(knots, counts, side="right") - 1, 0, max(len(knots) - 2, 0))
        after = np.minimum(below + 1, len(knots) - 1)
        width = np.maximum(knots[after] - knots[below], 1)
        return cls(below, np.clip((counts - knots[below]) / width, 0.0, 1.0))


class ReadTable:
    """A table at whole counts.

    Args:
        table: Of the profile.
        largest: Largest counts of its sides, as many as it has.
        block: Of the profile.
        multiple: Of the profile.
    """

    def __init__(self, table: Table, largest: Sequence[int], *, block: int, multiple: int) -> None:
        self.n_sides = table.n_sides
        self._rule = {"block": block, "multiple": multiple}
        self._regions = [region_of(np.arange(size + 1), **self._rule) for size in largest]
        self._pieces = {tuple(REGIONS.index(axis.region) for axis in piece.axes): piece for piece in table.pieces}
        self._read = {
            key: [_Reading.of(axis, size) for axis, size in zip(piece.axes, largest, strict=True)]
            for key, piece in self._pieces.items()
        }
        self._closed = table.closed
        self._closed_reading = None if table.closed is None else _Reading.of(table.closed.axes[0], largest[-1])

    def __call__(self, *counts: IntArray) -> FloatArray:
        """Microseconds at counts >= 0, of all sides in one shape."""
        found = np.zeros(counts[0].shape)
        regions = [of_side[side] for of_side, side in zip(self._regions, counts, strict=True)]
        is_open = np.logical_and.reduce([side > 0 for side in counts])
        for key in self._keys():
            here = is_open & np.logical_and.reduce([region == at for region, at in zip(regions, key, strict=True)])
            if here.any():
                piece = self._nearest(key)
                found[here] = _read(self._pieces[piece], self._read[piece], [side[here] for side in counts])
        if self._closed is not None and self._closed_reading is not None:
            closed = counts[0] == 0
            last = counts[-1][closed] if self.n_sides > 1 else np.zeros(int(closed.sum()), np.int64)
            found[closed] = np.where(
                (last > 0) | (self.n_sides == 1), _read(self._closed, [self._closed_reading], [last]), 0.0
            )
        return found

    def floor(self, *knots: IntArray) -> FloatArray:
        """The least time at any knots that are as large as these or larger; shape `(len(knots_0), ...)`.

        Args:
            knots: For each side ascending counts >= 1.
        """
        times = self(*np.meshgrid(*knots, indexing="ij"))
        for dim in range(len(knots)):
            times = np.flip(np.minimum.accumulate(np.flip(times, dim), dim), dim)
        return times

    def _keys(self) -> list[tuple[int, ...]]:
        return list(itertools.product(range(len(REGIONS)), repeat=self.n_sides))

    def _nearest(self, key: tuple[int, ...]) -> tuple[int, ...]:
        """The piece for a combination of regions, or one that stands for it."""
        if key in self._pieces:
            return key
        return min(self._pieces, key=lambda known: [abs(a - b) for a, b in zip(known, key, strict=True)])


def _read(piece: Piece, readings: Sequence[_Reading], counts: Sequence[IntArray]) -> FloatArray:
    values = np.array(piece.us).reshape([len(axis.knots) for axis in piece.axes])
    below = [reading.below[side] for reading, side in zip(readings, counts, strict=True)]
    part = [reading.part[side] for reading, side in zip(readings, counts, strict=True)]
    after = [np.minimum(low + 1, size - 1) for low, size in zip(below, values.shape, strict=True)]
    if len(below) == 1:
        return values[below[0]] * (1 - part[0]) + values[after[0]] * part[0]
    at_low = values[below[0], below[1]] * (1 - part[1]) + values[below[0], after[1]] * part[1]
    at_high = values[after[0], below[1]] * (1 - part[1]) + values[after[0], after[1]] * part[1]
    return at_low * (1 - part[0]) + at_high * part[0]
