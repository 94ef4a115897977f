"""Look-ups: embeddings, indexing with tensors, selection along a dimension."""

from __future__ import annotations

from l0prune.flow.op import NoRuleError, Op, register
from l0prune.flow.tracker import Labels

__all__: list[str] = []

LOOKED_UP = "indexed by position"


@register("embedding")
def embedding(op: Op) -> Labels:
    """Rows are looked up by data, so the vocabulary stays; features flow."""
    weight, indices = op.labels(op.arg("weight")), op.labels(op.arg("indices"))
    op.tracker.pin(weight[0], "a vocabulary: rows are looked up by data")
    return [*indices, weight[1]]


@register("index")
def index(op: Op) -> Labels:
    """`x[i, :, j]`: indexed dimensions are pinned, the others keep their units (NumPy's placement of the result)."""
    x, indices = op.arg("self"), op.arg("indices")
    labels = op.labels(x)
    used = [d for d, i in enumerate(indices) if i is not None]
    for d in used:
        op.tracker.pin(labels[d], LOOKED_UP)
    for node in indices:
        if node is not None:
            op.tracker.pin_all(op.labels(node), LOOKED_UP)
            if str(node.meta["val"].dtype) == "torch.bool":
                raise NoRuleError
    n_new = max(len(op.shape(indices[d])) for d in used)
    rest = [ids for d, ids in enumerate(labels) if d not in used]
    contiguous = used == list(range(used[0], used[-1] + 1))
    place = used[0] if contiguous else 0
    return [*rest[:place], *([None] * n_new), *rest[place:]]


@register("index_select")
def index_select(op: Op) -> Labels:
    """Rows chosen by a tensor along one dimension."""
    labels = op.labels(op.arg("self"))
    dim = op.arg("dim") % len(labels)
    op.tracker.pin(labels[dim], LOOKED_UP)
    labels[dim] = None
    return labels


@register("gather")
def gather(op: Op) -> Labels:
    """Along one dimension indices are chosen by data; the others go side by side with those of the chooser."""
    x, index = op.arg("self"), op.arg("index")
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
