"""Ops along a dimension: reductions, softmax, cumulative sums, sorting.

Means, sums, variances, extremes and norms over units are taken over the open ones; a dimension of units that others run along is
pinned. Hand-written normalisations are made of means and variances, attention to places of extremes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from l0prune.ops.contractions import places_that_zero
from l0prune.ops.node import NoRuleError, argument_of, node_shape
from l0prune.ops.norms import HALF
from l0prune.ops.operation import Normalisation, Op, Operation, Result, another_path
from l0prune.ops.pointwise import pointwise
from l0prune.ops.tracker import Labels, NormUse, Places

__all__ = ["masked_statistic", "statistic_of_open"]

aten = torch.ops.aten
Mask = Tensor

_FUNCTIONS: dict[str, tuple[Callable[..., Any], ...]] = {
    "mean": (Tensor.mean, torch.mean, aten.mean.dim),
    "sum": (Tensor.sum, torch.sum, aten.sum.dim_IntList),
    "var": (Tensor.var, torch.var, aten.var.dim, aten.var.correction),
    "std": (Tensor.std, torch.std, aten.std.dim, aten.std.correction),
    "amax": (Tensor.amax, torch.amax, aten.amax.default),
    "amin": (Tensor.amin, torch.amin, aten.amin.default),
    "max": (Tensor.max, torch.max, aten.max.dim),
    "min": (Tensor.min, torch.min, aten.min.dim),
    "linalg_vector_norm": (
        F.normalize,
        torch.norm,
        Tensor.norm,
        torch.linalg.vector_norm,
        aten.linalg_vector_norm.default,
    ),
    "linalg_norm": (torch.linalg.norm, aten.linalg_norm.default),
}
"""Statistics over a dimension of units, with the functions that code calls, or that are their op in a graph already."""

VECTOR_NORMS = frozenset({"linalg_vector_norm", "linalg_norm"})
"""Kinds whose second argument is the order of a norm."""


def _is_along_dimensions(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call names dimensions; one over everything is known to no dimension of units."""
    is_norm = func in _FUNCTIONS["linalg_vector_norm"] or func in _FUNCTIONS["linalg_norm"]
    place, default = 2 if is_norm else 1, 1 if func is F.normalize else None
    dims = kwargs.get("dim", kwargs.get("axis", args[place] if len(args) > place else default))
    of_matrices = is_norm and "nuc" in (kwargs.get("p"), *args[1:2])
    return not (of_matrices or dims is None or isinstance(dims, bool | Tensor) or dims in ((), []))


def statistic_of_open(kind: str, func: Callable[..., Any], mask: Mask, *args: Any, **kwargs: Any) -> Any:
    """What a call of `func` gives over the open units.

    Args:
        kind: The statistic.
        func: One of the functions that take it.
        mask: True for open and False for closed units, shape `(C,)`.
        args: Its positional arguments.
        kwargs: Its keyword arguments.

    Raises:
        TraceError: it does not reduce exactly one dimension of length C.
    """
    if kind in VECTOR_NORMS:
        return _norm_of_open(func, mask, *args, **kwargs)
    return _statistic_call(kind, mask, *args, **kwargs)


def masked_statistic(
    kind: str, x: Tensor, mask: Mask, dims: Sequence[int], *, keepdim: bool = False, correction: float = 1
) -> Tensor:
    """Mean, sum, variance, standard deviation or an extreme over the open units.

    Args:
        kind: "mean", "sum", "var", "std", "amax" or "amin".
        x: Any shape, floating-point.
        mask: True for open and False for closed units, shape `(C,)`.
        dims: What to reduce; exactly one of these dimensions has length C.
        keepdim: Leave reduced dimensions with length one.
        correction: Subtracted from the number of elements a variance is divided by.

    Returns:
        The statistic; closed units count neither in the sum nor in the number of elements. Extremes of none are zero.
    """
    dims = [d % x.dim() for d in dims]
    shape = _shape_along(x, mask, dims, kind)
    closed = ~mask.view(shape)
    if kind in ("amax", "amin"):
        extreme = torch.amax if kind == "amax" else torch.amin
        limits = torch.finfo(x.dtype)
        unseen = x.masked_fill(closed, limits.min if kind == "amax" else limits.max)
        return extreme(unseen, dims, keepdim).where(mask.any(), 0)
    opened = x.masked_fill(closed, 0)
    if kind == "sum":
        return opened.sum(dims, keepdim=keepdim)
    others = math.prod(x.shape[d] for d in dims if shape[d] == 1)
    count = mask.sum().clamp_min(1) * others
    mean = opened.sum(dims, keepdim=True) / count
    if kind == "mean":
        return mean if keepdim else mean.squeeze(dims)
    square = (x - mean).masked_fill(closed, 0).square().sum(dims, keepdim=keepdim)
    variance = square / (count - correction).clamp_min(0)
    return variance if kind == "var" else variance.sqrt()


def _norm_of_open(func: Callable[..., Any], mask: Mask, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """The norm of vectors, or vectors over their norm, as if closed units were zero: they add nothing to a norm."""
    given: Any = kwargs.get("dim", args[1] if len(args) > 1 else 1)
    dims = [given] if isinstance(given, int) else list(given)
    closed = ~mask.view(_shape_along(x, mask, dims, "norm"))
    return func(x.masked_fill(closed, 0), *args, **kwargs)


def _shape_along(x: Tensor, mask: Mask, dims: Sequence[int], kind: str) -> list[int]:
    """The shape in which a mask lies along the one of these dimensions that is as long."""
    along = [d % x.dim() for d in dims if x.shape[d] == len(mask)]
    if len(along) != 1:
        raise another_path(
            f"a {kind} of the forward pass runs over dimensions of lengths {[x.shape[d] for d in dims]}, the traced one over "
            f"{len(mask)} units"
        )
    shape = [1] * x.dim()
    shape[along[0]] = -1
    return shape


def _place_and_extreme(kind: str, x: Tensor, mask: Mask, dim: int, *, keepdim: bool) -> Any:
    """`max` or `min` along one dimension, with places as if closed units were there; of none, the extreme is zero."""
    limits = torch.finfo(x.dtype)
    shape = _shape_along(x, mask, [dim], kind)
    unseen = x.masked_fill(~mask.view(shape), limits.min if kind == "max" else limits.max)
    found = torch.max(unseen, dim, keepdim) if kind == "max" else torch.min(unseen, dim, keepdim)
    return type(found)((found.values.where(mask.any(), 0), found.indices))


def _statistic_call(kind: str, mask: Mask, *args: Any, **kwargs: Any) -> Any:
    """Read the arguments of `mean(x, dim, keepdim)`, `var(x, dim, unbiased, keepdim)` and their relatives."""
    names = ("input", "dim", "unbiased", "keepdim") if kind in ("var", "std") else ("input", "dim", "keepdim")
    options = {**dict(zip(names, args, strict=False)), **kwargs}
    x = options["input"] if "input" in options else options["self"]
    given: Any = options.get("dim", options.get("axis"))
    dims = [given] if isinstance(given, int) else list(given)
    if kind in ("max", "min"):
        return _place_and_extreme(kind, x, mask, given, keepdim=bool(options.get("keepdim", False)))
    dtype = options.get("dtype") or x.dtype
    correction = options.get("correction", None if options.get("unbiased", True) else 0)
    out = masked_statistic(
        kind,
        x.float() if dtype in HALF else x.to(dtype),
        mask,
        dims,
        keepdim=bool(options.get("keepdim", options.get("keepdims", False))),
        correction=1 if correction is None else correction,
    )
    return out.to(dtype)


def _reduced(op: Op, node: Node, dim: int) -> Places:
    """Sums and means over other dimensions."""
    dims = argument_of(node, "dim")
    n_dims = len(node_shape(node.args[0]))
    gone = {d % n_dims for d in ([dims] if isinstance(dims, int) else dims or range(n_dims))}
    left = [d for d in range(n_dims) if argument_of(node, "keepdim") or d not in gone]
    return None if left[dim] in gone else places_that_zero(op, node.args[0], left[dim])


@Operation("""
prod norm logsumexp any all argmax argmin aminmax var_mean std_mean median kthvalue mode count_nonzero nansum nanmean
""")
def reduction(op: Op) -> Result:
    """Reduce over `dim` (all dimensions if it is absent): those dimensions disappear, or stay with size one."""
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
    if not (given and op.name in _FUNCTIONS and _masked(op, labels, reduced)):
        for d in reduced:
            if not (given and op.name in _BLIND_TO_ZERO and _is_exact(op, reduced) and _zeroed(op, x, d)):
                op.tracker.pin(labels[d], f"reduced by {op.name}")
    out: Labels = [None if d in reduced else ids for d, ids in enumerate(labels) if keep or d not in reduced]
    value = op.node.meta["val"]
    return [list(out) for _ in value] if isinstance(value, (tuple, list)) else out


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


for _kind, _functions in _FUNCTIONS.items():
    Operation(
        _kind,
        normalises=Normalisation(_kind, _functions, partial(statistic_of_open, _kind), counts=_is_along_dimensions),
        zeros=_reduced if _kind in ("sum", "mean") else None,
    )(reduction)


@Operation("""
softmax log_softmax _softmax _log_softmax _safe_softmax cumsum cumprod logcumsumexp cummax cummin sort argsort topk
""")
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


@Operation("tril triu")
def triangle(op: Op) -> Labels:
    """A matrix with zeros on one side of the diagonal: positions in its last two dimensions matter."""
    labels = op.labels(op.arg("self"))
    for ids in labels[-2:]:
        op.tracker.pin(ids, f"{op.name} cuts by position")
    return labels
