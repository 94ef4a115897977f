"""The dimensions of a traced network by name: what a profile speaks of, and how the sizes in a file are known to be theirs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from l0prune.flow.channel_flow import ChannelFlow
from l0prune.kept import GateArray
from l0prune.latency.profile import Where

__all__ = ["FlowDimension", "flow_dimensions"]


@dataclass(frozen=True, eq=False)
class FlowDimension:
    """A set of indices of a network.

    Attributes:
        where: A place where it is found; None for a part of a dimension.
        gates: Gate of every index, -1 where not gated.
        nodes: Places in the order of the graph of the nodes that have it.
    """

    where: Where | None
    gates: GateArray
    nodes: tuple[int, ...]


def flow_dimensions(flow: ChannelFlow) -> list[FlowDimension]:
    """All distinct sets of indices with gates: those of tensors first, then those that only nodes have."""
    order = {node.name: at for at, node in enumerate(flow.captured.program.graph.nodes)}
    found: dict[bytes, tuple[Where, GateArray, list[int]]] = {}
    for name, dims in flow.tensors.items():
        for place, gates in _gated(dims):
            found.setdefault(np.sort(gates).tobytes(), (Where(name, place, len(gates)), gates, []))
    for name, labels in flow.nodes.items():
        for place, gates in _gated(labels):
            known = found.setdefault(np.sort(gates).tobytes(), (Where(name, place, len(gates)), gates, []))
            if name in order:
                known[2].append(order[name])
    return [FlowDimension(where, gates, tuple(nodes)) for where, gates, nodes in found.values()]


def _gated(labels: Sequence[Any]) -> Iterator[tuple[tuple[int, ...], GateArray]]:
    """Gated dimensions with their place; of a node with several outputs, output and dimension."""
    for place, gates in enumerate(labels or ()):
        if isinstance(gates, (list, tuple)):
            yield from (((place, *inner), found) for inner, found in _gated(gates))
        elif gates is not None and (gates >= 0).any():
            yield (place,), gates
