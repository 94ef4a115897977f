"""Views: how unit ids pass through merging and splitting of dimensions; also complex numbers as pairs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from l0prune.ops.contractions import moved
from l0prune.ops.node import NoRuleError, argument_of, node_shape, op_name, set_argument
from l0prune.ops.operation import Op, Operation
from l0prune.ops.sizes import Cut, Rewriter, Rows, SizedCall
from l0prune.ops.tracker import NO_UNIT, IdArray, Labels, Split

__all__ = ["blocks"]

aten = torch.ops.aten

LARGEST_BLOCK = 1 << 26
"""Elements of a block beyond which the ids are not followed."""


def blocks(before: tuple[int, ...], after: tuple[int, ...]) -> Iterator[tuple[list[int], list[int]]]:
    """Smallest runs of dimensions of two shapes that hold the same number of elements."""
    i = j = 0
    while i < len(before) or j < len(after):
        i0, j0 = i, j
        size_in = before[i] if i < len(before) else 1
        size_out = after[j] if j < len(after) else 1
        i, j = min(i + 1, len(before)), min(j + 1, len(after))
        while size_in != size_out:
            if size_in < size_out:
                if i >= len(before):
                    raise NoRuleError
                size_in *= before[i]
                i += 1
            else:
                if j >= len(after):
                    raise NoRuleError
                size_out *= after[j]
                j += 1
        yield list(range(i0, i)), list(range(j0, j))


def _reshape(rewriter: Rewriter, node: Node) -> None:
    """New sizes; and always a reshape, because a view fails on tensors in channels-last order."""
    if node.target is aten.view.dtype:
        return
    gates = rewriter.gates(node)
    name = "size" if op_name(node.target) in ("view", "_unsafe_view") else "shape"
    sizes = argument_of(node, name)
    rewriter.replace(node, aten.reshape.default, node.args[0], rewriter.sizes(sizes, gates) if gates else sizes)


def _unflatten(rewriter: Rewriter, node: Node) -> None:
    """Sizes for those dimensions alone that take the place of one."""
    gates = rewriter.gates(node)
    if any(g is not None for g in gates):
        dim, sizes = UnflattenCall.first_size(node), argument_of(node, "sizes")
        set_argument(node, "sizes", rewriter.sizes(sizes, gates[dim : dim + len(sizes)]))


class ViewCall(SizedCall):
    """A call that takes the whole shape."""

    kind = "view"
    functions = (Tensor.view, Tensor.reshape, torch.reshape)

    @classmethod
    def rows(cls, cut: Cut, node: Node, item: int) -> Rows:
        """As in `SizedCall`; nothing for a view as another type."""
        return () if node.target is aten.view.dtype else super().rows(cut, node, item)


class UnflattenCall(SizedCall):
    """A call that takes the sizes which one dimension becomes."""

    kind = "unflatten"
    functions = (Tensor.unflatten, torch.unflatten)

    @classmethod
    def first_size(cls, node: Node) -> int:
        """The dimension that is replaced."""
        dim: int = argument_of(node, "dim") % (len(node_shape(node.args[0])) or 1)
        return dim

    def _before_sizes(self) -> tuple[Any, ...]:
        return (self._argument(1, "dim", None),)


@Operation("flatten reshape_as view_as ravel", zeros=moved)
@Operation("unflatten", rewrite=_unflatten, sizes=Cut.changed, call=UnflattenCall, zeros=moved)
@Operation("_unsafe_view", rewrite=_reshape, sizes=Cut.changed, zeros=moved)
@Operation("view reshape", rewrite=_reshape, sizes=Cut.changed, call=ViewCall, zeros=moved)
def view(op: Op) -> Labels:
    """Match runs of input and output dimensions; within a run the ids must lie along one axis of the result."""
    x = op.tensor_args()[0]
    labels, before, after = op.labels(x), op.shape(x), op.shape()
    out: Labels = [None] * len(after)
    for ins, outs in blocks(before, after):
        labelled = [d for d in ins if labels[d] is not None]
        if not labelled:
            continue
        if [before[d] for d in ins if before[d] > 1] == [after[d] for d in outs if after[d] > 1]:
            _pass_equal(op, labels, before, after, ins, outs, out)
            continue
        source = _carrier(op, labels, labelled)
        if source is not None:
            _spread(op, labels[source], before, after, source, ins, outs, out)  # type: ignore[arg-type]
    return out


def _pass_equal(
    op: Op,
    labels: Labels,
    before: tuple[int, ...],
    after: tuple[int, ...],
    ins: list[int],
    outs: list[int],
    out: Labels,
) -> None:
    """Only dimensions of size one come or go."""
    targets = [d for d in outs if after[d] > 1]
    sources = [d for d in ins if before[d] > 1]
    for target, source in zip(targets, sources, strict=True):
        out[target] = labels[source]
    for d in ins:
        if before[d] == 1:
            op.tracker.pin(labels[d], "a single unit's dimension is reshaped away")


def _carrier(op: Op, labels: Labels, labelled: list[int]) -> int | None:
    """Of several dimensions of units that are merged, the one whose ids go on, if any; the others are pinned."""
    if len(labelled) == 1:
        return labelled[0]
    if op.tracker.query_heads:  # the copies of a key head are the query heads of its group
        labelled = sorted(labelled, key=lambda d: not op.tracker.are_copies(labels[d]))  # type: ignore[arg-type]
    key = f"{op.node.name}:merge"
    choice = op.tracker.choices.get(key, 0)
    every = np.concatenate([labels[d] for d in labelled])  # type: ignore[misc]
    op.tracker.splits.append(Split(key, len(labelled), every))
    chosen = labelled[choice] if choice < len(labelled) else None
    for d in labelled:
        if d != chosen:
            op.tracker.pin(labels[d], "merged with another dimension of units")
    return chosen


def _spread(
    op: Op,
    ids: IdArray,
    before: tuple[int, ...],
    after: tuple[int, ...],
    source: int,
    ins: list[int],
    outs: list[int],
    out: Labels,
) -> None:
    """Lay the ids of `source` out over the run and find the one axis of the result along which they vary."""
    shape_in, shape_out = [before[d] for d in ins], [after[d] for d in outs]
    if math.prod(shape_in) > LARGEST_BLOCK:
        op.tracker.pin(ids, "reshaped together with too many elements to follow")
        return
    axis_in = ins.index(source)
    spread = ids.reshape([-1 if axis == axis_in else 1 for axis in range(len(ins))])
    full = np.broadcast_to(spread, shape_in).reshape(shape_out)
    candidates = [axis for axis, size in enumerate(shape_out) if size > 1]
    for axis in candidates:
        rows = np.moveaxis(full, axis, 0).reshape(shape_out[axis], -1)
        if (rows == rows[:, :1]).all():
            out[outs[axis]] = rows[:, 0].copy()
            return
    choice = op.tracker.choices.get(op.node.name, 0)
    op.tracker.splits.append(Split(op.node.name, len(candidates), ids))
    if choice >= len(candidates):
        op.tracker.pin(ids, "no axis of a view can carry it")
        return
    axis = candidates[choice]
    rows = np.moveaxis(full, axis, 0).reshape(shape_out[axis], -1)
    op.tracker.tie_rows(rows)
    out[outs[axis]] = rows[:, 0].copy()


@Operation("view_as_real")
def pairs(op: Op) -> Labels:
    """A new last dimension holds the real and the imaginary part."""
    return [*op.labels(op.arg("self")), None]


@Operation("view_as_complex")
def complex_numbers(op: Op) -> Labels:
    """The last dimension holds the real and the imaginary part."""
    *labels, parts = op.labels(op.arg("self"))
    op.tracker.pin(parts, NO_UNIT)
    return labels
