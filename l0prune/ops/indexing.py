"""Look-ups by data (embeddings, indexing with tensors), and writes into a part of a tensor chosen by position or by data.

What is written lies beside what it replaces, so the two are tied along the dimensions that both have in full.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from l0prune.ops.node import NoRuleError
from l0prune.ops.operation import Op, Operation
from l0prune.ops.pointwise import pointwise
from l0prune.ops.tracker import Labels

__all__: list[str] = []

LOOKED_UP = "indexed by position"
VOCABULARY = "a vocabulary: rows are looked up by data"


@Operation("embedding")
def embedding(op: Op) -> Labels:
    """Rows are looked up by data, so the vocabulary stays; features flow."""
    weight, indices = op.labels(op.arg("weight")), op.labels(op.arg("indices"))
    op.tracker.pin(weight[0], VOCABULARY)
    return [*indices, weight[1]]


@Operation("embedding_bag")
def embedding_bag(op: Op) -> list[Labels]:
    """Rows that data look up are summed, averaged, or reduced to the largest value of each feature: one row for each bag."""
    weight, given = op.labels(op.arg("weight")), op.arg("per_sample_weights")
    op.tracker.pin(weight[0], VOCABULARY)
    for node in (op.arg("indices"), op.arg("offsets"), *(() if given is None else (given,))):
        op.tracker.pin_all(op.labels(node), LOOKED_UP)
    if any(user.args[1] != 0 for user in op.node.users):
        raise NoRuleError  # which rows were the largest, and the like
    others: list[Labels] = [[None] * value.dim() for value in op.node.meta["val"][1:]]
    return [[None, weight[1]], *others]


@Operation("index _unsafe_index")
def index(op: Op) -> Labels:
    """`x[i, :, j]` or `x[mask]`: indexed dimensions are pinned, the others keep their units (in the order that NumPy gives)."""
    x, indices = op.arg("self"), op.arg("indices")
    named = [node for node in indices if node is not None]
    if len(named) == 1 and _is_selection(op, named[0]):
        return _selected(op, op.labels(x), indices.index(named[0]), named[0])
    return _indexed(op, x, indices)


def _indexed(op: Op, x: Any, indices: list[Any]) -> Labels:
    """Labels of what `x[indices]` shows; the dimensions that are indexed are pinned, and the units of the indices."""
    labels = op.labels(x)
    used: list[int] = []
    dim = n_new = 0
    for node in indices:
        n_covered = len(op.shape(node)) if _is_mask(node) else 1
        if node is not None:
            used += range(dim, dim + n_covered)
            n_new = max(n_new, 1 if _is_mask(node) else len(op.shape(node)))
            op.tracker.pin_all(op.labels(node), LOOKED_UP)
        dim += n_covered
    for d in used:
        op.tracker.pin(labels[d], LOOKED_UP)
    rest = [ids for d, ids in enumerate(labels) if d not in used]
    contiguous = used == list(range(used[0], used[-1] + 1))
    place = used[0] if contiguous else 0
    return [*rest[:place], *([None] * n_new), *rest[place:]]


def _is_mask(node: Any) -> bool:
    """Whether an index says yes or no for every position, instead of naming positions."""
    return isinstance(node, Node) and node.meta["val"].dtype in (torch.bool, torch.uint8)


@Operation("index_select")
def index_select(op: Op) -> Labels:
    """A tensor chooses rows along one dimension."""
    labels, chosen = op.labels(op.arg("self")), op.arg("index")
    dim = op.arg("dim") % len(labels)
    if _is_selection(op, chosen):
        return _selected(op, labels, dim, chosen)
    op.tracker.pin(labels[dim], LOOKED_UP)
    op.tracker.pin_all(op.labels(chosen), LOOKED_UP)
    labels[dim] = None
    return labels


def _is_selection(op: Op, index: Any) -> bool:
    """Whether an index is a list of positions that the model keeps: a vector among its buffers."""
    return op.name_of(index) is not None and len(op.shape(index)) == 1


def _selected(op: Op, labels: Labels, dim: int, index: Any) -> Labels:
    """A kept list of positions chooses along `dim`: each entry is a unit, and goes from the list when it is closed."""
    op.tracker.pin(labels[dim], LOOKED_UP)
    labels[dim] = op.labels(index)[0]
    return labels


@Operation("gather take_along_dim")
def gather(op: Op) -> Labels:
    """Data choose the indices along one dimension; the other dimensions are tied to those of the index tensor."""
    x, index = op.arg("self"), op.arg("index" if op.name == "gather" else "indices")
    if op.arg("dim") is None:
        raise NoRuleError  # over all elements, as if they lay in one row
    labels, chosen, shape, out_shape = op.labels(x), op.labels(index), op.shape(x), op.shape()
    dim = op.arg("dim") % max(len(labels), 1)
    out: Labels = []
    for d, (ids, others) in enumerate(zip(labels, chosen, strict=True)):
        if d == dim or shape[d] != out_shape[d]:
            op.tracker.pin(ids, LOOKED_UP)
            op.tracker.pin(others, LOOKED_UP)
            out.append(None)
        else:
            out.append(None if ids is None and others is None else op.tracker.tie(ids, others))
    return out


PART = "a part of it is written"


@Operation("slice_scatter select_scatter")
def scattered_slice(op: Op) -> Labels:
    """The tensor with its slice along `dim` replaced by `src`."""
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


@Operation("index_put _unsafe_index_put _index_put_impl")
def index_put(op: Op) -> Labels:
    """`x[i, :, j] = values`: indexed dimensions are pinned; the values broadcast over the others.

    A mask of the whole tensor with a single value writes every element by itself.
    """
    x, indices, values = op.arg("self"), op.arg("indices"), op.arg("values")
    labels = op.labels(x)
    if len(indices) == 1 and _is_mask(indices[0]) and op.shape(indices[0]) == op.shape(x) and not op.shape(values):
        return pointwise(op)  # type: ignore[return-value]
    shown = _indexed(op, x, indices)
    given = op.labels(values)
    for k in range(1, len(given) + 1):
        if op.shape(values)[-k] == 1:
            op.tracker.pin(given[-k], "a single unit is broadcast over a dimension")
        else:
            _beside(op, shown[-k], given[-k])
    return labels


@Operation("scatter scatter_add scatter_reduce")
def scatter(op: Op) -> Labels:
    """Data choose the places along `dim`; along the other dimensions all operands are tied."""
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


@Operation("index_add index_copy index_fill index_reduce")
def index_write(op: Op) -> Labels:
    """Rows along `dim`, chosen by a vector of positions, are written; along the other dimensions operands are tied."""
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
