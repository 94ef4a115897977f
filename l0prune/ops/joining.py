"""Ops that join, cut and pad along a dimension."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from l0prune.ops.memory import written_later
from l0prune.ops.op import NoRuleError, Op, Result, register, varies
from l0prune.ops.tracker import IdArray, Labels

__all__: list[str] = []


def _known(op: Op, ids: IdArray | None, size: int, reason: str) -> IdArray:
    """Ids for a part of a joined dimension that has no parameter behind it: fresh and pinned."""
    if ids is not None:
        return ids
    fresh = op.tracker.fresh(size)
    op.tracker.pin(fresh, reason)
    return fresh


@register("cat", "concat", "concatenate")
def cat(op: Op) -> Labels:
    """Parts one behind the other along `dim`; the other dimensions are tied."""
    return _joined(op, op.arg("tensors"), op.arg("dim"))


_STACKED = {"vstack": 0, "hstack": 1, "column_stack": 1, "dstack": 2}


@register(*_STACKED)
def stacked(op: Op) -> Labels:
    """Like cat along one of the first three dimensions, which all tensors must have."""
    tensors, dim = op.arg("tensors"), _STACKED[op.name]
    if any(len(op.shape(t)) <= max(dim, 1) for t in tensors):
        raise NoRuleError  # dimensions are added first
    return _joined(op, tensors, dim)


@register("glu")
def gated_half(op: Op) -> Labels:
    """The first half of `dim`, times the sigmoid of the second: equal places live or die together."""
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


@register("stack")
def stack(op: Op) -> Labels:
    """Equal tensors along a new dimension."""
    labels = [op.labels(t) for t in op.arg("tensors")]
    out = labels[0]
    for other in labels[1:]:
        out = [None if a is None and b is None else op.tracker.tie(a, b) for a, b in zip(out, other, strict=True)]
    dim = op.arg("dim")
    out.insert(dim if dim >= 0 else dim + len(out) + 1, None)
    return out


@register("split", "chunk", "split_with_sizes", "tensor_split", "unsafe_split", "unsafe_chunk")
def split(op: Op) -> Result:
    """Consecutive parts along `dim`; equal parts are tied part to part, so that code saying `chunk(2)` stays right."""
    x = op.arg("self")
    labels = op.labels(x)
    dim = op.arg("dim") % len(labels)
    op.set_origin(x, [None if d == dim else d for d in range(len(labels))])
    ids = labels[dim]
    sizes = [op_part.shape[dim] for op_part in op.node.meta["val"]]
    if ids is not None and _is_free(x, dim):
        labels = _cut_anywhere(op, labels, dim)
    if labels[dim] is None:
        return [list(labels) for _ in sizes]
    ends = np.cumsum([int(size) for size in sizes])
    parts = np.split(ids, ends[:-1])  # type: ignore[arg-type]
    if op.name != "split_with_sizes" and len({len(part) for part in parts}) == 1:
        op.tracker.tie_rows(np.stack(parts, axis=1))
    return [[*labels[:dim], part, *labels[dim + 1 :]] for part in parts]


@register("slice")
def slice_(op: Op) -> Labels:
    """`x[start:end:step]` along `dim`."""
    labels = op.labels(op.arg("self"))
    dim = op.arg("dim") % len(labels)
    op.set_origin(op.arg("self"), [None if d == dim else d for d in range(len(labels))])
    if labels[dim] is None:
        return labels
    start, end, step = op.arg("start"), op.arg("end"), op.arg("step")
    whole = start in (None, 0) and step in (None, 1) and (end is None or end == sys.maxsize)
    if whole:
        return labels
    if not all(bound is None or isinstance(bound, int) for bound in (start, end, step)) or _is_free(
        op.arg("self"), dim
    ):
        return _cut_anywhere(op, labels, dim)
    if step not in (None, 1) and written_later(op.node):
        op.tracker.pin(labels[dim], "every so many of it are written in place")
    labels[dim] = labels[dim][start:end:step]  # type: ignore[index]
    return labels


def _is_free(x: Any, dim: int) -> bool:
    """Whether a dimension may have another length than in the example, as heads times batch has."""
    return varies(x.meta["val"].shape[dim])


def _cut_anywhere(op: Op, labels: Labels, dim: int) -> Labels:
    """How much of a dimension remains is known when the model runs: as of position weights for a sequence."""
    op.tracker.pin(labels[dim], "cut at a size that varies")
    labels[dim] = None
    return labels


@register("narrow")
def narrow(op: Op) -> Labels:
    """`length` indices from `start` along `dim`."""
    labels = op.labels(op.arg("self"))
    dim, start, length = op.arg("dim") % len(labels), op.arg("start"), op.arg("length")
    if labels[dim] is not None:
        if not (isinstance(start, int) and isinstance(length, int)) or _is_free(op.arg("self"), dim):
            return _cut_anywhere(op, labels, dim)
        start += len(labels[dim]) if start < 0 else 0  # type: ignore[arg-type]
        labels[dim] = labels[dim][start : start + length]  # type: ignore[index]
    return labels


@register("pad", "constant_pad_nd")
def pad(op: Op) -> Labels:
    """Padding along channels brings constant indices of its own (option-A shortcuts): fresh, removable units."""
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
