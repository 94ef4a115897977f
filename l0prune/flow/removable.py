"""Which dimensions may close entirely: those of a residual branch, whose loss leaves a path from input to output.

When a dimension is empty, what consumes it yields a constant (its bias), whatever the input: the branch is dead. The
constant may flow on through elementwise ops and norms until it meets a live tensor, which it shifts. If it meets the
output, or an op whose result would not be a broadcast constant, the dimension may not close.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch.fx import Graph, Node

from l0prune.kept import Kept
from l0prune.ops.node import aliased
from l0prune.ops.operation import InClosedBranch, operation_of

if TYPE_CHECKING:
    from l0prune.flow.costs import Dimension

__all__ = ["Closing", "State", "branch_states", "dead_nodes", "input_dependent", "removable_dimensions"]


class State(Enum):
    """What becomes of a node when some dimensions are empty."""

    DEAD = "it has an empty dimension"
    CONSTANT = "it no longer depends on the input, and is constant along batch, positions and space"
    STUCK = "it cannot be computed any more, or only at full size"


class Closing:
    """What becomes of the nodes of a graph when whole widths close.

    Args:
        graph: The exported graph.
        nodes: Gates of each dimension of each node's output.
        gate_group: Width of every gate.
        inputs: Names of the placeholders that are inputs of the model.

    Attributes:
        live: Nodes that depend on the inputs of the model.
        n_groups: Number of widths.
    """

    def __init__(
        self,
        graph: Graph,
        nodes: dict[str, list],
        gate_group: npt.NDArray[np.int64],
        inputs: frozenset[str],
    ) -> None:
        self.n_groups = int(gate_group.max()) + 1 if gate_group.size else 0
        self.live = input_dependent(graph, inputs)
        self._gate_group = gate_group
        self._seen: dict[int, npt.NDArray[np.bool_]] = {}
        self._order = list(graph.nodes)
        self._owners: list[Node] = []
        rows: list[npt.NDArray[np.bool_]] = []
        for node in self._order:
            if node.op == "call_function":
                for gates in _common_dimensions(nodes.get(node.name)):
                    if gates is not None:
                        self._owners.append(node)
                        rows.append(self.groups_of(gates))
        self._table = np.array(rows, dtype=bool).reshape(len(rows), self.n_groups + 1)

    def groups_of(self, gates: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Widths that these gates belong to, shape `(n_groups + 1,)`; the last entry stands for "not gated"."""
        if id(gates) not in self._seen:
            member = np.zeros(self.n_groups + 1, dtype=bool)
            member[np.where(gates < 0, self.n_groups, self._gate_group[gates])] = True
            self._seen[id(gates)] = member
        return self._seen[id(gates)]

    def states(self, closed: npt.NDArray[np.bool_]) -> dict[Node, State]:
        """State of every node that is affected when these widths close, shape `(n_groups + 1,)`."""
        dead = {self._owners[i] for i in np.flatnonzero(~(self._table & ~closed).any(axis=1))}
        return branch_states(self._order, dead, self.live)

    def survives(self, closed: npt.NDArray[np.bool_]) -> bool:
        """Whether the outputs of the model still depend on its inputs, all of them at full size."""
        states = self.states(closed)
        return State.STUCK not in states.values() and not any(node.op == "output" for node in states)

    def useless(self, affected: Collection[Node]) -> set[Node]:
        """These nodes, and those that nothing else uses."""
        found = set(affected)
        for node in reversed(self._order):
            if node.op == "call_function" and node.users and found.issuperset(node.users):
                found.add(node)
        return found

    def within(self, affected: Collection[Node]) -> npt.NDArray[np.bool_]:
        """Widths that exist nowhere but in these nodes, shape `(n_groups + 1,)`."""
        outside = [row for node, row in zip(self._owners, self._table, strict=True) if node not in affected]
        found = self._table.any(axis=0) & ~np.any(np.array(outside, dtype=bool).reshape(-1, self.n_groups + 1), axis=0)
        found[self.n_groups] = False
        return np.asarray(found)


def removable_dimensions(closing: Closing, dimensions: tuple[Dimension, ...]) -> tuple[Dimension, ...]:
    """Mark the dimensions that may close entirely, each alone and all of them together.

    Of parallel branches without a shortcut between input and output, one has to stay: the last in the order of `dimensions`
    is not removable then.

    Args:
        closing: Of the graph.
        dimensions: All distinct dimensions.

    Returns:
        The dimensions, with `removable` set.
    """
    result = []
    all_closed = np.zeros(closing.n_groups + 1, dtype=bool)
    for dimension in dimensions:
        closed = closing.groups_of(dimension.gates)
        removable = dimension.n_ungated == 0 and closing.survives(closed) and closing.survives(all_closed | closed)
        if removable:
            all_closed |= closed
        result.append(replace(dimension, removable=removable))
    return tuple(result)


def dead_nodes(graph: Graph, nodes: dict[str, list], kept: Kept) -> set[Node]:
    """Nodes whose output has a dimension in which nothing stays."""
    return {
        node
        for node in graph.nodes
        if node.op == "call_function"
        and any(gates is not None and not kept[gates].any() for gates in _common_dimensions(nodes.get(node.name)))
    }


def input_dependent(graph: Graph, inputs: frozenset[str]) -> frozenset[Node]:
    """Nodes with a tensor that depends on the placeholders named `inputs`, also where it was written into them in place."""
    dependent: set[Node] = set()
    n_before = -1
    while n_before != len(dependent):
        n_before = len(dependent)
        for node in graph.nodes:
            reached = node.name in inputs or any(source in dependent for source in node.all_input_nodes)
            if reached and not isinstance(node.meta.get("val"), (int, float, bool, torch.SymInt)):
                dependent.add(node)
                dependent |= _written_by(node)
    return frozenset(dependent)


def _written_by(node: Node) -> set[Node]:
    """The tensors that an in-place op changes: its operand, and what that is a view of."""
    written = [source for source, is_write in aliased(node) if is_write]
    found: set[Node] = set()
    while written:
        source = written.pop()
        if source not in found and source.op == "call_function":
            found.add(source)
            written += [base for base, _ in aliased(source)]
    return found


def branch_states(order: Iterable[Node], dead: set[Node], live: frozenset[Node]) -> dict[Node, State]:
    """State of every node that is affected by dead nodes, in the order of the graph; the others are live.

    Args:
        order: Nodes in the order of the graph.
        dead: Nodes with an empty dimension.
        live: Nodes that depend on the inputs of the model, from `input_dependent`.
    """
    states: dict[Node, State] = {}
    if not dead:
        return states
    for node in order:
        if node in dead:
            needs_units = operation_of(node.target).closed is InClosedBranch.NEEDS_UNITS
            states[node] = State.STUCK if needs_units else State.DEAD
        elif node.op in ("call_function", "output"):
            affected = [states[source] for source in node.all_input_nodes if source in states]
            if affected:
                state = _state(node, states, live)
                if state is not None:
                    states[node] = state
    return states


def _state(node: Node, states: dict[Node, State], live: frozenset[Node]) -> State | None:
    """State of a node with at least one affected input; None for live."""
    if node.op == "output":
        return State.STUCK
    operation = operation_of(node.target)
    passes_constants = operation.closed is InClosedBranch.PASSES_CONSTANTS
    of_inputs = [states.get(source) for source in node.all_input_nodes]
    if State.STUCK in of_inputs:
        return State.STUCK
    if operation.contracts is not None:
        of_activation = states.get(operation.contracts(node).activation)
        is_constant = of_activation is State.DEAD or (passes_constants and of_activation is State.CONSTANT)
        return State.CONSTANT if is_constant else State.STUCK
    if operation.closed is InClosedBranch.LEAVES_OUT:
        return None if all(s is not State.CONSTANT for s in of_inputs) and None in of_inputs else State.STUCK
    if State.DEAD in of_inputs:
        return State.STUCK
    others = [
        source
        for source in node.all_input_nodes
        if source not in states and source in live and not _is_first_write(node, source, live)
    ]
    if not others:
        return State.CONSTANT if operation.is_pointwise or passes_constants else State.STUCK
    full = node.meta["val"].shape if isinstance(node.meta.get("val"), torch.Tensor) else None
    if operation.is_pointwise and any(_shape(source) == full for source in others):
        return None
    return State.STUCK


def _is_first_write(node: Node, memory: Node, live: frozenset[Node]) -> bool:
    """Whether memory depends on the inputs only by what this node writes into it, so that it does not before."""
    return (
        any(source is memory and is_write for source, is_write in aliased(node))
        and live.isdisjoint(memory.all_input_nodes)
        and not any(
            is_write for user in memory.users if user < node for source, is_write in aliased(user) if source is memory
        )
    )


def _shape(node: Node) -> torch.Size | None:
    value = node.meta.get("val")
    return value.shape if isinstance(value, torch.Tensor) else None


def _common_dimensions(gates: list | None) -> list:
    """Gated dimensions of a node; of several outputs, those of the first that all of them share."""
    if not gates or not isinstance(gates[0], (list, tuple)):
        return gates or []
    first, *others = gates
    return [
        g
        for g in first
        if g is not None and all(any(h is not None and np.array_equal(g, h) for h in other) for other in others)
    ]
