"""A call in a graph: its name, arguments, sizes and module, and which tensors share memory with its result."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import Node

__all__ = ["NoRuleError", "aliased", "argument_of", "concrete", "in_example", "module_of", "node_shape", "op_name",
           "set_argument", "varies", "written_later"]  # fmt: skip

UNKNOWN = -1
"""A size that depends on data which nobody has seen."""


class NoRuleError(Exception):
    """A rule declines: this use of the op is not covered, so the op's tensors are pinned."""


def op_name(target: Any) -> str:
    """`linear` for aten.linear.default, `getitem` for operator.getitem, `prims.foo` for other namespaces."""
    if isinstance(target, torch._ops.OpOverload):
        namespace, base = target._schema.name.split("::")
        return base if namespace == "aten" else f"{namespace}.{base}"
    return getattr(target, "__name__", str(target))


def concrete(size: int | torch.SymInt) -> int:
    """A size as a number: symbolic sizes give the size they had in the example."""
    if isinstance(size, int):
        return size
    hint = size.node.hint
    return int(hint) if hint is not None else UNKNOWN


def varies(size: int | torch.SymInt) -> bool:
    """Whether a size may be another one than in the example; a symbol that the model fixes to one number may not."""
    return not isinstance(size, int) and size.node.maybe_as_int() is None


def in_example(value: Any) -> int:
    """An integer argument of a call as a number: one that is computed from sizes as it was in the example."""
    return concrete(value.meta["val"] if isinstance(value, Node) else value)


def argument_of(node: Node, name: str) -> Any:
    """An argument of a call by its schema name, with the schema's default; NoRuleError if the overload has none such."""
    position, default = _place_of(node, name)
    if name in node.kwargs:
        return node.kwargs[name]
    return node.args[position] if position < len(node.args) else default


def set_argument(node: Node, name: str, value: Any) -> bool:
    """Set an argument of a call by its schema name; says whether it was another. NoRuleError if the overload has none such."""
    position, _ = _place_of(node, name)
    if argument_of(node, name) == value:
        return False
    if position < len(node.args):
        node.args = (*node.args[:position], value, *node.args[position + 1 :])
    else:
        node.kwargs = {**node.kwargs, name: value}
    return True


def _place_of(node: Node, name: str) -> tuple[int, Any]:
    """Position and default of an argument."""
    for position, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if argument.name == name:
            return position, argument.default_value
    raise NoRuleError


def module_of(node: Node) -> str:
    """Dotted name of the innermost module that makes a call; empty for the model itself."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [str(entry[0]) for entry in stack.values() if not str(entry[0]).startswith("_empty_nn_module_stack")]
    return paths[-1] if paths else ""


def node_shape(node: Any) -> tuple[int, ...]:
    """Shape of a node's tensor in the example."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    if not isinstance(value, torch.Tensor):
        raise NoRuleError
    return tuple(concrete(size) for size in value.shape)


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
