"""Arrays that are not whole in memory, or not rectangular: their rows are read, or padded, when a batch needs them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Stored", "TokenRows"]

Indices = npt.NDArray[np.int64]


class Stored(ABC):
    """What stands for an array (N, ...) whose rows are made on demand.

    Attributes:
        dtype: Of its numbers.
        shape: Its sizes, those of the largest row where they differ.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def __len__(self) -> int:
        """Number of rows."""
        return self.shape[0]

    @property
    def common(self) -> tuple[int, ...]:
        """Sizes that all rows have."""
        return self.shape[1:]

    @abstractmethod
    def __getitem__(self, rows: Any) -> Stored:
        """Some of the rows, by their numbers; what they hold is not read."""

    @abstractmethod
    def read(self, rows: Indices) -> npt.NDArray[Any]:
        """Rows as one array, padded to the largest of them."""

    def lengths(self) -> Indices | None:
        """How long each row is, where batches of alike ones are cheaper; None where they are all of one size."""
        return None


class TokenRows(Stored):
    """Rows of token ids of different lengths.

    Args:
        flat: The tokens of all rows one after another, (M,).
        starts: Where each row begins in it, (N,), or of pairs (N, 2).
        ends: Where it ends.
        fill: What shorter rows of a batch are padded with.
        width: What all batches are padded to; None pads each to its longest row.
    """

    dtype = np.dtype(np.int64)

    def __init__(
        self, flat: npt.NDArray[np.int32], starts: Indices, ends: Indices, fill: int, width: int | None = None
    ) -> None:
        self._flat, self._starts, self._ends, self._fill, self._width = flat, starts, ends, fill, width
        longest = int((ends - starts).max()) if len(starts) else 0
        self.shape = (*starts.shape, longest)

    @classmethod
    def of(
        cls, rows: Sequence[Sequence[int]], fill: int, *, pairs: bool = False, width: int | None = None
    ) -> TokenRows:
        """Lists of tokens; of pairs, all first ones and then all second ones."""
        lengths = np.array([len(row) for row in rows], np.int64)
        ends = np.cumsum(lengths)
        flat = np.fromiter((token for row in rows for token in row), np.int32, int(lengths.sum()))
        starts = ends - lengths
        if pairs:
            starts, ends = (np.stack(np.split(bounds, 2), axis=1) for bounds in (starts, ends))
        return cls(flat, starts, ends, fill, width)

    @property
    def common(self) -> tuple[int, ...]:
        """All but the number of tokens."""
        return self.shape[1:-1]

    def __getitem__(self, rows: Any) -> TokenRows:
        """Some rows, or one of each pair."""
        return TokenRows(self._flat, self._starts[rows], self._ends[rows], self._fill, self._width)

    def read(self, rows: Indices) -> npt.NDArray[np.int64]:
        """Rows (n, T), or of pairs (n, 2, T), padded to the longest."""
        starts, ends = self._starts[rows], self._ends[rows]
        within = np.arange(self._width or int((ends - starts).max()))
        index = starts[..., None] + within
        is_there = index < ends[..., None]
        return np.where(is_there, self._flat[np.where(is_there, index, 0)], self._fill).astype(np.int64)

    def lengths(self) -> Indices:
        """Tokens of each row; of a pair, of its longer one."""
        sizes = self._ends - self._starts
        return sizes if sizes.ndim == 1 else sizes.max(axis=1)

    def filled(self, fill: int) -> TokenRows:
        """The same rows, padded with another number."""
        return TokenRows(self._flat, self._starts, self._ends, fill, self._width)

    def numbers(self) -> npt.NDArray[np.int64]:
        """The tokens of all rows, (M,)."""
        return self._flat.astype(np.int64)
