"""Ops that treat every element alone, with broadcasting; also the simulated rounding of quantised networks."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from l0prune.ops.contractions import aligned, is_finite_beside, places_that_zero, product, together
from l0prune.ops.node import argument_of, op_name
from l0prune.ops.operation import Op, Operation
from l0prune.ops.tracker import Labels, Places

__all__ = ["pointwise"]


def _unchanged(op: Op, node: Node, dim: int) -> Places:
    """A function of each element alone, which is zero at zero."""
    return places_that_zero(op, node.args[0], dim)


_BOUNDS = {"clamp": ("min", "max"), "clip": ("min", "max"), "hardtanh": ("min_val", "max_val")}


def _within_bounds(op: Op, node: Node, dim: int) -> Places:
    """Clamped between numbers on both sides of zero."""
    low, high = (argument_of(node, name) for name in _BOUNDS[op_name(node.target).rstrip("_")])
    given = [bound for bound in (low, high) if bound is not None]
    if not all(isinstance(bound, (int, float)) for bound in given):
        return None
    around = (low is None or low <= 0) and (high is None or high >= 0)
    return _unchanged(op, node, dim) if around else None


def _power(op: Op, node: Node, dim: int) -> Places:
    """Zero to the power of a positive number."""
    exponent = node.args[1]
    return _unchanged(op, node, dim) if isinstance(exponent, (int, float)) and exponent > 0 else None


def _quotient(op: Op, node: Node, dim: int) -> Places:
    """The numerator is zero and the denominator is not."""
    a, b = node.args[:2]
    return aligned(op, node, a, dim) if is_finite_beside(op, node, a, b, dim) else None


def _sum(op: Op, node: Node, dim: int) -> Places:
    """All summands are zero, and none is spread over the dimension."""
    return together(aligned(op, node, part, dim) for part in node.args[:2])


def _masked(op: Op, node: Node, dim: int) -> Places:
    """Elements that a mask chooses become zero too."""
    value = argument_of(node, "value")
    return aligned(op, node, node.args[0], dim) if value == 0 and isinstance(value, (int, float)) else None


def _either(op: Op, node: Node, dim: int) -> Places:
    """Elements of two tensors, or of one and zeros."""
    parts = [part for part in node.args[1:3] if not _is_zero(part)]
    return together(aligned(op, node, part, dim) for part in parts) if parts else None


def _is_zero(value: Any) -> bool:
    if isinstance(value, Node):
        return value.op == "call_function" and op_name(value.target) in ("zeros", "zeros_like", "new_zeros")
    return isinstance(value, (int, float)) and value == 0


_ZERO_AT_ZERO = """
neg negative positive abs absolute sign sgn relu relu6 leaky_relu silu gelu elu selu celu hardswish mish hardshrink softshrink
sin sinh tan tanh asin asinh atan atanh arcsin arcsinh arctan arctanh deg2rad erf erfinv expm1 log1p square
special_erf special_erfinv special_expm1 special_log1p special_i1 special_round round floor ceil trunc fix frac nan_to_num
"""
"""With a finite slope: that of the square root would make gradients of a closed unit infinite."""

# Ops that torch does not tag as pointwise although they are.
_UNTAGGED = """
lerp addcmul addcdiv prelu _prelu_kernel hardsigmoid threshold softplus log_sigmoid rsub copy fill zero complex polar conj _conj
resolve_conj resolve_neg real imag
"""

# Other names of pointwise ops, which torch.export keeps and torch does not tag.
_ALIASES = """
floor_divide greater greater_equal less less_equal not_equal arccos arctan2 arccosh isclose
special_expit special_erfc special_exp2 special_logit special_sinc
__and__ __or__ __xor__
"""


@Operation(_ALIASES)
@Operation(_UNTAGGED)
@Operation("rrelu", training="training", zeros=_unchanged)
@Operation("alpha_dropout feature_alpha_dropout", training="train")
@Operation("dropout feature_dropout", training="train", zeros=_unchanged)
@Operation("where", zeros=_either)
@Operation("masked_fill", zeros=_masked)
@Operation("add sub subtract", zeros=_sum)
@Operation("div divide", zeros=_quotient)
@Operation("mul multiply", zeros=product)
@Operation("pow", zeros=_power)
@Operation(" ".join(_BOUNDS), zeros=_within_bounds)
@Operation(_ZERO_AT_ZERO, zeros=_unchanged)
@Operation(tag=torch.Tag.pointwise)
def pointwise(op: Op) -> Labels:
    """Index i of the output depends on index i of every operand: equal indices are tied."""
    if op.name == "prelu":
        return _prelu(op)
    out_shape = op.shape()
    out: Labels = [None] * len(out_shape)
    seen = [False] * len(out_shape)
    for operand in op.tensor_args():
        labels, shape = op.labels(operand), op.shape(operand)
        for k in range(1, len(shape) + 1):
            if shape[-k] != out_shape[-k]:
                op.tracker.pin(labels[-k], "a single unit is broadcast over a dimension")
            elif shape[-k] > 1 or labels[-k] is not None:
                if not seen[-k]:
                    out[-k], seen[-k] = labels[-k], True
                elif out[-k] is not None or labels[-k] is not None:
                    out[-k] = op.tracker.tie(out[-k], labels[-k])
    return out


def _prelu(op: Op) -> Labels:
    """The weight is a vector and lies along dimension 1."""
    x, weight = op.tensor_args()
    labels, weight_labels = op.labels(x), op.labels(weight)
    if weight_labels and weight_labels[0] is not None:
        labels[1] = op.tracker.tie(labels[1], weight_labels[0])
    return labels


OBSERVED = "an observer looks at all of it; torch.ao.quantization.disable_observer ends that"


@Operation("fake_quantize_per_tensor_affine", zeros=_unchanged)
def one_scale(op: Op) -> Labels:
    """Rounds as a quantised network will; scale and zero point are single numbers."""
    return op.labels(op.arg("self"))


@Operation("fake_quantize_per_channel_affine", zeros=_unchanged)
def scale_of_each_channel(op: Op) -> Labels:
    """The same, with scales and zero points that lie along `axis`."""
    return _along(op, op.arg("axis"), "scale", "zero_point")


@Operation("fused_moving_avg_obs_fake_quant", zeros=_unchanged)
def observed(op: Op) -> Labels:
    """The same with an observer, which updates the scales from the extremes of everything it sees, as long as it is on."""
    is_on = op.value(op.arg("observer_on"))
    if is_on is None or bool(is_on.any()):
        op.tracker.pin_all(op.labels(op.arg("self")), OBSERVED)
    if op.arg("per_row_fake_quant"):
        return _along(op, op.arg("ch_axis"), "running_min", "running_max", "scale", "zero_point")
    return op.labels(op.arg("self"))


def _along(op: Op, axis: int, *names: str) -> Labels:
    labels = op.labels(op.arg("self"))
    for name in names:
        for ids in op.labels(op.arg(name)):
            op.tracker.tie(labels[axis], ids)
    return labels
