"""Shared by linear and convolution rules: a dimension contracted with a weight, and the multiplications that costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.fx import Node

from l0prune.flow.op import Op, argument_of, node_shape, op_name
from l0prune.flow.tracker import IdArray, Multiplication

__all__ = ["SCORES", "contract", "count_multiplications"]

SCORES = "attention scores contract it without a parameter"

_TRANSPARENT = frozenset({"view", "reshape", "_unsafe_view", "flatten", "reshape_as", "view_as", "_weight_norm"})
_BY_A_NUMBER = frozenset({"div", "mul"})
"""Ops whose first operand is scaled instead of the weight that they make of it; the latter where the second is one number."""


def contract(op: Op, ids: IdArray | None, weight: Any, dim: int) -> None:
    """Contract units `ids` of an activation with dimension `dim` of `weight`.

    If the weight is a parameter, it is recorded as a consumer: scaling it along `dim` scales the units exactly. A weight
    that was computed (standardised, reparametrised, or another activation) cannot be scaled, so its units are pinned.
    """
    weight_ids = op.labels(weight)[dim]
    op.tracker.tie(ids, weight_ids)
    source = _parameter_dimension(op, weight, dim)
    if source is None or source[1] < 0:
        op.tracker.pin(ids, "contracted with a computed tensor, not a parameter")
    elif weight_ids is not None:
        op.tracker.consume(*source, weight_ids)


def _parameter_dimension(op: Op, weight: Any, dim: int) -> tuple[str, int] | None:
    """The parameter and its dimension by which dimension `dim` of `weight` can be scaled; None if there is none.

    A parameter may have been reshaped; or standardised over its inputs without a shift, or weight-normed: over the open inputs
    then, so that what a closed gate makes zero stays zero.
    """
    origin = op.origin(weight)
    if origin is not None:
        return origin.parameter, origin.dims[dim]
    node, ids = weight, op.labels(weight)[dim]
    while ids is not None and isinstance(node, Node) and node.op == "call_function":
        made_from = _made_from(op, node, ids)
        if made_from is None:
            return None
        node, ids = made_from
        origin = op.origin(node)
        if origin is not None:
            same = [d for d, own in enumerate(op.labels(node)) if own is not None and np.array_equal(own, ids)]
            return (origin.parameter, origin.dims[same[0]]) if same else None
    return None


def _made_from(op: Op, weight: Node, ids: IdArray) -> tuple[Any, IdArray] | None:
    """The tensor to scale, and its units, so that the units `ids` of a weight computed from it are scaled or closed."""
    name = op_name(weight.target)
    if name == "batch_norm":
        _, _, shift, mean, variance = weight.args[:5]
        plain = mean is None and variance is None and shift is None and node_shape(weight)[0] == 1
        return (weight.args[0], ids) if plain else None
    if name == "_weight_norm":
        along = argument_of(weight, "dim")
        if np.array_equal(op.labels(weight)[along], ids):  # type: ignore[arg-type]
            g = argument_of(weight, "g")  # along the dimension of the norms the scale of v is lost
            return g, op.labels(g)[along]  # type: ignore[return-value]
    by_a_number = name in _BY_A_NUMBER and len(weight.args) == 2 and not _has_dimensions(weight.args[1])
    return (weight.args[0], ids) if name in _TRANSPARENT or by_a_number else None


def _has_dimensions(value: Any) -> bool:
    return isinstance(value, Node) and bool(node_shape(value))


def count_multiplications(op: Op, dims: Sequence[tuple[int, IdArray | None]]) -> None:
    """Record the product of `dims` (size, unit ids or None) as multiply-accumulates of this node."""
    coefficient = 1.0
    sides = []
    for size, ids in dims:
        if ids is None:
            coefficient *= max(size, 1)  # one where nobody knows
        else:
            sides.append(ids)
    name = op.module or op.node.name
    op.tracker.multiplications.append(Multiplication(name, op.node.name, coefficient, tuple(sides)))
