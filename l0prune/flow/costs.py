"""What a layer costs, written in gates: sides, cost terms, and dimensions that must not vanish.

Plain data on numpy arrays: the channel flow fills it in, the budget reads it.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["CostTerm", "Dimension", "Side"]


@dataclass(frozen=True, eq=False)
class Side:
    """One dimension of a layer, as a count of indices: `n_ungated + number of open entries of gates`.

    Attributes:
        n_ungated: indices that no gate can remove, >= 0.
        gates: gate ids, shape `(n,)`, int64, one entry per gated index; a gate that owns 8 indices appears 8 times.
    """

    n_ungated: int
    gates: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class CostTerm:
    """One summand of the model's cost: `coefficient * product over sides of the side's count`.

    Attributes:
        name: dotted module name, for people.
        coefficient: MACs at batch 1, or parameters, per combination of one index from every side; >= 0.
        sides: none for a constant cost, one for a bias or a depthwise layer, two for most layers, rarely three.
    """

    name: str
    coefficient: float
    sides: tuple[Side, ...]


@dataclass(frozen=True, eq=False)
class Dimension:
    """A set of indices that must not vanish entirely, unless `removable`.

    Attributes:
        name: dotted parameter name and axis, for example `layer1.0.conv1.weight[0]`.
        n_ungated: indices that no gate can remove, >= 0.
        gates: gate ids, shape `(n,)`, int64, one entry per gated index, as in `Side`.
        removable: closing all of it only drops a residual branch, so it may become empty.
    """

    name: str
    n_ungated: int
    gates: npt.NDArray[np.int64]
    removable: bool
