"""Two sets of units by whose sizes the dimensions of a network are known in its files, and parts of dimensions as well."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from l0prune.flow.channel_flow import ChannelFlow
from l0prune.kept import GateArray, Kept
from l0prune.profiling.dimensions import FlowDimension

__all__ = ["telling_cuts"]

BoolArray = npt.NDArray[np.bool_]
_TRIES = 200


def telling_cuts(flow: ChannelFlow, dimensions: Sequence[FlowDimension], seed: int) -> list[BoolArray]:
    """Draw cuts until every size changes in at least one of the two, and no two sizes change alike, as far as that is possible.

    Sizes are those of the dimensions and of their ends, such as the zero channels before and after those of a padded shortcut:
    a size that stays would not be known to be one, and would be left as it is at all widths.

    Args:
        flow: The traced network.
        dimensions: All of its dimensions.
        seed: Of the cuts.

    Returns:
        Two sets of units that stay, shape `(n_gates,)` each.
    """
    rng = np.random.default_rng(seed)
    told = _ends(dimensions, flow.n_gates)
    told += [dimension.gates for dimension in dimensions]
    best: tuple[tuple[int, int], list[BoolArray]] | None = None
    for _ in range(_TRIES):
        cuts = [_random_part(flow, rng) for _ in range(2)]
        kept = [Kept(cut) for cut in cuts]
        rows = [(len(gates), *(one.count(gates) for one in kept)) for gates in told]
        faults = sum(len(set(row)) == 1 for row in rows), len(rows) - len(set(rows))
        if best is None or faults < best[0]:
            best = faults, cuts
        if not any(faults):
            break
    assert best is not None
    return best[1]


def _ends(dimensions: Sequence[FlowDimension], n_gates: int) -> list[GateArray]:
    """First and last indices of dimensions as far as their gates are in the same dimensions, each set once."""
    of_dimension = np.random.default_rng(0).integers(2**62, size=len(dimensions))
    marks = np.zeros(n_gates + 1, np.int64)  # -1, not gated, points at the last
    for number, dimension in enumerate(dimensions):
        marks[np.unique(dimension.gates[dimension.gates >= 0])] ^= of_dimension[number]
    whole = {np.sort(dimension.gates).tobytes() for dimension in dimensions}
    found: dict[bytes, GateArray] = {}
    for dimension in dimensions:
        edges = np.flatnonzero(np.diff(marks[dimension.gates])) + 1
        for end in (dimension.gates[: edges[0]], dimension.gates[edges[-1] :]) if len(edges) else ():
            key = np.sort(end).tobytes()
            if key not in whole and (end >= 0).any():
                found[key] = end
    return list(found.values())


def _random_part(flow: ChannelFlow, rng: np.random.Generator) -> BoolArray:
    """A random number of the units of every width, a third at least."""
    is_open = np.zeros(flow.n_gates, bool)
    for group in np.unique(flow.gate_group):
        members = np.flatnonzero(flow.gate_group == group)
        least = -(-len(members) // 3)
        is_open[rng.permutation(members)[: rng.integers(least, len(members) + 1)]] = True
    return is_open
