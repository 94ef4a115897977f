"""Ops that trade space for channels: sliding windows, patches, pixel and channel shuffles."""

from __future__ import annotations

import math

from l0prune.ops.op import NoRuleError, Op, register
from l0prune.ops.spatial import pin_space
from l0prune.ops.tracker import IdArray, Labels

__all__: list[str] = []


@register("unfold")
def windows(op: Op) -> Labels:
    """Tensor.unfold: windows along one dimension; places inside the window become a dimension of their own, at the end."""
    labels = op.labels(op.arg("self"))
    if not labels:
        raise NoRuleError  # a single number
    dim = op.arg("dimension") % len(labels)
    op.tracker.pin(labels[dim], "windows are cut along it")
    labels[dim] = None
    return [*labels, None]


@register("im2col")
def patches(op: Op) -> Labels:
    """F.unfold, `(*, C, H, W)` to `(*, C * positions, L)`: a channel goes with all positions of the patch."""
    labels = op.labels(op.arg("self"))
    pin_space(op, labels[-2:])
    return [*labels[:-3], _repeated(labels[-3], math.prod(op.arg("kernel_size"))), None]


@register("col2im")
def sum_of_patches(op: Op) -> Labels:
    """F.fold, `(*, C * positions, L)` to `(*, C, H, W)`: all positions of a channel live or die together."""
    labels = op.labels(op.arg("self"))
    pin_space(op, labels[-1:])
    return [*labels[:-2], _merged(op, labels[-2], math.prod(op.arg("kernel_size"))), None, None]


@register("pixel_shuffle")
def pixel_shuffle(op: Op) -> Labels:
    """`(*, C * r * r, H, W)` to `(*, C, H * r, W * r)`: the r * r channels that become one live or die together."""
    labels = op.labels(op.arg("self"))
    pin_space(op, labels[-2:])
    return [*labels[:-3], _merged(op, labels[-3], op.arg("upscale_factor") ** 2), None, None]


@register("pixel_unshuffle")
def pixel_unshuffle(op: Op) -> Labels:
    """`(*, C, H * r, W * r)` to `(*, C * r * r, H, W)`: a channel goes with the r * r that it becomes."""
    labels = op.labels(op.arg("self"))
    pin_space(op, labels[-2:])
    return [*labels[:-3], _repeated(labels[-3], op.arg("downscale_factor") ** 2), None, None]


@register("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(op: Op) -> Labels:
    """Channels of `groups` groups are interleaved; each group loses the same ones, so that the groups stay as long."""
    labels, groups = op.labels(op.arg("self")), op.arg("groups")
    if labels[1] is not None:
        rows = labels[1].reshape(groups, -1).T
        op.tracker.tie_rows(rows)
        labels[1] = rows.ravel()
    return labels


def _repeated(ids: IdArray | None, n: int) -> IdArray | None:
    return None if ids is None else ids.repeat(n)


def _merged(op: Op, ids: IdArray | None, n: int) -> IdArray | None:
    if ids is None:
        return None
    rows = ids.reshape(-1, n)
    op.tracker.tie_rows(rows)
    return rows[:, 0].copy()
