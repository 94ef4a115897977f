"""The hard decision without a budget: what training closed is cut, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from l0prune.flow.costs import Dimension

__all__ = ["covered"]


def covered(
    open_gates: npt.NDArray[np.bool_], scores: npt.NDArray[np.float64], dimensions: Sequence[Dimension]
) -> npt.NDArray[np.bool_]:
    """The same gates, and the best-ranked of each dimension that would be empty and must not be.

    Args:
        open_gates: Shape `(n_gates,)`, bool; not changed.
        scores: Rank of the gates, higher is kept first, shape `(n_gates,)`.
        dimensions: Those that are not removable keep at least one index.
    """
    chosen = open_gates.copy()
    for dimension in dimensions:
        gates = dimension.gates
        if not dimension.removable and not dimension.n_ungated and len(gates) and not chosen[gates].any():
            chosen[gates[scores[gates].argmax()]] = True
    return chosen
