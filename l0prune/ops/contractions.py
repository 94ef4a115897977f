"""Products with weights: what a contraction consumes and costs, also if the weight is computed from parameters when it is used.

A weight may be masked, merged with an adapter, modulated, normed or fake-quantised. Gates multiply parameters, and the cut folds
them into the same parameters: whatever is computed of these is computed alike by the gated and by the compact model. What a unit
leaves behind when it is closed has to be zero, no more. So a place is looked for in every parameter that a slice of a weight is
made of, where a zero makes that slice zero.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from l0prune.ops.node import NoRuleError, argument_of, node_shape, op_name, written_later
from l0prune.ops.operation import InClosedBranch, Normalisation, Op, Operation, another_path, operation_of
from l0prune.ops.tracker import IdArray, Labels, Multiplication, NormUse, Place, Places

__all__ = ["SCORES", "aligned", "best", "contract", "count_multiplications", "is_finite_beside", "made_of", "moved",
           "places_that_zero", "product", "together"]  # fmt: skip

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
    made_by: Any = tensor.args[0] if tensor.target is operator.getitem else tensor  # one of the parts of a split
    step = operation_of(made_by.target).zeros
    return None if step is None else step(op, tensor, dim)


def moved(op: Op, node: Node, dim: int) -> Places:
    """Elements lie elsewhere, or are a part: in the one dimension of the tensor before that has the same units."""
    source: Any = node.args[0]
    if node.target is operator.getitem:
        source = source.args[0]
    wanted = op.labels(node)[dim]
    if wanted is None:
        return None
    units = np.unique(wanted)
    same = [d for d, ids in enumerate(op.labels(source)) if ids is not None and np.array_equal(np.unique(ids), units)]
    return places_that_zero(op, source, same[0]) if len(same) == 1 else None


def product(op: Op, node: Node, dim: int) -> Places:
    """Either factor may be zero, if the other stays a number then; that of learned parameters rather than a mask."""
    a, b = node.args[:2]
    if a is b:
        return aligned(op, node, a, dim)
    return best(
        aligned(op, node, one, dim) if is_finite_beside(op, node, one, other, dim) else None
        for one, other in ((a, b), (b, a))
    )


def aligned(op: Op, node: Node, operand: Any, dim: int) -> Places:
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


def is_finite_beside(op: Op, node: Node, zeroed: Any, other: Any, dim: int) -> bool:
    """Whether an operand is a number where another is zero.

    Its inverse is none: an operand that is made of the same parameters, slice by slice, has to be zero with them.
    """
    own = _own_dimension(node, other, dim)
    if own is None:
        return True
    places = aligned(op, node, zeroed, dim)
    return places is not None and not made_of(op, other, {place.parameter for place in places})


def made_of(op: Op, node: Node, parameters: set[str]) -> bool:
    """Whether a tensor is computed of one of the parameters, among other things."""
    reached, new = {node}, {node}
    while new:
        new = {source for found in new for source in found.all_input_nodes} - reached
        reached |= new
    origins = [op.origin(found) for found in reached]
    return any(origin is not None and origin.parameter in parameters for origin in origins)


def together(parts: Iterable[Places]) -> Places:
    """All places, if there are some for every part."""
    found: list[Place] = []
    for places in parts:
        if places is None:
            return None
        found += places
    return found


def best(choices: Iterable[Places]) -> Places:
    """The first of the choices, those of learned parameters alone before others."""
    found = [places for places in choices if places is not None]
    return next((places for places in found if all(place.learned for place in places)), found[0] if found else None)


def _normed_weight(func: Callable[..., Any], mask: Tensor, v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """`g v / |v|`, where closed units of `v` are zero already; zero where they all are."""
    if len(mask) not in v.shape:
        raise another_path(
            f"a weight norm of the forward pass is over {tuple(v.shape)}, the traced one over {len(mask)} units"
        )
    norm = torch.norm_except_dim(v, 2, dim)
    return v * (g / norm.where(norm > 0, 1))


def _normed_zeros(op: Op, node: Node, dim: int) -> Places:
    """A direction times a length: along the dimension of the lengths the scale of the direction is lost."""
    return places_that_zero(op, argument_of(node, "g" if argument_of(node, "dim") == dim else "v"), dim)


@Operation(
    "_weight_norm",
    normalises=Normalisation("weight_norm", (torch._weight_norm,), _normed_weight),
    zeros=_normed_zeros,
    closed=InClosedBranch.NEEDS_UNITS,
)
def weight_norm(op: Op) -> Labels:
    """`g v / |v|` with one norm for every index of `dim`.

    A gate on `v` makes closed inputs zero before the norm is taken, as if they were not there. So units may be removed along
    `dim`, and along the dimension that every user of the weight contracts; the norm pins the others.
    """
    v, g, dim = op.arg("v"), op.arg("g"), op.arg("dim")
    op.tracker.count_norm("weight_norm", None)
    if dim < 0:
        raise NoRuleError  # one norm for all
    labels = op.labels(v)
    op.tracker.tie(labels[dim], op.labels(g)[dim])
    used = [_use(op.node, user) for user in op.node.users]
    for d, ids in enumerate(labels):
        if d == dim or ids is None:
            continue
        if used and all(contracted == d for contracted, _ in used):
            order = op.tracker.n_other_norms["weight_norm"] - 1
            op.tracker.norms.append(NormUse(op.node.name, "weight_norm", None, order, ids))
        elif d < 2 or not all(is_convolution for _, is_convolution in used):
            op.tracker.pin(ids, "statistics are taken over it")
    return labels


def _use(weight: Node, user: Node) -> tuple[int | None, bool]:
    """The dimension along which an op contracts its weight, and whether it is a convolution."""
    contracts = operation_of(user.target).contracts
    used = None if contracts is None else contracts(user)
    if used is None or used.weight is not weight:
        return None, False
    return None if used.dim is None else used.dim % len(node_shape(weight)), used.channel == 1
