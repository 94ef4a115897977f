"""Ops that treat every element alone, with broadcasting; and ops that create tensors."""

from __future__ import annotations

from l0prune.ops.op import Op, register
from l0prune.ops.tracker import Labels

__all__: list[str] = []


# Ops that torch does not tag as pointwise although they are.
_UNTAGGED = ["where", "masked_fill", "lerp", "addcmul", "addcdiv", "dropout", "alpha_dropout", "feature_dropout", "prelu",
             "_prelu_kernel", "rrelu", "hardswish", "hardsigmoid", "hardtanh", "relu6", "silu", "gelu", "mish", "elu", "selu",
             "celu", "leaky_relu", "threshold", "softplus", "log_sigmoid", "clamp", "rsub", "pow",
             "copy", "fill", "zero", "complex", "polar", "conj", "_conj", "resolve_conj", "resolve_neg", "real",
             "imag"]  # fmt: skip

# Other names of pointwise ops, which torch.export keeps and torch does not tag.
_ALIASES = ["multiply", "subtract", "divide", "floor_divide", "negative", "absolute", "greater", "greater_equal", "less",
            "less_equal", "not_equal", "arccos", "arcsin", "arctan", "arctan2", "arccosh", "arcsinh", "arctanh", "fix", "isclose",
            "special_expit", "special_erf", "special_erfc", "special_exp2", "special_expm1", "special_log1p", "special_logit",
            "special_sinc", "special_round", "__and__", "__or__", "__xor__"]  # fmt: skip


@register("pointwise", *_UNTAGGED, *_ALIASES)
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


@register("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty")
def creation(op: Op) -> Labels:
    """A constant tensor: fixed sizes may shrink with what they are joined to."""
    size = op.arg("size")
    return [op.tracker.fresh(s) if isinstance(s, int) and s > 1 else None for s in size]


@register("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like")
def creation_like(op: Op) -> Labels:
    """A tensor of another's shape."""
    return op.labels(op.arg("self"))
