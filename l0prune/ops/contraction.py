"""Shared by linear and convolution rules: a dimension contracted with a weight, and the multiplications that costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from l0prune.ops.computed_weights import places_that_zero
from l0prune.ops.op import Op
from l0prune.ops.tracker import IdArray, Multiplication

__all__ = ["SCORES", "contract", "count_multiplications"]

SCORES = "attention scores contract it without a parameter"


def contract(op: Op, ids: IdArray | None, weight: Any, dim: int) -> None:
    """Contract units `ids` of an activation with dimension `dim` of `weight`.

    If the weight is a parameter, it is recorded as a consumer: scaling it along `dim` scales the units exactly. So are the
    parameters that a computed weight is made of, where zeros in them make its slices zero. The units of any other weight
    (another activation, say) are pinned.
    """
    weight_ids = op.labels(weight)[dim]
    op.tracker.tie(ids, weight_ids)
    places = None if weight_ids is None else places_that_zero(op, weight, dim)
    if places is None:
        op.tracker.pin(ids, "contracted with a computed tensor, not a parameter")
    for place in places or ():
        op.tracker.consume(place.parameter, place.dim, place.ids)


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
