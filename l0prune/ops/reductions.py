"""Ops along a dimension: reductions, softmax, cumulative sums, sorting.

Means, sums, variances, extremes and norms over units are taken over the open ones; a dimension of units that others run along is
pinned.
"""

from __future__ import annotations

from typing import Any

from l0prune.ops.computed_weights import places_that_zero
from l0prune.ops.norm_calls import STATISTICS, VECTOR_NORMS
from l0prune.ops.op import NoRuleError, Op, Result, register
from l0prune.ops.pointwise import pointwise
from l0prune.ops.tracker import Labels, NormUse

__all__: list[str] = []


@register("mean", "sum", "amax", "amin", "var", "std", "prod", "linalg_vector_norm", "linalg_norm", "norm", "logsumexp", "max",
          "min", "any", "all", "argmax", "argmin", "aminmax", "var_mean", "std_mean", "median", "kthvalue", "mode",
          "count_nonzero", "nansum", "nanmean")  # fmt: skip
def reduction(op: Op) -> Result:
    """Reduce over `dim` (all dimensions if it is absent): those dimensions go, or stay with size one."""
    if op.node.target._overloadname == "other":  # type: ignore[union-attr]
        return pointwise(op)  # type: ignore[return-value]
    x = op.tensor_args()[0]
    labels = op.labels(x)
    n = len(labels)
    try:
        dims = op.arg("dim")
    except NoRuleError:
        dims = None
    try:
        keep = bool(op.arg("keepdim"))
    except NoRuleError:
        keep = False
    if dims is None or dims == []:
        reduced = set(range(n))
    else:
        reduced = {d % n for d in (dims if isinstance(dims, (list, tuple)) else [dims])}
    given = dims is not None and dims != []
    if not (given and op.name in _STATISTICS and _masked(op, labels, reduced)):
        for d in reduced:
            if not (given and op.name in _BLIND_TO_ZERO and _is_exact(op, reduced) and _zeroed(op, x, d)):
                op.tracker.pin(labels[d], f"reduced by {op.name}")
    out: Labels = [None if d in reduced else ids for d, ids in enumerate(labels) if keep or d not in reduced]
    value = op.node.meta["val"]
    return [list(out) for _ in value] if isinstance(value, (tuple, list)) else out


_STATISTICS = frozenset(STATISTICS.values())


def _masked(op: Op, labels: Labels, reduced: set[int]) -> bool:
    """Record a statistic over one dimension of units, so that it can be taken over the open ones; says whether it is one.

    During a forward pass the dimension is known by its length, so no other that is reduced with it may be as long.
    """
    op.tracker.count_norm(op.name, None)
    shape = op.shape(op.tensor_args()[0])
    labelled = [d for d in reduced if labels[d] is not None]
    if len(labelled) != 1 or sum(shape[d] == shape[labelled[0]] for d in reduced) != 1 or not _is_exact(op, reduced):
        return False
    ids = labels[labelled[0]]
    order = op.tracker.n_other_norms[op.name] - 1
    op.tracker.norms.append(NormUse(op.node.name, op.name, None, order, ids))  # type: ignore[arg-type]
    return True


_BLIND_TO_ZERO = frozenset({"sum", "nansum"}) | VECTOR_NORMS
"""Reductions to which slices of zeros add nothing."""


def _zeroed(op: Op, x: Any, dim: int) -> bool:
    """Make the slices of a tensor that is computed of parameters zero, where its units are closed; says whether that can be."""
    places = places_that_zero(op, x, dim) or ()
    for place in places:
        op.tracker.consume(place.parameter, place.dim, place.ids)
    return bool(places)


def _is_exact(op: Op, reduced: set[int]) -> bool:
    """Whether the result may be taken over open units: no place among them is asked for, and zeros add nothing to a norm."""
    if op.name in ("max", "min"):
        return all(user.args[1] == 0 for user in op.node.users if user.users)
    if op.name not in VECTOR_NORMS:
        return True
    order = op.arg("ord")
    of_vectors = op.name == "linalg_vector_norm" or len(reduced) == 1 or order is None
    return of_vectors and (order is None or (isinstance(order, (int, float)) and order > 0))


@register("softmax", "log_softmax", "_softmax", "_log_softmax", "_safe_softmax", "cumsum", "cumprod", "logcumsumexp", "cummax",
          "cummin", "sort", "argsort", "topk")  # fmt: skip
def along(op: Op) -> Result:
    """Every output along `dim` depends on all inputs along it."""
    labels = op.labels(op.tensor_args()[0])
    if labels:  # a single number has no dimension, but may be said to be taken along its first
        dim = op.arg("dim") % len(labels)
        op.tracker.pin(labels[dim], f"{op.name.lstrip('_')} runs along it")
        if op.name == "topk":
            labels[dim] = None
    value = op.node.meta["val"]
    return [list(labels) for _ in value] if isinstance(value, (tuple, list)) else labels


@register("tril", "triu")
def triangle(op: Op) -> Labels:
    """A matrix with zeros on one side of the diagonal: places in its last two dimensions matter."""
    labels = op.labels(op.arg("self"))
    for ids in labels[-2:]:
        op.tracker.pin(ids, f"{op.name} cuts by position")
    return labels
