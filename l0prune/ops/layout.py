"""Ops that move dimensions about and leave their contents alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from l0prune.ops.op import NoRuleError, Op, register, varies
from l0prune.ops.tracker import Labels

__all__: list[str] = []


@register("contiguous", "clone", "detach", "alias", "lift_fresh_copy", "to", "_to_copy", "type_as", "cpu", "cuda", "float",
          "half", "double", "bfloat16", "_assert_tensor_metadata")  # fmt: skip
def same(op: Op) -> Labels:
    """The same tensor, perhaps copied or cast."""
    x = op.tensor_args()[0]
    labels = op.labels(x)
    op.set_origin(x, range(len(labels)))
    return labels


@register("permute")
def permute(op: Op) -> Labels:
    """Dimensions in another order."""
    x, order = op.arg("self"), op.arg("dims")
    return _reordered(op, x, [d % len(order) for d in order])


@register("transpose", "swapaxes", "swapdims")
def transpose(op: Op) -> Labels:
    """Two dimensions exchanged."""
    x, a, b = op.node.args[:3]
    order = list(range(len(op.labels(x))))
    order[a], order[b] = order[b], order[a]  # type: ignore[index]
    return _reordered(op, x, order)


@register("t", "numpy_T", "mT", "adjoint")
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


@register("movedim", "moveaxis")
def movedim(op: Op) -> Labels:
    """Dimensions moved to other places."""
    x, source, destination = op.arg("self"), op.arg("source"), op.arg("destination")
    sources = [source] if isinstance(source, int) else list(source)
    destinations = [destination] if isinstance(destination, int) else list(destination)
    n = len(op.labels(x))
    moved = {d % n: s % n for s, d in zip(sources, destinations, strict=True)}
    rest = iter(d for d in range(n) if d not in moved.values())
    return _reordered(op, x, [moved[d] if d in moved else next(rest) for d in range(n)])


@register("unsqueeze")
def unsqueeze(op: Op) -> Labels:
    """A new dimension of size one."""
    labels = op.labels(op.arg("self"))
    dim = op.arg("dim")
    labels.insert(dim if dim >= 0 else dim + len(labels) + 1, None)
    return labels


@register("squeeze")
def squeeze(op: Op) -> Labels:
    """Dimensions of size one removed."""
    x = op.arg("self")
    labels, shape = op.labels(x), op.shape(x)
    try:
        dims = op.arg("dim")
    except NoRuleError:
        dims = list(range(len(shape)))
    chosen = {d % len(shape) for d in ([dims] if isinstance(dims, int) else dims)}
    gone = {d for d in chosen if shape[d] == 1}
    for d in gone:
        op.tracker.pin(labels[d], "a single unit's dimension is squeezed away")
    return [ids for d, ids in enumerate(labels) if d not in gone]


@register("expand", "expand_as", "broadcast_to")
def expand(op: Op) -> Labels:
    """Dimensions of size one repeated; as many copies of an index as what they meet asks for, or the other tensor has."""
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


@register("repeat", "tile")
def repeat(op: Op) -> Labels:
    """The whole tensor again and again along dimensions: an index goes with all its copies."""
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


@register("repeat_interleave")
def repeat_interleave(op: Op) -> Labels:
    """Every index several times in a row, as key heads for the query heads that share them."""
    labels, repeats, dim = op.labels(op.arg("self")), op.arg("repeats"), op.arg("dim")
    if not isinstance(repeats, int) or dim is None:
        raise NoRuleError
    dim %= len(labels)
    if labels[dim] is not None:
        labels[dim] = np.repeat(labels[dim], repeats)  # type: ignore[arg-type]
    return labels


@register("flip", "roll")
def rearrange(op: Op) -> Labels:
    """Indices in another order along `dims`, none of which can be missing."""
    labels = op.labels(op.arg("self"))
    dims = op.arg("dims")
    for d in dims if dims else range(len(labels)):
        op.tracker.pin(labels[d], f"{op.name} moves indices along it")
    return labels


@register("sym_size", "size")
def sym_size(op: Op) -> Labels:
    """How long a dimension is, where that varies: asking changes nothing, but the number must stay."""
    labels = op.labels(op.arg("self"))
    op.tracker.pin(labels[op.arg("dim") % len(labels)], "its size is used as a number")
    return []
