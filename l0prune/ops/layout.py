"""Ops that rearrange dimensions and leave their contents alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from l0prune.ops.contractions import moved
from l0prune.ops.node import NoRuleError, argument_of, node_shape, varies
from l0prune.ops.operation import InClosedBranch, Op, Operation
from l0prune.ops.sizes import Cut, Rewriter, SizedCall, resized
from l0prune.ops.tracker import Labels

__all__: list[str] = []


@Operation("_assert_tensor_metadata")
@Operation(
    "contiguous clone detach alias lift_fresh_copy to _to_copy type_as cpu cuda",
    zeros=moved,
    closed=InClosedBranch.PASSES_CONSTANTS,
)
def same(op: Op) -> Labels:
    """The same tensor, perhaps copied or cast."""
    x = op.tensor_args()[0]
    labels = op.labels(x)
    op.set_origin(x, range(len(labels)))
    return labels


@Operation("permute", zeros=moved, closed=InClosedBranch.PASSES_CONSTANTS)
def permute(op: Op) -> Labels:
    """Dimensions in another order."""
    x, order = op.arg("self"), op.arg("dims")
    return _reordered(op, x, [d % len(order) for d in order])


@Operation("transpose swapaxes swapdims", zeros=moved, closed=InClosedBranch.PASSES_CONSTANTS)
def transpose(op: Op) -> Labels:
    """Two dimensions exchanged."""
    x, a, b = op.node.args[:3]
    order = list(range(len(op.labels(x))))
    order[a], order[b] = order[b], order[a]  # type: ignore[index]
    return _reordered(op, x, order)


@Operation("t numpy_T mT adjoint", zeros=moved)
def t(op: Op) -> Labels:
    """The last two dimensions exchanged."""
    x = op.arg("self")
    dims = range(len(op.labels(x)))
    return _reordered(op, x, [*dims[:-2], *reversed(dims[-2:])])


def _reordered(op: Op, x: Any, order: list[int]) -> Labels:
    """Dimension i of the output is dimension `order[i]` of `x`."""
    labels = op.labels(x)
    op.set_origin(x, order)
    return [labels[d] for d in order]


@Operation("movedim moveaxis", zeros=moved)
def movedim(op: Op) -> Labels:
    """Dimensions moved to other places."""
    x, source, destination = op.arg("self"), op.arg("source"), op.arg("destination")
    sources = [source] if isinstance(source, int) else list(source)
    destinations = [destination] if isinstance(destination, int) else list(destination)
    n = len(op.labels(x))
    moved = {d % n: s % n for s, d in zip(sources, destinations, strict=True)}
    rest = iter(d for d in range(n) if d not in moved.values())
    return _reordered(op, x, [moved[d] if d in moved else next(rest) for d in range(n)])


@Operation("unsqueeze", zeros=moved)
def unsqueeze(op: Op) -> Labels:
    """A new dimension of size one."""
    labels = op.labels(op.arg("self"))
    dim = op.arg("dim")
    labels.insert(dim if dim >= 0 else dim + len(labels) + 1, None)
    return labels


def _squeeze(rewriter: Rewriter, node: Node) -> None:
    """Only dimensions of the dense model's size one go, not those of which one index is left."""
    source: Any = node.args[0]
    if all(g is None for g in rewriter.gates(source)):
        return
    gone = sorted(_squeezed(node))
    if gone:
        rewriter.replace(node, torch.ops.aten.squeeze.dims, source, gone)
    else:
        node.replace_all_uses_with(source)
        node.graph.erase_node(node)


def _squeezed(node: Node) -> set[int]:
    """The dimensions of size one that go."""
    shape = node_shape(node.args[0])
    try:
        dims = argument_of(node, "dim")
    except NoRuleError:
        dims = list(range(len(shape)))
    return {d % len(shape) for d in ([dims] if isinstance(dims, int) else dims) if shape[d] == 1}


@Operation("squeeze", rewrite=_squeeze, zeros=moved)
def squeeze(op: Op) -> Labels:
    """Dimensions of size one removed."""
    x = op.arg("self")
    labels, gone = op.labels(x), _squeezed(op.node)
    for d in gone:
        op.tracker.pin(labels[d], "a single unit's dimension is squeezed away")
    return [ids for d, ids in enumerate(labels) if d not in gone]


class ExpandCall(SizedCall):
    """A call that takes the whole shape, as many of an index as its size says."""

    kind = "expand"
    functions = (Tensor.expand, Tensor.broadcast_to, torch.broadcast_to)


@Operation("expand_as", zeros=moved)
@Operation("expand broadcast_to", rewrite=resized("size"), sizes=Cut.changed, call=ExpandCall, zeros=moved)
def expand(op: Op) -> Labels:
    """Dimensions of size one are repeated as often as the tensors they meet need, or as the other tensor is long."""
    x = op.arg("self")
    labels, shape, out_shape = op.labels(x), op.shape(x), op.shape()
    symbolic = op.node.meta["val"].shape
    new = len(out_shape) - len(shape)
    out: Labels = []
    for d, size in enumerate(out_shape):
        before = shape[d - new] if d >= new else 1
        if before == size:
            out.append(labels[d - new] if d >= new else None)
            continue
        if d >= new:
            op.tracker.pin(labels[d - new], "a single unit is broadcast over a dimension")
        if op.name == "expand_as":
            out.append(op.labels(op.arg("other"))[d])
        else:
            out.append(None if _input_size(symbolic[d]) else op.tracker.copies(size))
    return out


def _input_size(size: Any) -> bool:
    """Whether a size is one of an input of the model, such as the batch."""
    return varies(size) and bool(size.node.expr.is_symbol)


@Operation("repeat tile")
def repeat(op: Op) -> Labels:
    """The whole tensor is repeated along dimensions: an index is removed together with all its copies."""
    x = op.arg("self")
    labels, shape, out_shape = op.labels(x), op.shape(x), op.shape()
    new = len(out_shape) - len(shape)
    out: Labels = [None] * new
    for d, ids in enumerate(labels):
        if ids is None:
            out.append(None)
        elif shape[d] == 1 and out_shape[d + new] != 1:
            op.tracker.pin(ids, "a single unit is broadcast over a dimension")
            out.append(None)
        else:
            out.append(np.tile(ids, out_shape[d + new] // shape[d]))
    return out


@Operation("repeat_interleave")
def repeat_interleave(op: Op) -> Labels:
    """Every index is repeated several times in a row, as key heads are for the query heads that share them."""
    labels, repeats, dim = op.labels(op.arg("self")), op.arg("repeats"), op.arg("dim")
    if not isinstance(repeats, int) or dim is None:
        raise NoRuleError
    dim %= len(labels)
    if labels[dim] is not None:
        labels[dim] = np.repeat(labels[dim], repeats)  # type: ignore[arg-type]
    return labels


@Operation("flip roll")
def rearrange(op: Op) -> Labels:
    """Indices along `dims` change places, so none of them can be removed."""
    labels = op.labels(op.arg("self"))
    dims = op.arg("dims")
    for d in dims if dims else range(len(labels)):
        op.tracker.pin(labels[d], f"{op.name} moves indices along it")
    return labels
