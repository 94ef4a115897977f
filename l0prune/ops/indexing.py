"""Look-ups: embeddings, indexing with tensors, selection along a dimension."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from l0prune.ops.op import NoRuleError, Op, register
from l0prune.ops.tracker import Labels

__all__ = ["LOOKED_UP", "indexed", "is_mask"]

LOOKED_UP = "indexed by position"
VOCABULARY = "a vocabulary: rows are looked up by data"


@register("embedding")
def embedding(op: Op) -> Labels:
    """Rows are looked up by data, so the vocabulary stays; features flow."""
    weight, indices = op.labels(op.arg("weight")), op.labels(op.arg("indices"))
    op.tracker.pin(weight[0], VOCABULARY)
    return [*indices, weight[1]]


@register("embedding_bag")
def embedding_bag(op: Op) -> list[Labels]:
    """Rows that data look up are added, averaged, or the largest of each feature is taken: a row for each bag."""
    weight, given = op.labels(op.arg("weight")), op.arg("per_sample_weights")
    op.tracker.pin(weight[0], VOCABULARY)
    for node in (op.arg("indices"), op.arg("offsets"), *(() if given is None else (given,))):
        op.tracker.pin_all(op.labels(node), LOOKED_UP)
    if any(user.args[1] != 0 for user in op.node.users):
        raise NoRuleError  # which rows were the largest, and the like
    others: list[Labels] = [[None] * value.dim() for value in op.node.meta["val"][1:]]
    return [[None, weight[1]], *others]


@register("index", "_unsafe_index")
def index(op: Op) -> Labels:
    """`x[i, :, j]` or `x[mask]`: indexed dimensions are pinned, the others keep their units (NumPy's placement of the result)."""
    x, indices = op.arg("self"), op.arg("indices")
    named = [node for node in indices if node is not None]
    if len(named) == 1 and is_selection(op, named[0]):
        return selected(op, op.labels(x), indices.index(named[0]), named[0])
    return indexed(op, x, indices)


def indexed(op: Op, x: Any, indices: list[Any]) -> Labels:
    """Labels of what `x[indices]` shows; the dimensions that are indexed are pinned, and the units of the indices."""
    labels = op.labels(x)
    used: list[int] = []
    dim = n_new = 0
    for node in indices:
        n_covered = len(op.shape(node)) if is_mask(node) else 1
        if node is not None:
            used += range(dim, dim + n_covered)
            n_new = max(n_new, 1 if is_mask(node) else len(op.shape(node)))
            op.tracker.pin_all(op.labels(node), LOOKED_UP)
        dim += n_covered
    for d in used:
        op.tracker.pin(labels[d], LOOKED_UP)
    rest = [ids for d, ids in enumerate(labels) if d not in used]
    contiguous = used == list(range(used[0], used[-1] + 1))
    place = used[0] if contiguous else 0
    return [*rest[:place], *([None] * n_new), *rest[place:]]


def is_mask(node: Any) -> bool:
    """Whether an index says yes or no for every position, instead of naming positions."""
    return isinstance(node, Node) and node.meta["val"].dtype in (torch.bool, torch.uint8)


@register("index_select")
def index_select(op: Op) -> Labels:
    """Rows chosen by a tensor along one dimension."""
    labels, chosen = op.labels(op.arg("self")), op.arg("index")
    dim = op.arg("dim") % len(labels)
    if is_selection(op, chosen):
        return selected(op, labels, dim, chosen)
    op.tracker.pin(labels[dim], LOOKED_UP)
    op.tracker.pin_all(op.labels(chosen), LOOKED_UP)
    labels[dim] = None
    return labels


def is_selection(op: Op, index: Any) -> bool:
    """Whether an index is a list of positions that the model keeps: a vector among its buffers."""
    return op.name_of(index) is not None and len(op.shape(index)) == 1


def selected(op: Op, labels: Labels, dim: int, index: Any) -> Labels:
    """A kept list of positions chooses along `dim`: each entry is a unit, and goes from the list when it is closed."""
    op.tracker.pin(labels[dim], LOOKED_UP)
    labels[dim] = op.labels(index)[0]
    return labels


@register("gather", "take_along_dim")
def gather(op: Op) -> Labels:
    """Along one dimension indices are chosen by data; the others go side by side with those of the chooser."""
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


@register("select")
def select(op: Op) -> Labels:
    """One index of a dimension by its number."""
    labels = op.labels(op.arg("self"))
    op.tracker.pin(labels.pop(op.arg("dim") % len(labels)), "one index is selected by its number")
    return labels


@register("unbind")
def unbind(op: Op) -> list[Labels]:
    """All indices of a dimension, one output each."""
    labels = op.labels(op.arg("self"))
    op.tracker.pin(labels.pop(op.arg("dim") % len(labels)), "unbound into separate tensors")
    return [list(labels) for _ in op.node.meta["val"]]
