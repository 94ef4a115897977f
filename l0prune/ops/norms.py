"""Normalisations: per channel, over channels, over groups of channels."""

from __future__ import annotations

from l0prune.ops.op import NoRuleError, Op, register
from l0prune.ops.tracker import IdArray, Labels, NormUse

__all__: list[str] = []


def _tie_affine(op: Op, ids: IdArray | None, *names: str) -> None:
    for name in names:
        node = op.arg(name)
        if node is not None:
            op.tracker.tie(ids, op.labels(node)[-1])


def _record(op: Op, kind: str, ids: IdArray | None) -> None:
    """The walk has counted this call already: of those without a weight it is the last so far."""
    if ids is not None:
        weight = op.name_of(op.arg("weight")) if kind != "batch_norm" else None
        order = op.tracker.n_other_norms[kind] - 1 if weight is None else 0
        op.tracker.norms.append(NormUse(op.node.name, kind, weight, order, ids))


@register("batch_norm", "instance_norm")
def batch_norm(op: Op) -> Labels:
    """Statistics of each channel alone: the affine and running tensors tie to the channel.

    Weights are standardised as one sample whose channels are the outputs, over the inputs: with masked statistics.
    """
    labels = op.labels(op.arg("input"))
    _tie_affine(op, labels[1], "weight", "bias", "running_mean", "running_var")
    if op.name == "batch_norm" and op.arg("running_mean") is None and op.arg("running_var") is None:
        op.tracker.count_norm("batch_norm", None)
        if len(labels) == 3 and op.shape()[0] == 1:
            _record(op, "batch_norm", labels[2])
            return labels
    for ids in labels[2:]:
        op.tracker.pin(ids, "statistics are taken over it")
    return labels


@register("layer_norm")
def layer_norm(op: Op) -> Labels:
    """Statistics span the last dimension: gated units need masked statistics; more dimensions are pinned."""
    labels = op.labels(op.arg("input"))
    n_dims = len(op.arg("normalized_shape"))
    if n_dims > 1:
        for ids in labels[-n_dims:]:
            op.tracker.pin(ids, "statistics are taken over it together with other dimensions")
        return _pin_affine(op, labels)
    _tie_affine(op, labels[-1], "weight", "bias")
    _record(op, "layer_norm", labels[-1])
    return labels


def _pin_affine(op: Op, labels: Labels) -> Labels:
    for name in ("weight", "bias"):
        node = op.arg(name)
        if node is not None:
            op.tracker.pin_all(op.labels(node), "statistics are taken over it together with other dimensions")
    return labels


@register("rms_norm")
def rms_norm(op: Op) -> Labels:
    """Root mean square over the last dimension, with masked statistics for gated units."""
    labels = op.labels(op.arg("input"))
    if len(op.arg("normalized_shape")) > 1:
        raise NoRuleError
    _tie_affine(op, labels[-1], "weight")
    _record(op, "rms_norm", labels[-1])
    return labels


@register("group_norm")
def group_norm(op: Op) -> Labels:
    """One group: masked statistics. Several groups: the unit is a whole group, exact without any mask."""
    labels = op.labels(op.arg("input"))
    groups = op.arg("num_groups")
    _tie_affine(op, labels[1], "weight", "bias")
    for ids in labels[2:]:
        op.tracker.pin(ids, "statistics are taken over it")
    if groups == 1:
        _record(op, "group_norm", labels[1])
        return labels
    if labels[1] is not None:
        op.tracker.tie_rows(labels[1].reshape(groups, -1))
    return labels
