"""Ops that mix positions of some dimensions and leave the others alone: pools, resampling, patches, Fourier transforms."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Node
from torch.utils import _pytree as pytree

from l0prune.ops.node import NoRuleError
from l0prune.ops.operation import Op, Operation
from l0prune.ops.sizes import Cut, Rows, SizedCall
from l0prune.ops.tracker import IdArray, Labels

__all__: list[str] = []

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


class SpatialCall(SizedCall):
    """A call of what mixes positions; torch refuses a tensor without channels there, so it is made of one, and left without it.

    Its only size is the number of channels, where that is zero.
    """

    kind = "space"
    functions = (
        *(getattr(F, name) for pool in _POOLS for name in (pool, f"{pool}_with_indices") if hasattr(F, name)),
        *(getattr(torch, pool) for pool in _POOLS if hasattr(torch, pool)),
        F.interpolate,
        F.unfold,
    )

    def __init__(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], *, without: bool = False
    ) -> None:
        super().__init__(func, args, kwargs)
        self._without = without

    def make(self) -> Any:
        """Its result; without channels where the plan says so and it is given none."""
        empty = [dim for dim, size in enumerate(self._tensor.shape) if size == 0] if self._without else []
        if len(empty) != 1:
            return super().make()
        dim = empty[0]
        one = F.pad(self._tensor, [0, 0] * (self._tensor.dim() - dim - 1) + [0, 1])
        args, kwargs = (one, *self.args[1:]), {name: value for name, value in self.kwargs.items() if name != "input"}
        return pytree.tree_map(lambda result: result.narrow(dim, 0, 0), self.func(*args, **kwargs))

    def given(self) -> dict[int, tuple[Any, ...]]:
        """One channel, which it needs, where it has none."""
        return {0: (1,)} if 0 in self._tensor.shape and not self._without else {}

    def with_sizes(self, rows: Rows) -> SpatialCall:
        """The same call, which may be given no channels."""
        del rows
        return SpatialCall(self.func, self.args, self.kwargs, without=True)

    @classmethod
    def rows(cls, cut: Cut, node: Node, item: int) -> Rows:
        """That there are no channels, where a dimension of the result is closed."""
        gates = cut.gates(node)
        first = gates[0] if gates and isinstance(gates[0], (list, tuple)) else gates
        return ((0, 0),) if any(g is not None and cut.kept.count(g) == 0 for g in first) else ()


@Operation(" ".join([*_POOLS, *_UPSAMPLES, *_OTHERS]), call=SpatialCall)
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


@Operation("max_unpool2d max_unpool3d")
def unpooled(op: Op) -> Labels:
    """Pooled values go back to their places, channel by channel; the places may come from another layer."""
    labels, places = op.labels(op.arg("self")), op.labels(op.arg("indices"))
    n_space = int(op.name[-2])
    pin_space(op, [*labels[-n_space:], *places[-n_space:]])
    both = zip(labels[:-n_space], places[:-n_space], strict=True)
    outer = [None if a is None and b is None else op.tracker.tie(a, b) for a, b in both]
    return [*outer, *([None] * n_space)]


@Operation("grid_sampler")
def grid_sampler(op: Op) -> Labels:
    """Channels are sampled at positions in space that a tensor gives, the same positions for all of them."""
    labels, grid = op.labels(op.arg("input")), op.labels(op.arg("grid"))
    pin_space(op, [labels[0], *labels[2:], *grid])
    return [None, labels[1], *([None] * (len(labels) - 2))]


def pin_space(op: Op, labels: Labels) -> None:
    """Pin the dimensions along which an op mixes positions."""
    for ids in labels:
        op.tracker.pin(ids, f"{op.name} mixes along it")


@Operation("unfold")
def windows(op: Op) -> Labels:
    """Tensor.unfold: windows along one dimension; positions inside the window become a new dimension at the end."""
    labels = op.labels(op.arg("self"))
    if not labels:
        raise NoRuleError  # a single number
    dim = op.arg("dimension") % len(labels)
    op.tracker.pin(labels[dim], "windows are cut along it")
    labels[dim] = None
    return [*labels, None]


@Operation("im2col", call=SpatialCall)
def patches(op: Op) -> Labels:
    """F.unfold, `(*, C, H, W)` to `(*, C * positions, L)`: a channel lives or dies with all positions of the patch."""
    labels = op.labels(op.arg("self"))
    pin_space(op, labels[-2:])
    return [*labels[:-3], _repeated(labels[-3], math.prod(op.arg("kernel_size"))), None]


@Operation("col2im")
def sum_of_patches(op: Op) -> Labels:
    """F.fold, `(*, C * positions, L)` to `(*, C, H, W)`: all positions of a channel live or die together."""
    labels = op.labels(op.arg("self"))
    pin_space(op, labels[-1:])
    return [*labels[:-2], _merged(op, labels[-2], math.prod(op.arg("kernel_size"))), None, None]


@Operation("pixel_shuffle")
def pixel_shuffle(op: Op) -> Labels:
    """`(*, C * r * r, H, W)` to `(*, C, H * r, W * r)`: the r * r channels that become one live or die together."""
    labels = op.labels(op.arg("self"))
    pin_space(op, labels[-2:])
    return [*labels[:-3], _merged(op, labels[-3], op.arg("upscale_factor") ** 2), None, None]


@Operation("pixel_unshuffle")
def pixel_unshuffle(op: Op) -> Labels:
    """`(*, C, H * r, W * r)` to `(*, C * r * r, H, W)`: a channel lives or dies with the r * r that it becomes."""
    labels = op.labels(op.arg("self"))
    pin_space(op, labels[-2:])
    return [*labels[:-3], _repeated(labels[-3], op.arg("downscale_factor") ** 2), None, None]


@Operation("channel_shuffle native_channel_shuffle")
def channel_shuffle(op: Op) -> Labels:
    """Channels of `groups` groups are interleaved; each group loses the same ones, so that the groups stay equally long."""
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


_ONE = ["fft_fft", "fft_ifft", "fft_rfft", "fft_irfft", "fft_hfft", "fft_ihfft"]
_SEVERAL = [f"fft_{inverse}{real}fft{dims}" for dims in ("2", "n") for real in ("", "r") for inverse in ("", "i")]


@Operation(" ".join([*_ONE, *_SEVERAL, "fft_fftshift", "fft_ifftshift"]))
def fourier(op: Op) -> Labels:
    """Every output along the transformed dimensions depends on all inputs along them; the other dimensions pass."""
    labels = op.labels(op.arg("self"))
    dims = op.arg("dim")
    if dims is None:
        sizes = op.arg("s") if op.name in _SEVERAL else None
        dims = range(-len(sizes), 0) if sizes else range(len(labels))
    for d in [dims] if isinstance(dims, int) else dims:
        op.tracker.pin(labels[d], f"{op.name} mixes along it")
        labels[d] = None
    return labels
