"""Ops that write into a part of a tensor, chosen by position or by data.

What is written lies beside what it replaces, so the two are tied along the dimensions that both have in full.
"""

from __future__ import annotations

from typing import Any

from l0prune.ops.indexing import LOOKED_UP, indexed, is_mask
from l0prune.ops.op import NoRuleError, Op, register
from l0prune.ops.pointwise import pointwise
from l0prune.ops.tracker import Labels

__all__: list[str] = []

PART = "a part of it is written"


@register("slice_scatter", "select_scatter")
def scattered_slice(op: Op) -> Labels:
    """A tensor with the slice of it along `dim` replaced by `src`."""
    x, src = op.arg("self"), op.arg("src")
    labels, written = op.labels(x), op.labels(src)
    dim = op.arg("dim") % len(labels)
    op.tracker.pin(labels[dim], PART)
    if op.name == "slice_scatter":
        op.tracker.pin(written.pop(dim), PART)
    others = [d for d in range(len(labels)) if d != dim]
    for d, ids in zip(others, written, strict=True):
        labels[d] = _beside(op, labels[d], ids)
    return labels


@register("index_put", "_unsafe_index_put", "_index_put_impl")
def index_put(op: Op) -> Labels:
    """`x[i, :, j] = values`: indexed dimensions are pinned; values broadcast to what the index shows of the others.

    A mask of the whole tensor with a single value writes every element by itself.
    """
    x, indices, values = op.arg("self"), op.arg("indices"), op.arg("values")
    labels = op.labels(x)
    if len(indices) == 1 and is_mask(indices[0]) and op.shape(indices[0]) == op.shape(x) and not op.shape(values):
        return pointwise(op)  # type: ignore[return-value]
    shown = indexed(op, x, indices)
    given = op.labels(values)
    for k in range(1, len(given) + 1):
        if op.shape(values)[-k] == 1:
            op.tracker.pin(given[-k], "a single unit is broadcast over a dimension")
        else:
            _beside(op, shown[-k], given[-k])
    return labels


@register("scatter", "scatter_add", "scatter_reduce")
def scatter(op: Op) -> Labels:
    """Along `dim` the places are chosen by data; along the others all operands lie side by side."""
    x, index = op.arg("self"), op.arg("index")
    operands = [index] if op.node.target._overloadname.startswith("value") else [index, op.arg("src")]  # type: ignore[union-attr]
    labels = op.labels(x)
    dim = op.arg("dim") % max(len(labels), 1)
    for d in range(len(labels)):
        for operand in operands:
            ids = op.labels(operand)[d]
            if d != dim and op.shape(operand)[d] == op.shape(x)[d]:
                labels[d] = _beside(op, labels[d], ids)
            else:
                op.tracker.pin(labels[d], LOOKED_UP)
                op.tracker.pin(ids, LOOKED_UP)
    return labels


@register("index_add", "index_copy", "index_fill", "index_reduce")
def index_write(op: Op) -> Labels:
    """Rows along `dim`, chosen by a vector of numbers, are written; the others stay."""
    labels = op.labels(op.arg("self"))
    if not labels:
        raise NoRuleError
    dim = op.arg("dim") % len(labels)
    op.tracker.pin(labels[dim], LOOKED_UP)
    op.tracker.pin_all(op.labels(op.arg("index")), LOOKED_UP)
    if op.name.rstrip("_") == "index_fill":
        return labels
    for d, ids in enumerate(op.labels(op.arg("source"))):
        if d == dim:
            op.tracker.pin(ids, LOOKED_UP)
        else:
            labels[d] = _beside(op, labels[d], ids)
    return labels


def _beside(op: Op, ids: Any, others: Any) -> Any:
    return None if ids is None and others is None else op.tracker.tie(ids, others)
