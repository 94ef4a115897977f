"""Graphs that are run node by node over all batches, so that one can be changed by what another has computed so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.fx import GraphModule, Interpreter, Node

from l0prune.ops.node import aliased

__all__ = ["Walk"]


class Walk:
    """A graph on its way through several batches at once: each node is run for all of them before the next one.

    Args:
        graph: Of ATen operations; its tensors may be changed on the way.
        batches: The inputs of each batch, in the order of the placeholders.
    """

    def __init__(self, graph: GraphModule, batches: Sequence[Sequence[Any]]) -> None:
        self._interpreter = Interpreter(graph, garbage_collect_values=False)
        self._nodes = list(graph.graph.nodes)
        self._place = {node.name: place for place, node in enumerate(self._nodes)}
        self._next = 0
        self._values: list[dict[Node, Any]] = [{} for _ in batches]
        inputs = [node for node in self._nodes if node.op == "placeholder"]
        for values, batch in zip(self._values, batches, strict=True):
            values.update(zip(inputs, batch, strict=True))
        last = {source: node for node in self._nodes for source in node.all_input_nodes}
        self._over: dict[Node, list[Node]] = {}
        for source, node in last.items():
            self._over.setdefault(node, []).append(source)

    @property
    def upcoming(self) -> Node | None:
        """The node that is run next; None at the end."""
        node = self._nodes[self._next]
        return None if node.op == "output" else node

    def step(self) -> None:
        """Run the next node; values that no later one uses are dropped."""
        node = self._nodes[self._next]
        for values in self._values:
            if node.op != "placeholder":
                self._run(node, values)
            for source in self._over.get(node, ()):
                del values[source]
        self._next += 1

    def run_to(self, name: str) -> list[Any]:
        """Run as far as the node of this name, unless it has been run, and return its value in every batch."""
        while self._next <= self._place[name]:
            self.step()
        return self.values(name)

    def values(self, name: str) -> list[Any]:
        """The value of a node that has been run, and is still to be used, in every batch."""
        node = self._nodes[self._place[name]]
        return [values[node] for values in self._values]

    def looked_ahead(self, name: str, until: str) -> list[Any] | None:
        """The value of a node in every batch, whether it has been run already or lies ahead; nothing moves on by that.

        Args:
            name: Of the node.
            until: Name of one that uses it; if anything is written in place before that, the value is not to be had.
        """
        first, last = self._place.get(name), self._place.get(until)
        if first is None or last is None or any(_writes(node) for node in self._nodes[self._next : last]):
            return None
        node, found = self._nodes[first], []
        for values in self._values:
            known = dict(values)
            needed = self._missing(node, known)
            for source in sorted(needed, key=lambda source: self._place[source.name]):
                self._run(source, known)
            found.append(known[node])
        return found

    def _missing(self, node: Node, known: dict[Node, Any]) -> set[Node]:
        """The nodes that have to be run for the value of one."""
        missing, new = set(), {node} - known.keys()
        while new:
            missing |= new
            new = {source for found in new for source in found.all_input_nodes} - known.keys() - missing
        return missing

    def _run(self, node: Node, values: dict[Node, Any]) -> None:
        self._interpreter.env = values
        values[node] = self._interpreter.run_node(node)


def _writes(node: Node) -> bool:
    return any(is_write for _, is_write in aliased(node))
