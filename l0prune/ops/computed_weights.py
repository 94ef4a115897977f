"""Weights that are made of parameters when they are used: masked, merged with an adapter, modulated, normed, fake-quantised.

Gates multiply parameters, and the cut folds them into the same parameters: whatever is computed of these is computed alike by
the gated and by the compact model. What a unit leaves behind when it is closed has to be zero, no more. So a place is looked
for in every parameter that a slice of a weight is made of, where a zero makes that slice zero.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.fx import Node

from l0prune.ops.equations import indices_of
from l0prune.ops.memory import written_later
from l0prune.ops.op import Op, argument_of, node_shape, op_name
from l0prune.ops.tracker import IdArray

__all__ = ["Place", "places_that_zero"]


@dataclass(frozen=True, eq=False)
class Place:
    """A dimension of a parameter or buffer, with its units, shape `(size,)`."""

    parameter: str
    dim: int
    ids: IdArray
    learned: bool


Places: TypeAlias = list[Place] | None
"""Places of which all together make a slice zero; None if there are none such."""


def places_that_zero(op: Op, tensor: Any, dim: int) -> Places:
    """Where zeros make the slices of `tensor` along `dim` zero, one unit each.

    Args:
        op: The op that asks.
        tensor: A parameter, or a tensor that is computed of parameters.
        dim: Its dimension, >= 0.

    Returns:
        The places, or None where a closed unit would leave something behind.
    """
    origin = op.origin(tensor)
    if origin is not None:
        ids = op.labels(tensor)[dim]
        if ids is None or origin.dims[dim] < 0:
            return None
        return [Place(origin.parameter, origin.dims[dim], ids, origin.learned)]
    if not isinstance(tensor, Node) or tensor.op != "call_function" or written_later(tensor):
        return None
    step = _STEPS.get(op_name(tensor.target).rstrip("_"))
    return None if step is None else step(op, tensor, dim)


def _moved(op: Op, node: Node, dim: int) -> Places:
    """Elements lie elsewhere, or are a part: in the one dimension of the tensor before that has the same units."""
    source: Any = node.args[0]
    if node.target is operator.getitem:
        if op_name(source.target) not in _SPLITS:
            return None
        source = source.args[0]
    wanted = op.labels(node)[dim]
    if wanted is None:
        return None
    units = np.unique(wanted)
    same = [d for d, ids in enumerate(op.labels(source)) if ids is not None and np.array_equal(np.unique(ids), units)]
    return places_that_zero(op, source, same[0]) if len(same) == 1 else None


def _kept(op: Op, node: Node, dim: int) -> Places:
    """A function of each element alone, which is zero at zero."""
    return places_that_zero(op, node.args[0], dim)


def _within_bounds(op: Op, node: Node, dim: int) -> Places:
    """Clamped between numbers on both sides of zero."""
    low, high = (argument_of(node, name) for name in _BOUNDS[op_name(node.target).rstrip("_")])
    given = [bound for bound in (low, high) if bound is not None]
    if not all(isinstance(bound, (int, float)) for bound in given):
        return None
    around = (low is None or low <= 0) and (high is None or high >= 0)
    return _kept(op, node, dim) if around else None


def _power(op: Op, node: Node, dim: int) -> Places:
    """Zero to the power of a positive number."""
    exponent = node.args[1]
    return _kept(op, node, dim) if isinstance(exponent, (int, float)) and exponent > 0 else None


def _product(op: Op, node: Node, dim: int) -> Places:
    """Either factor may be zero, if the other stays a number then; that of learned parameters rather than a mask."""
    a, b = node.args[:2]
    if a is b:
        return _aligned(op, node, a, dim)
    return _best(
        _aligned(op, node, one, dim) if _is_finite_beside(op, node, one, other, dim) else None
        for one, other in ((a, b), (b, a))
    )


def _einsum(op: Op, node: Node, dim: int) -> Places:
    """Any tensor with the index may be zero, as a factor of a product."""
    operands = argument_of(node, "tensors")
    terms, out = indices_of(argument_of(node, "equation"), [len(node_shape(x)) for x in operands])
    choices = []
    for k, (x, term) in enumerate(zip(operands, terms, strict=True)):
        if out[dim] in term and node_shape(x)[term.index(out[dim])] == node_shape(node)[dim]:
            places = places_that_zero(op, x, term.index(out[dim]))
            parameters = {place.parameter for place in places or ()}
            if not any(_made_of(op, other, parameters) for j, other in enumerate(operands) if j != k):
                choices.append(places)
    return _best(choices)


def _masked(op: Op, node: Node, dim: int) -> Places:
    """Elements that a mask chooses become zero too."""
    value = argument_of(node, "value")
    return _aligned(op, node, node.args[0], dim) if value == 0 and isinstance(value, (int, float)) else None


def _either(op: Op, node: Node, dim: int) -> Places:
    """Elements of two tensors, or of one and zeros."""
    parts = [part for part in node.args[1:3] if not _is_zero(part)]
    return _together(_aligned(op, node, part, dim) for part in parts) if parts else None


def _is_zero(value: Any) -> bool:
    if isinstance(value, Node):
        return value.op == "call_function" and op_name(value.target) in ("zeros", "zeros_like", "new_zeros")
    return isinstance(value, (int, float)) and value == 0


def _quotient(op: Op, node: Node, dim: int) -> Places:
    """The numerator is zero and the denominator is not."""
    a, b = node.args[:2]
    return _aligned(op, node, a, dim) if _is_finite_beside(op, node, a, b, dim) else None


def _sum(op: Op, node: Node, dim: int) -> Places:
    """All summands are zero, and none is spread over the dimension."""
    return _together(_aligned(op, node, part, dim) for part in node.args[:2])


def _matrix_product(op: Op, node: Node, dim: int) -> Places:
    """Rows are those of the first matrix, columns those of the second; a batch is that of either."""
    a, b = node.args[:2]
    n_dims = len(node_shape(node))
    if min(len(node_shape(a)), len(node_shape(b))) < 2:
        return None
    from_right = dim - n_dims
    if from_right < -2:
        return _product(op, node, dim)
    return _aligned(op, node, a if from_right == -2 else b, dim)


def _linear(op: Op, node: Node, dim: int) -> Places:
    """Outputs of a layer without a bias, or any other dimension of its input."""
    x, weight = node.args[:2]
    if argument_of(node, "bias") is not None:
        return None
    return places_that_zero(op, weight, 0) if dim == len(node_shape(node)) - 1 else places_that_zero(op, x, dim)


def _reduced(op: Op, node: Node, dim: int) -> Places:
    """Sums and means over other dimensions."""
    dims = argument_of(node, "dim")
    n_dims = len(node_shape(node.args[0]))
    gone = {d % n_dims for d in ([dims] if isinstance(dims, int) else dims or range(n_dims))}
    left = [d for d in range(n_dims) if argument_of(node, "keepdim") or d not in gone]
    return None if left[dim] in gone else places_that_zero(op, node.args[0], left[dim])


def _joined(op: Op, node: Node, dim: int) -> Places:
    """Tensors one behind the other: all of them."""
    return _together(places_that_zero(op, part, dim) for part in argument_of(node, "tensors"))


def _standardised(op: Op, node: Node, dim: int) -> Places:
    """A weight as one sample of a batch norm without a shift: its statistics are taken over what is open."""
    x, _, shift, mean, variance = node.args[:5]
    plain = mean is None and variance is None and shift is None and node_shape(node)[0] == 1
    return places_that_zero(op, x, dim) if plain else None


def _normed(op: Op, node: Node, dim: int) -> Places:
    """A direction times a length: along the dimension of the lengths the scale of the direction is lost."""
    return places_that_zero(op, argument_of(node, "g" if argument_of(node, "dim") == dim else "v"), dim)


def _aligned(op: Op, node: Node, operand: Any, dim: int) -> Places:
    """Places of an operand along a dimension of the result that it has in full."""
    own = _own_dimension(node, operand, dim)
    return None if own is None else places_that_zero(op, operand, own)


def _own_dimension(node: Node, operand: Any, dim: int) -> int | None:
    """Dimension of an operand along which it has the result's dimension in full, and not one index over and over."""
    if not isinstance(operand, Node) or not isinstance(operand.meta.get("val"), torch.Tensor):
        return None
    shape, result = node_shape(operand), node_shape(node)
    own = dim - len(result) + len(shape)
    if own < 0 or shape[own] != result[dim]:
        return None
    is_expanded = operand.op == "call_function" and op_name(operand.target) in ("expand", "expand_as", "broadcast_to")
    return own if not is_expanded or _own_dimension(operand, operand.args[0], own) is not None else None


def _is_finite_beside(op: Op, node: Node, zeroed: Any, other: Any, dim: int) -> bool:
    """Whether an operand is a number where another is zero.

    Its inverse is none: an operand that is made of the same parameters, slice by slice, has to be zero with them.
    """
    own = _own_dimension(node, other, dim)
    if own is None:
        return True
    places = _aligned(op, node, zeroed, dim)
    if places is None:
        return False
    return not _made_of(op, other, {place.parameter for place in places})


def _made_of(op: Op, node: Node, parameters: set[str]) -> bool:
    """Whether a tensor is computed of one of the parameters, among other things."""
    reached, new = {node}, {node}
    while new:
        new = {source for found in new for source in found.all_input_nodes} - reached
        reached |= new
    origins = [op.origin(found) for found in reached]
    return any(origin is not None and origin.parameter in parameters for origin in origins)


def _together(parts: Any) -> Places:
    found: list[Place] = []
    for places in parts:
        if places is None:
            return None
        found += places
    return found


def _best(choices: Any) -> Places:
    """The first of the choices, those of learned parameters alone before others."""
    found = [places for places in choices if places is not None]
    return next((places for places in found if all(place.learned for place in places)), found[0] if found else None)


_MOVING = ["view", "reshape", "_unsafe_view", "flatten", "unflatten", "reshape_as", "view_as", "contiguous", "clone", "detach",
           "alias", "to", "_to_copy", "type_as", "permute", "transpose", "swapaxes", "swapdims", "t", "numpy_T", "mT", "adjoint",
           "movedim", "moveaxis", "expand", "expand_as", "broadcast_to", "squeeze", "unsqueeze", "slice", "narrow",
           "select", "getitem"]  # fmt: skip
_SPLITS = frozenset({"split", "chunk", "split_with_sizes", "tensor_split", "unsafe_split", "unsafe_chunk", "unbind"})
_ZERO_AT_ZERO = ["neg", "negative", "abs", "absolute", "sign", "relu", "relu6", "leaky_relu", "silu", "gelu", "elu", "selu",
                 "celu", "tanh", "sin", "sinh", "tan", "asin", "asinh", "atan", "erf", "expm1", "log1p", "square", "round",
                 "floor", "ceil", "trunc", "fix", "dropout", "softsign", "hardswish", "mish", "fake_quantize_per_tensor_affine",
                 "fake_quantize_per_channel_affine", "fused_moving_avg_obs_fake_quant"]  # fmt: skip
_BOUNDS = {"clamp": ("min", "max"), "clip": ("min", "max"), "hardtanh": ("min_val", "max_val")}

_STEPS: dict[str, Callable[[Op, Node, int], Places]] = {
    **dict.fromkeys(_MOVING, _moved),
    **dict.fromkeys(_ZERO_AT_ZERO, _kept),
    **dict.fromkeys(_BOUNDS, _within_bounds),
    "pow": _power,
    **dict.fromkeys(("mul", "multiply"), _product),
    **dict.fromkeys(("div", "divide"), _quotient),
    **dict.fromkeys(("add", "sub", "subtract"), _sum),
    **dict.fromkeys(("matmul", "mm", "bmm"), _matrix_product),
    "linear": _linear,
    **dict.fromkeys(("sum", "mean"), _reduced),
    **dict.fromkeys(("cat", "concat", "concatenate"), _joined),
    "einsum": _einsum,
    "masked_fill": _masked,
    "where": _either,
    "batch_norm": _standardised,
    "_weight_norm": _normed,
}
