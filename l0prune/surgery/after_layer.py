"""What a layer's output goes into: a batch norm, which can take up its mean; a sum, whose other operand it can make up for."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.fx import Node

from l0prune.ops.node import argument_of, op_name

__all__ = ["channel_statistics", "has_statistics", "norm_after", "sum_after"]


def has_statistics(norm: Node) -> bool:
    """Whether a batch norm normalises by statistics that the graph holds."""
    held = (argument_of(norm, "running_mean"), argument_of(norm, "running_var"))
    return all(isinstance(node, Node) and node.op == "get_attr" for node in held) and not argument_of(norm, "training")


def norm_after(node: Node) -> Node | None:
    """The batch norm that alone uses a tensor, if it has running statistics."""
    users = list(node.users)
    if len(users) != 1 or op_name(users[0].target) != "batch_norm":
        return None
    return users[0] if has_statistics(users[0]) and argument_of(users[0], "input") is node else None


def sum_after(node: Node) -> tuple[Node, Node, Node | None] | None:
    """The sum that a tensor goes into, its other operand, and the batch norm on the way; None if it goes elsewhere."""
    norm = None
    while len(node.users) == 1:
        user = next(iter(node.users))
        kind = op_name(user.target).rstrip("_")
        if kind == "add":
            other = next((x for x in user.args[:2] if isinstance(x, Node) and x is not node), None)
            return None if other is None or user.kwargs.get("alpha", 1) != 1 else (user, other, norm)
        if norm is None and user is norm_after(node):
            norm = user
        elif kind != "dropout":
            return None
        node = user
    return None


def channel_statistics(values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel over several batches (N, channels, ...), in double precision."""
    rows = [value.double().movedim(1, 0).flatten(1) for value in values]
    n = sum(part.shape[1] for part in rows)
    mean = sum((part.sum(1) for part in rows), rows[0].new_zeros(len(rows[0]))) / n
    squares = sum(((part - mean[:, None]).square().sum(1) for part in rows), rows[0].new_zeros(len(rows[0])))
    return mean, squares / n
