"""What a network takes as a whole, from what its layers add up to: a rising curve between a few points."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["WholeNetwork"]

FloatArray = npt.NDArray[np.float64]


class WholeNetwork:
    """The curve of a profile.

    Args:
        knots: As `Profile.whole`: sums of layers and what the network takes, both ascending; none for the sum itself.
        scale: What both are multiplied by.
    """

    def __init__(self, knots: Sequence[tuple[float, float]], scale: float = 1.0) -> None:
        known = tuple(knots) or ((1.0, 1.0),)
        last = known[-1]
        self._sums, self._totals = np.ascontiguousarray(
            scale * np.array([(0.0, 0.0), *known, (2 * last[0], 2 * last[1])]).T
        )
        self._beyond = last[1] / last[0]

    def __call__(self, sums: npt.ArrayLike) -> FloatArray:
        """What networks take whose layers add up to `sums`, of the same shape."""
        sums = np.asarray(sums, np.float64)
        inside = np.interp(sums, self._sums, self._totals)
        return np.asarray(np.where(sums > self._sums[-1], self._beyond * sums, inside))

    def smooth(self, total: Tensor) -> Tensor:
        """As a call, differentiable; a scalar."""
        sums, totals = (
            torch.as_tensor(part, dtype=total.dtype, device=total.device) for part in (self._sums, self._totals)
        )
        at = torch.searchsorted(sums, total.detach().reshape(1)).clamp(1, len(sums) - 1)[0]
        slope = (totals[at] - totals[at - 1]) / (sums[at] - sums[at - 1])
        return totals[at - 1] + slope * (total - sums[at - 1])
