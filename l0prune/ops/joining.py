"""Ops that join tensors along a dimension or pad one, and gated linear units, which fold one in half."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.fx import Node

from l0prune.ops.contractions import places_that_zero, together
from l0prune.ops.node import NoRuleError, argument_of, set_argument
from l0prune.ops.operation import InClosedBranch, Op, Operation
from l0prune.ops.sizes import Cut, Pairs, Rewriter
from l0prune.ops.tracker import IdArray, Labels, Places

__all__: list[str] = []


def _known(op: Op, ids: IdArray | None, size: int, reason: str) -> IdArray:
    """Ids for a part of a joined dimension that has no parameter behind it: fresh and pinned."""
    if ids is not None:
        return ids
    fresh = op.tracker.fresh(size)
    op.tracker.pin(fresh, reason)
    return fresh


def _all_parts(op: Op, node: Node, dim: int) -> Places:
    """Tensors one behind the other: all of them."""
    return together(places_that_zero(op, part, dim) for part in argument_of(node, "tensors"))


@Operation("cat concat concatenate", zeros=_all_parts, closed=InClosedBranch.LEAVES_OUT)
def cat(op: Op) -> Labels:
    """Parts follow one another along `dim`; the other dimensions are tied."""
    return _joined(op, op.arg("tensors"), op.arg("dim"))


_STACKED = {"vstack": 0, "hstack": 1, "column_stack": 1, "dstack": 2}


@Operation(" ".join(_STACKED), closed=InClosedBranch.LEAVES_OUT)
def stacked(op: Op) -> Labels:
    """Like cat along one of the first three dimensions, which all tensors must have."""
    tensors, dim = op.arg("tensors"), _STACKED[op.name]
    if any(len(op.shape(t)) <= max(dim, 1) for t in tensors):
        raise NoRuleError  # dimensions are added first
    return _joined(op, tensors, dim)


@Operation("glu")
def gated_half(op: Op) -> Labels:
    """The first half of `dim`, times the sigmoid of the second: units at the same place in both live or die together."""
    labels = op.labels(op.arg("self"))
    dim = op.arg("dim") % len(labels)
    if labels[dim] is not None:
        first, second = np.split(labels[dim], 2)  # type: ignore[arg-type]
        labels[dim] = op.tracker.tie(first, second)
    return labels


def _joined(op: Op, tensors: list[Any], along: int) -> Labels:
    labels = [op.labels(t) for t in tensors]
    shapes = [op.shape(t) for t in tensors]
    used = [i for i, shape in enumerate(shapes) if not (len(shape) == 1 and shape[0] == 0)]  # legacy empty operands
    labels, shapes = [labels[i] for i in used], [shapes[i] for i in used]
    n = len(labels[0])
    dim = along % n
    out: Labels = []
    for d in range(n):
        column = [part[d] for part in labels]
        if all(ids is None for ids in column):
            out.append(None)
        elif d == dim:
            parts = [_known(op, ids, shape[d], "joined to units") for ids, shape in zip(column, shapes, strict=True)]
            out.append(np.concatenate(parts))
        else:
            first = column[0]
            for ids in column[1:]:
                first = op.tracker.tie(first, ids)
            out.append(first)
    return out


@Operation("stack")
def stack(op: Op) -> Labels:
    """Tensors of equal shape along a new dimension."""
    labels = [op.labels(t) for t in op.arg("tensors")]
    out = labels[0]
    for other in labels[1:]:
        out = [None if a is None and b is None else op.tracker.tie(a, b) for a, b in zip(out, other, strict=True)]
    dim = op.arg("dim")
    out.insert(dim if dim >= 0 else dim + len(out) + 1, None)
    return out


def _resize_padding(rewriter: Rewriter, node: Node) -> None:
    amounts = list(argument_of(node, "pad"))
    for position, new in _amounts(rewriter, node):
        amounts[position] = new
    set_argument(node, "pad", amounts)


def _padding(cut: Cut, node: Node) -> Pairs:
    return [(argument_of(node, "pad")[position], new) for position, new in _amounts(cut, node)]


def _amounts(cut: Cut, node: Node) -> Iterator[tuple[int, int]]:
    """Position of an amount among the arguments, and what it is after the cut, for padding before and after gated dimensions."""
    amounts, gates = argument_of(node, "pad"), cut.gates(node)
    for i in range(min(len(amounts) // 2, len(gates))):
        dimension, (before, after) = gates[len(gates) - 1 - i], amounts[2 * i : 2 * i + 2]
        if dimension is not None and (before or after):
            yield 2 * i, cut.kept.count(dimension[:before])
            yield 2 * i + 1, cut.kept.count(dimension[len(dimension) - after :])


@Operation("pad constant_pad_nd", rewrite=_resize_padding, sizes=_padding)
def pad(op: Op) -> Labels:
    """Padding along channels adds constant indices (option-A shortcuts): new units, which can be removed."""
    labels = op.labels(op.arg("self"))
    amounts = op.arg("pad")
    constant = op.name == "constant_pad_nd" or op.arg("mode") == "constant"
    for i in range(len(amounts) // 2):
        d = len(labels) - 1 - i
        before, after = amounts[2 * i], amounts[2 * i + 1]
        if labels[d] is None or (before == 0 and after == 0):
            continue
        if not constant or not isinstance(before, int) or not isinstance(after, int) or before < 0 or after < 0:
            raise NoRuleError
        labels[d] = np.concatenate([op.tracker.fresh(before), labels[d], op.tracker.fresh(after)])  # type: ignore[list-item]
    return labels
