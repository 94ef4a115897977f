"""Residual branches: the units that are of no use without each other, and where what they compute joins the rest.

A dimension that may close entirely (`removable.py`) takes others with it: the output channels of a bottleneck's first
convolution are worth nothing without those of its second. All units whose nodes die or become constant when the dimension
closes are one branch, which can be nested in a larger one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from l0prune.flow.removable import Closing

if TYPE_CHECKING:
    from l0prune.flow.costs import Dimension
    from l0prune.kept import GateArray

__all__ = ["Branch", "find_branches"]


@dataclass(frozen=True, eq=False)
class Branch:
    """Units whose loss, all at once, leaves a path from input to output.

    Attributes:
        name: For people: the first parameter whose output it is.
        gates: Its units, ascending, shape `(n,)`.
        exits: Sets of its gates, each of which cuts it off when all of the set close; at least one.
    """

    name: str
    gates: GateArray
    exits: tuple[GateArray, ...]

    def worth(self, of_units: npt.NDArray[np.float64]) -> float:
        """What the loss would grow by without it: the least of what its exits are worth, each the sum of its units' worths.

        Nothing that is measured of the branch as one, by its gradient, says as much: closing it is no small change.

        Args:
            of_units: What each unit is worth, shape `(n_gates,)`.
        """
        return min(float(of_units[gates].sum()) for gates in self.exits)


def find_branches(
    closing: Closing,
    dimensions: Sequence[Dimension],
    gate_group: npt.NDArray[np.int64],
) -> tuple[Branch, ...]:
    """The branches of a network, each before those that are nested in it.

    Args:
        closing: Of its graph.
        dimensions: All distinct dimensions, with `removable` set.
        gate_group: Width of every gate.

    Returns:
        Branches any two of which are either nested or have no unit in common.
    """
    found: dict[bytes, _Found] = {}
    everything = np.zeros(closing.n_groups + 1, dtype=bool)
    for dimension in dimensions:
        if dimension.removable:
            own = closing.groups_of(dimension.gates)
            groups = own | closing.within(closing.useless(closing.states(own)))
            if not (closing.survives(groups) and closing.survives(everything | groups)):
                groups = own
            everything |= groups
            entry = found.setdefault(groups.tobytes(), _Found(dimension.name.partition("[")[0], groups, []))
            entry.exits.append(np.unique(dimension.gates))
    kept: list[npt.NDArray[np.bool_]] = []
    branches = []
    for entry in sorted(found.values(), key=lambda entry: -int(entry.groups.sum())):
        groups = entry.groups
        if not any((groups & other).any() and (groups & ~other).any() for other in kept):
            kept.append(groups)
            branches.append(Branch(entry.name, np.flatnonzero(groups[gate_group]).astype(np.int64), tuple(entry.exits)))
    return tuple(branches)


class _Found(NamedTuple):
    name: str
    groups: npt.NDArray[np.bool_]
    exits: list[GateArray]
