"""A graph as plain data, so that a model in graph form can be pickled: FX itself would trace the code it wrote, and fail."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.graph import _PyTreeCodeGen
from torch.fx.node import map_arg

__all__ = ["GraphData"]


@dataclass(frozen=True)
class _Ref:
    """Stands for a node among the arguments of another."""

    name: str


@dataclass(frozen=True)
class GraphData:
    """What a graph is made of.

    Attributes:
        nodes: Of every node the kind, name, target, arguments, keyword arguments, and the marks that stay on it.
        pytree: How inputs and outputs nest; None for a graph of plain arguments.
    """

    nodes: tuple[tuple[Any, ...], ...]
    pytree: Any

    @classmethod
    def of(cls, graph: Graph, marks: tuple[str, ...]) -> GraphData:
        """Take a graph apart.

        Args:
            graph: Of ATen operations.
            marks: Entries of `node.meta` that are to be kept.
        """
        nodes = []
        for node in graph.nodes:
            args, kwargs = _with_references((node.args, node.kwargs))
            kept = {mark: node.meta[mark] for mark in marks if mark in node.meta}
            nodes.append((node.op, node.name, _name_of(node.target), args, kwargs, kept))
        codegen = graph._codegen
        return cls(tuple(nodes), codegen.pytree_info if isinstance(codegen, _PyTreeCodeGen) else None)

    def build(self) -> Graph:
        """The graph."""
        graph = Graph()
        known: dict[str, Node] = {}
        for op, name, target, args, kwargs, kept in self.nodes:
            own_args, own_kwargs = _with_nodes((args, kwargs), known)
            node = graph.create_node(op, _target_of(target), own_args, own_kwargs, name=name)
            node.meta.update(kept)
            known[name] = node
        if self.pytree is not None:
            graph.set_codegen(_PyTreeCodeGen(self.pytree))
        return graph


def _with_references(arguments: Any) -> Any:
    return map_arg(arguments, lambda used: _Ref(used.name))  # type: ignore[arg-type, return-value]


def _with_nodes(value: Any, known: dict[str, Node]) -> Any:
    if isinstance(value, _Ref):
        return known[value.name]
    if isinstance(value, dict):
        return {key: _with_nodes(part, known) for key, part in value.items()}
    if isinstance(value, slice):
        return slice(*(_with_nodes(part, known) for part in (value.start, value.stop, value.step)))
    if isinstance(value, (list, tuple)):
        return type(value)([_with_nodes(part, known) for part in value])
    return value


def _name_of(target: Any) -> Any:
    """A target as names: those of an operation, or of a function in its module."""
    if isinstance(target, torch._ops.OpOverload):
        return ("op", *str(target).split("."))
    if callable(target):
        name = target.__name__
        module = "torch" if getattr(torch, name, None) is target else target.__module__
        if getattr(importlib.import_module(module), name, None) is not target:
            name = name.removeprefix("_")
        return ("function", module, name)
    return target


def _target_of(target: Any) -> Any:
    if not isinstance(target, tuple):
        return target
    kind, *names = target
    if kind == "function":
        return getattr(importlib.import_module(names[0]), names[1])
    found: Any = torch.ops
    for name in names:
        found = getattr(found, name)
    return found
