"""Matrix products: linear layers, matmul with parameters or activations, fused attention."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch.fx import Node

from l0prune.ops.contractions import SCORES, aligned, contract, count_multiplications, places_that_zero, product
from l0prune.ops.einsum import Index, multilinear
from l0prune.ops.node import NoRuleError, argument_of, node_shape
from l0prune.ops.operation import Contraction, InClosedBranch, Op, Operation
from l0prune.ops.tracker import IdArray, Labels, Places

__all__: list[str] = []

POSITIONS = "attention positions"


def _layer(node: Node) -> Contraction:
    return Contraction(argument_of(node, "input"), argument_of(node, "weight"), 1, 0, argument_of(node, "bias"))


def _layer_zeros(op: Op, node: Node, dim: int) -> Places:
    """Outputs of a layer without a bias, or any other dimension of its input."""
    x, weight = node.args[:2]
    if argument_of(node, "bias") is not None:
        return None
    return places_that_zero(op, weight, 0) if dim == len(node_shape(node)) - 1 else places_that_zero(op, x, dim)


@Operation("linear", contracts=_layer, zeros=_layer_zeros, closed=InClosedBranch.PASSES_CONSTANTS)
def linear(op: Op) -> Labels:
    """`x W^T + b`: the input's last dimension is consumed by W's dimension 1, the output is W's dimension 0."""
    x, weight, bias = op.arg("input"), op.arg("weight"), op.arg("bias")
    x_labels, w_labels = op.labels(x), op.labels(weight)
    contract(op, x_labels[-1], weight, 1)
    if bias is not None:
        op.tracker.tie(op.labels(bias)[0], w_labels[0])
    dims = list(zip(op.shape(x), x_labels, strict=True))
    count_multiplications(op, [*dims, (op.shape(weight)[0], w_labels[0])])
    return [*x_labels[:-1], w_labels[0]]


@Operation("bilinear")
def bilinear(op: Op) -> Labels:
    """`x_1 W_k x_2 + b_k` for every output k: the weight is `(out, in_1, in_2)` and contracts both."""
    first, second, weight, bias = op.arg("input1"), op.arg("input2"), op.arg("weight"), op.arg("bias")
    n_outer = len(op.shape(first)) - 1
    outer: list[Index] = [f"x{d}" for d in range(n_outer)]
    ids = op.labels(weight)[0]
    if bias is not None:
        op.tracker.tie(ids, op.labels(bias)[0])
    terms: list[list[Index]] = [[*outer, "i"], ["k", "i", "j"], [*outer, "j"]]
    return multilinear(op, [first, weight, second], terms, [*outer, "k"])


def _product_of_two(node: Node) -> Contraction:
    a, b = node.args[:2]
    return Contraction(a, b, -2, -1)


def _product_zeros(op: Op, node: Node, dim: int) -> Places:
    """Rows are those of the first matrix, columns those of the second; a batch is that of either."""
    a, b = node.args[:2]
    n_dims = len(node_shape(node))
    if min(len(node_shape(a)), len(node_shape(b))) < 2:
        return None
    from_right = dim - n_dims
    if from_right < -2:
        return product(op, node, dim)
    return aligned(op, node, a if from_right == -2 else b, dim)


@Operation("matmul mm bmm", contracts=_product_of_two, zeros=_product_zeros)
def matmul(op: Op) -> Labels:
    """Batched product of two tensors; either may be a parameter."""
    a, b = op.node.args[:2]
    n_a, n_b = len(op.shape(a)), len(op.shape(b))
    if min(n_a, n_b) > 1:
        return _product(op, a, b)
    first: list[Index] = [f"a{d}" for d in range(n_a)]
    second: list[Index] = [f"b{d}" for d in range(n_b)]
    second[-min(n_b, 2)] = first[-1]
    return multilinear(op, [a, b], [first, second], [i for i in [*first, *second] if i != first[-1]])


def _product_and_bias(node: Node) -> Contraction:
    bias, a, b = node.args[:3]
    return Contraction(a, b, -2, -1, bias)


@Operation("baddbmm")
@Operation("addmm", contracts=_product_and_bias)
def addmm(op: Op) -> Labels:
    """`bias + a b`, as in Conv1D layers of GPT-2."""
    bias, a, b = op.node.args[:3]
    out = _product(op, a, b)
    bias_labels, bias_shape = op.labels(bias), op.shape(bias)
    for k in range(1, len(bias_shape) + 1):
        if bias_shape[-k] > 1:
            out[-k] = op.tracker.tie(out[-k], bias_labels[-k])
    return out


def _product(op: Op, a: Any, b: Any) -> Labels:
    a_labels, b_labels = op.labels(a), op.labels(b)
    a_shape, b_shape = op.shape(a), op.shape(b)
    if op.origin(b) is not None:
        contract(op, a_labels[-1], b, len(b_shape) - 2)
    elif op.origin(a) is not None:
        contract(op, b_labels[-2], a, len(a_shape) - 1)
    else:
        op.tracker.pin(op.tracker.tie(a_labels[-1], b_labels[-2], SCORES), SCORES)
    out_shape = op.shape()
    out: Labels = [None] * len(out_shape)
    for k in range(3, len(out_shape) + 1):
        out[-k] = _broadcast(op, k, out_shape[-k], ((a_labels, a_shape), (b_labels, b_shape)))
    out[-2], out[-1] = a_labels[-2], b_labels[-1]
    count_multiplications(op, [(a_shape[-1], a_labels[-1]), *zip(out_shape, out, strict=True)])
    return out


def _broadcast(op: Op, k: int, size: int, tensors: tuple[tuple[Labels, tuple[int, ...]], ...]) -> Any:
    """Labels of batch dimension `-k` of tensors that broadcast to `size`."""
    result, first = None, True
    for labels, shape in tensors:
        if k > len(shape):
            continue
        if shape[-k] != size:
            op.tracker.pin(labels[-k], "a single unit is broadcast over a dimension")
            continue
        result = labels[-k] if first else op.tracker.tie(result, labels[-k])
        first = False
    return result


@Operation("scaled_dot_product_attention")
def attention(op: Op) -> Labels:
    """Softmax attention: heads (all leading dimensions) are tied over q, k, v; v's features flow through.

    Heads live or die with what they attend with; in grouped-query attention whole groups do.
    """
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
