"""What stays of a network when units are cut, asked by the gates of a dimension."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["DimensionGates", "GateArray", "Kept"]

GateArray = npt.NDArray[np.int64]
DimensionGates = GateArray | None
"""Gate of every index of one dimension, -1 where an index is not gated; None if the whole dimension is not."""


class Kept:
    """The units that stay. Of a dimension, an index stays with its unit, and always where it is not gated.

    Args:
        units: Which of the units stay, shape `(n_gates,)`, bool.
    """

    def __init__(self, units: npt.NDArray[np.bool_]) -> None:
        self._units = np.append(units, True)  # -1, not gated, points at the last

    @property
    def units(self) -> npt.NDArray[np.bool_]:
        """Which of the units stay, shape `(n_gates,)`."""
        return self._units[:-1]

    def __getitem__(self, gates: GateArray) -> npt.NDArray[np.bool_]:
        """Which indices of a dimension stay, in the shape of its `gates`."""
        return self._units[gates]

    def count(self, gates: GateArray) -> int:
        """How many indices of a dimension stay."""
        return int(self._units[gates].sum())

    def count_groups(self, gates: GateArray, n_groups: int) -> int:
        """In how many of the equal groups of a dimension, of neighbouring indices, any index stays."""
        return int(self._units[gates].reshape(n_groups, -1).any(1).sum())

    def __deepcopy__(self, memo: dict[int, Any]) -> Kept:
        """Immutable, so a copy of what holds it shares it."""
        return self
