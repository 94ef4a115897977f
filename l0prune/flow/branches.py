"""Residual branches: the units that are of no use without each other, and where what they compute joins the rest.

A dimension that may close entirely (`removable.py`) takes others with it: the output channels of a bottleneck's first
convolution are worth nothing without those of its second. All units whose nodes die or become constant when the dimension
closes are one branch, which can be nested in a larger one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.fx import Node

from l0prune.flow.removable import Closing, State
from l0prune.ops.node import argument_of, op_name
from l0prune.ops.operation import operation_of

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
        scaled_by: Parameters whose product with a factor scales what the branch adds to the rest: the last weights on its way
            there. Scaling what comes before a norm would change nothing.
        exits: Sets of its gates, each of which cuts it off when all of the set close. The first scales what it adds where
            there are no such parameters.
    """

    name: str
    gates: GateArray
    scaled_by: tuple[str, ...]
    exits: tuple[GateArray, ...]


def find_branches(
    closing: Closing,
    dimensions: Sequence[Dimension],
    gate_group: npt.NDArray[np.int64],
    parameter_of: dict[str, str],
) -> tuple[Branch, ...]:
    """The branches of a network, each before those that are nested in it.

    Args:
        closing: Of its graph.
        dimensions: All distinct dimensions, with `removable` set.
        gate_group: Width of every gate.
        parameter_of: Name of a placeholder -> the parameter that it is.

    Returns:
        Branches any two of which are either nested or have no unit in common.
    """
    found: dict[bytes, _Found] = {}
    everything = np.zeros(closing.n_groups + 1, dtype=bool)
    for dimension in dimensions:
        if dimension.removable:
            own = closing.groups_of(dimension.gates)
            states = closing.states(own)
            groups = own | closing.within(closing.useless(states))
            if not (closing.survives(groups) and closing.survives(everything | groups)):
                groups = own
            everything |= groups
            entry = found.setdefault(groups.tobytes(), _Found(dimension.name.partition("[")[0], groups, states, []))
            entry.exits.append(np.unique(dimension.gates))
    kept: list[npt.NDArray[np.bool_]] = []
    branches = []
    for entry in sorted(found.values(), key=lambda entry: -int(entry.groups.sum())):
        groups = entry.groups
        if not any((groups & other).any() and (groups & ~other).any() for other in kept):
            kept.append(groups)
            scaled_by = tuple(dict.fromkeys(_scales(entry.states, closing.live, parameter_of)))
            branches.append(
                Branch(entry.name, np.flatnonzero(groups[gate_group]).astype(np.int64), scaled_by, tuple(entry.exits))
            )
    return tuple(branches)


class _Found(NamedTuple):
    name: str
    groups: npt.NDArray[np.bool_]
    states: dict[Node, State]
    exits: list[GateArray]


def _scales(states: dict[Node, State], live: frozenset[Node], parameter_of: dict[str, str]) -> Iterable[str]:
    """The last weights on each path from a closed branch to what stays."""
    reached = [
        node for node, state in states.items() if state is State.CONSTANT and not states.keys() >= set(node.users)
    ]
    seen: set[Node] = set()
    while reached:
        node = reached.pop()
        if node in seen or node not in states or node not in live:
            continue
        seen.add(node)
        weight = _weight_of(node)
        if weight is None:
            parameters = [source for source in node.all_input_nodes if source not in live]
            weight = parameters[0] if _is_product(node) and len(parameters) == 1 else None
        if weight is not None:
            placeholder = _origin(weight)
            if placeholder.name in parameter_of and all(user in states for user in placeholder.users):
                yield parameter_of[placeholder.name]
        elif not _takes_statistics(node):
            reached.extend(node.all_input_nodes)


def _weight_of(node: Node) -> Node | None:
    """What multiplies the result of a layer, or of a norm."""
    operation = operation_of(node.target)
    if operation.contracts is not None:
        weight = operation.contracts(node).weight
    elif _takes_statistics(node):
        weight = argument_of(node, "weight")
    else:
        return None
    return weight if isinstance(weight, Node) else None


def _takes_statistics(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and any(
        argument.name == "weight" for argument in node.target._schema.arguments
    )


def _is_product(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and op_name(node.target).rstrip("_") == "mul"


def _origin(node: Node) -> Node:
    """The placeholder that a weight is up to its layout and precision."""
    while node.op == "call_function" and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
    return node
