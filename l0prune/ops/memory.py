"""Which tensors of a graph share memory, and whether one is written after another was made of it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.fx import Node

__all__ = ["aliased", "written_later"]


def written_later(view: Node) -> bool:
    """Whether an in-place op after `view` changes memory that it shows: through it, its base, or another view of that.

    A kept part of such a view has to stay a view; a copy would miss the change.
    """
    order = {node: position for position, node in enumerate(view.graph.nodes)}
    return any(_is_write(user) and order[user] > order[view] for user in _alias_users(_base(view)))


def _base(node: Node) -> Node:
    """The tensor whose memory a view shows."""
    while node.op == "call_function":
        sources = [source for source, _ in aliased(node)]
        if not sources:
            break
        node = sources[0]
    return node


def _alias_users(base: Node) -> Iterator[Node]:
    """Every node that shows or writes the memory of `base`."""
    for user in base.users:
        if any(source is base for source, _ in aliased(user)):
            yield user
            yield from _alias_users(user)


def _is_write(node: Node) -> bool:
    return any(written for _, written in aliased(node))


def aliased(node: Node) -> list[tuple[Node, bool]]:
    """Arguments whose memory the output shares or the op writes, and whether it writes."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return []
    found = []
    for position, argument in enumerate(node.target._schema.arguments):
        value = node.kwargs.get(argument.name, node.args[position] if position < len(node.args) else None)
        if argument.alias_info is not None and isinstance(value, Node):
            found.append((value, bool(argument.alias_info.is_write)))
    return found
