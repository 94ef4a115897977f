"""Weights that are computed from parameters when they are used."""

from __future__ import annotations

from torch.fx import Node

from l0prune.ops.op import NoRuleError, Op, argument_of, op_name, register
from l0prune.ops.tracker import Labels, NormUse

__all__: list[str] = []

_CONTRACTED = {
    **dict.fromkeys(("linear", "conv1d", "conv2d", "conv3d"), 1),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), 0),
}
"""Dimension of the weight that each op contracts."""


@register("_weight_norm")
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
    name = op_name(user.target)
    if name not in _CONTRACTED or argument_of(user, "weight") is not weight:
        return None, False
    if name == "linear":
        return _CONTRACTED[name], False
    groups_of_outputs = _CONTRACTED[name] == 0 and argument_of(user, "groups") > 1
    return None if groups_of_outputs else _CONTRACTED[name], True
