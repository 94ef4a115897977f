"""Shared by linear and convolution rules: a dimension contracted with a weight, and the multiplications that costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.fx import Node

from l0prune.flow.op import Op, node_shape, op_name
from l0prune.flow.tracker import IdArray, Multiplication

__all__ = ["contract", "count_multiplications"]


_RESHAPES = frozenset({"view", "reshape", "_unsafe_view", "reshape_as", "view_as"})


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

    A parameter may have been reshaped, or standardised over its inputs without a shift: over the open ones then, so that
    what a closed gate makes zero stays zero.
    """
    origin = op.origin(weight)
    if origin is not None:
        return origin.parameter, origin.dims[dim]
    ids = op.labels(weight)[dim]
    node = weight
    while ids is not None and isinstance(node, Node) and node.op == "call_function":
        name = op_name(node.target)
        if name == "batch_norm":
            _, _, shift, mean, variance = node.args[:5]
            if mean is not None or variance is not None or shift is not None or node_shape(node)[0] != 1:
                return None
        elif name not in _RESHAPES:
            return None
        node = node.args[0]
        origin = op.origin(node)
        if origin is not None:
            same = [d for d, own in enumerate(op.labels(node)) if own is not None and np.array_equal(own, ids)]
            return (origin.parameter, origin.dims[same[0]]) if same else None
    return None


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
