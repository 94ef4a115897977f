"""What stays of a tensor: runs of indices for each dimension."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["Runs", "TensorCut", "checked_cut", "to_indices", "to_runs"]

Runs = tuple[tuple[int, int], ...]
"""Half-open runs `(start, stop)` of kept indices, ascending."""


LARGEST_SIZE = 1 << 28
"""Of a dimension that a file speaks of; vocabularies have a few hundred thousand entries."""


def to_runs(keep: npt.NDArray[np.bool_]) -> Runs:
    """Runs of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], keep, [False]]).astype(np.int8)))
    return tuple((int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True))


def to_indices(runs: Runs) -> npt.NDArray[np.int64]:
    """The indices in the runs."""
    return np.concatenate([np.arange(a, b) for a, b in runs]) if runs else np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class TensorCut:
    """What stays of one tensor.

    Attributes:
        dense_shape: Shape in the dense model.
        kept: Dimension -> runs of indices that stay; dimensions that stay whole are absent.
    """

    dense_shape: tuple[int, ...]
    kept: dict[int, Runs]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape after the cut."""
        return tuple(
            sum(b - a for a, b in self.kept[d]) if d in self.kept else size for d, size in enumerate(self.dense_shape)
        )

    def select(self, tensor: Tensor) -> Tensor:
        """The part of a dense tensor that stays, as a new contiguous tensor."""
        for dim, runs in self.kept.items():
            tensor = tensor.index_select(dim, torch.from_numpy(to_indices(runs)).to(tensor.device))
        return tensor.detach().clone(memory_format=torch.contiguous_format)

    def scatter_(self, dense: Tensor, compact: Tensor) -> None:
        """Write a compact tensor back to its place in the dense one; other entries stay as they are."""
        if not self.kept:
            dense.copy_(compact)
            return
        grid = [
            torch.from_numpy(to_indices(self.kept[d])) if d in self.kept else torch.arange(size)
            for d, size in enumerate(self.dense_shape)
        ]
        index = torch.meshgrid(*[g.to(dense.device) for g in grid], indexing="ij")
        dense[index] = compact.to(dense)


def checked_cut(dense_shape: tuple[int, ...], kept: dict[int, Runs]) -> TensorCut:
    """A cut that was read from a file.

    Raises:
        ValueError: a dimension or a run lies outside the tensor, or runs are not ascending.
    """
    if not all(0 <= size <= LARGEST_SIZE for size in dense_shape):
        raise ValueError(f"a tensor of shape {dense_shape}")
    for dim, runs in kept.items():
        if not 0 <= dim < len(dense_shape):
            raise ValueError(f"dimension {dim} of a tensor of shape {dense_shape}")
        bounds = [bound for run in runs for bound in run]
        if bounds != sorted(bounds) or (bounds and (bounds[0] < 0 or bounds[-1] > dense_shape[dim])):
            raise ValueError(f"runs {runs} do not lie in a dimension of {dense_shape[dim]}")
    return TensorCut(dense_shape, kept)
