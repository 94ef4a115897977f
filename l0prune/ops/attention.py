"""Fused attention: heads live or die with what they attend with; in grouped-query attention whole groups do."""

from __future__ import annotations

from typing import Any

import numpy as np

from l0prune.ops.node import NoRuleError
from l0prune.ops.operation import Op, Operation
from l0prune.ops.tracker import IdArray, Labels
from l0prune.ops.weights import SCORES, count_multiplications

__all__: list[str] = []

POSITIONS = "attention positions"


@Operation("scaled_dot_product_attention")
def attention(op: Op) -> Labels:
    """Softmax attention: heads (all leading dimensions) are tied over q, k, v; v's features flow through."""
    query, key, value, mask = op.arg("query"), op.arg("key"), op.arg("value"), op.arg("attn_mask")
    q, k, v = op.labels(query), op.labels(key), op.labels(value)
    q_shape, k_shape, v_shape = op.shape(query), op.shape(key), op.shape(value)
    if not (len(q_shape) == len(k_shape) == len(v_shape) and k_shape[:-2] == v_shape[:-2]):
        raise NoRuleError
    if q_shape[:-3] != k_shape[:-3] or (q_shape[:-2] != k_shape[:-2] and not op.arg("enable_gqa")):
        raise NoRuleError
    op.tracker.pin(op.tracker.tie(q[-1], k[-1], SCORES), SCORES)
    for ids in (q[-2], k[-2], v[-2]):
        op.tracker.pin(ids, POSITIONS)
    heads: Labels = []
    for d, (a, b, c) in enumerate(zip(q[:-2], k[:-2], v[:-2], strict=True)):
        shared = None if b is None and c is None else op.tracker.tie(b, c)
        heads.append(_tie_groups(op, a, shared, q_shape[d], k_shape[d]))
    out: Labels = [*heads, None, v[-1]]
    if mask is not None:
        _tie_mask(op, mask, out)
    outer = list(zip(q_shape[:-2], heads, strict=True))
    positions = q_shape[-2] * k_shape[-2]
    count_multiplications(op, [*outer, (positions, None), (q_shape[-1], None)])
    count_multiplications(op, [*outer, (positions, None), (v_shape[-1], v[-1])])
    return out


def _tie_groups(op: Op, queries: IdArray | None, keys: IdArray | None, n_queries: int, n_keys: int) -> IdArray | None:
    """The query heads that share a key head live or die with it, so that every key head keeps as many; one for all is free.

    On request, all key heads stay and the query heads at the same place of every group live or die together.
    """
    if queries is None and keys is None:
        return None
    if n_queries == n_keys:
        return op.tracker.tie(queries, keys)
    if n_keys == 1:
        op.tracker.pin(keys, "a single unit is broadcast over a dimension")
        return queries
    if op.tracker.query_heads and queries is not None:
        op.tracker.pin(keys, "all groups of query heads stay")
        op.tracker.tie_rows(queries.reshape(n_keys, -1).T)
        return queries
    if queries is None or keys is None:
        op.tracker.tie(queries, keys)
        return queries
    op.tracker.tie_rows(np.concatenate([keys.reshape(n_keys, 1), queries.reshape(n_keys, -1)], axis=1))
    return queries


def _tie_mask(op: Op, mask: Any, out: Labels) -> None:
    """A mask that differs by head is tied to the heads."""
    labels, shape, out_shape = op.labels(mask), op.shape(mask), op.shape()
    for ids in labels[-2:]:
        op.tracker.pin(ids, POSITIONS)
    for d in range(3, len(shape) + 1):
        if shape[-d] != 1 and (out[-d] is not None or labels[-d] is not None):
            out[-d] = op.tracker.tie(out[-d], labels[-d])
        elif shape[-d] == 1 and out_shape[-d] != 1:
            op.tracker.pin(labels[-d], "a single unit is broadcast over a dimension")
