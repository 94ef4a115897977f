"""Pooling and resampling: they act on trailing space dimensions and leave channels alone."""

from __future__ import annotations

import re

from l0prune.ops.op import Op, register
from l0prune.ops.tracker import Labels

__all__ = ["pin_space"]

_POOLS = [
    f"{kind}{n}d" for n in (1, 2, 3) for kind in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool")
]
_WINDOWED = [f"{kind}{n}d" for n in (1, 2, 3) for kind in ("max_pool", "avg_pool")]
_UPSAMPLES = [f"upsample_{kind}" for kind in ("nearest1d", "nearest2d", "nearest3d", "linear1d", "bilinear2d", "trilinear3d",
              "bicubic2d")]  # fmt: skip
_OTHERS = ["_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "_upsample_bilinear2d_aa",
           "_upsample_bicubic2d_aa", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d",
           "replication_pad2d", "replication_pad3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d",
           "max_pool1d_with_indices", "max_pool2d_with_indices", "max_pool3d_with_indices"]  # fmt: skip


@register(*_POOLS, *_UPSAMPLES, *_OTHERS)
def spatial(op: Op) -> Labels | list[Labels]:
    """Trailing dimensions (1, 2 or 3, as the op's name says) are mixed; the others pass."""
    labels = op.labels(op.tensor_args()[0])
    n_space = int(re.sub(r".*(\d)d.*", r"\1", op.name))
    space: Labels = [ids if _is_left_alone(op, k) else None for k, ids in enumerate(labels[-n_space:])]
    pin_space(op, [ids for ids, left in zip(labels[-n_space:], space, strict=True) if left is None])
    out: Labels = [*labels[:-n_space], *space]
    value = op.node.meta["val"]
    return [list(out) for _ in value] if isinstance(value, (tuple, list)) else out


def _is_left_alone(op: Op, k: int) -> bool:
    """Whether a pool takes every position of a dimension of space by itself."""
    if op.name not in _WINDOWED:
        return False
    kernel, stride = op.arg("kernel_size"), op.arg("stride")
    return _at(kernel, k) == 1 and _at(stride or kernel, k) == 1  # there is no padding beyond half a kernel


def _at(option: int | list[int], k: int) -> int:
    """An option of one dimension: given for each, or one for all."""
    return option if isinstance(option, int) else option[k if len(option) > 1 else 0]


@register("max_unpool2d", "max_unpool3d")
def unpooled(op: Op) -> Labels:
    """What was pooled goes back to its place, channel by channel; the places may come from another layer."""
    labels, places = op.labels(op.arg("self")), op.labels(op.arg("indices"))
    n_space = int(op.name[-2])
    pin_space(op, [*labels[-n_space:], *places[-n_space:]])
    both = zip(labels[:-n_space], places[:-n_space], strict=True)
    outer = [None if a is None and b is None else op.tracker.tie(a, b) for a, b in both]
    return [*outer, *([None] * n_space)]


@register("grid_sampler")
def grid_sampler(op: Op) -> Labels:
    """Channels are looked up at places of space that a tensor names: the same places for all of them."""
    labels, grid = op.labels(op.arg("input")), op.labels(op.arg("grid"))
    pin_space(op, [labels[0], *labels[2:], *grid])
    return [None, labels[1], *([None] * (len(labels) - 2))]


def pin_space(op: Op, labels: Labels) -> None:
    """Pin the dimensions along which an op mixes positions."""
    for ids in labels:
        op.tracker.pin(ids, f"{op.name} mixes along it")
