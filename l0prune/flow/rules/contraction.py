"""Shared by linear and convolution rules: a dimension contracted with a weight, and the multiplications that costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from l0prune.flow.op import Op
from l0prune.flow.tracker import IdArray, Multiplication

__all__ = ["contract", "count_multiplications"]


def contract(op: Op, ids: IdArray | None, weight: Any, dim: int) -> None:
    """Contract units `ids` of an activation with dimension `dim` of `weight`.

    If the weight is a parameter, it is recorded as a consumer: scaling it along `dim` scales the units exactly. A weight
    that was computed (standardised, reparametrised, or another activation) cannot be scaled, so its units are pinned.
    """
    weight_ids = op.labels(weight)[dim]
    op.tracker.tie(ids, weight_ids)
    origin = op.origin(weight)
    if origin is None or origin.dims[dim] < 0:
        op.tracker.pin(
            weight_ids if weight_ids is not None else ids, "contracted with a computed tensor, not a parameter"
        )
    elif weight_ids is not None:
        op.tracker.consume(origin.parameter, origin.dims[dim], weight_ids)


def count_multiplications(op: Op, dims: Sequence[tuple[int, IdArray | None]]) -> None:
    """Record the product of `dims` (size, unit ids or None) as multiply-accumulates of this node."""
    coefficient = 1.0
    sides = []
    for size, ids in dims:
        if ids is None:
            coefficient *= size
        else:
            sides.append(ids)
    name = op.module or op.node.name
    op.tracker.multiplications.append(Multiplication(name, op.node.name, coefficient, tuple(sides)))
