"""Normalisations: per channel, over channels, over groups of channels.

A norm over a dimension of units takes its statistics over those that are open; that is what the smaller norm of the compact model
computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from l0prune.ops.contractions import places_that_zero
from l0prune.ops.node import NoRuleError, argument_of, node_shape, set_argument
from l0prune.ops.operation import InClosedBranch, Normalisation, Op, Operation, another_path
from l0prune.ops.sizes import Cut, Rewriter
from l0prune.ops.tracker import IdArray, Labels, NormUse, Places

__all__ = ["HALF", "masked_norm"]

aten = torch.ops.aten
Mask = Tensor
HALF = (torch.float16, torch.bfloat16)


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


def masked_norm(
    dim: int,
    x: Tensor,
    mask: Mask,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float | None,
    *,
    centred: bool = True,
) -> Tensor:
    """LayerNorm, RMSNorm or GroupNorm of one group with statistics over the open units.

    Args:
        dim: Dimension of the units: -1, or 1 where statistics are taken over all that follow it as well.
        x: C units along `dim`.
        mask: 1 for open units and 0 for closed ones, shape `(C,)`, dtype of `x`.
        weight: Shape `(C,)`, or None.
        bias: Shape `(C,)`, or None.
        eps: Added to the variance; None is the machine epsilon of `x`.
        centred: Whether the mean is taken away.

    Returns:
        The shape of `x`; closed units hold the bias.
    """
    dims = tuple(range(dim % x.dim(), x.dim()))
    lie = (-1, *([1] * (len(dims) - 1)))
    mask = mask.view(lie)
    count = (mask.sum() * math.prod(x.shape[d] for d in dims[1:])).clamp_min(1)
    out = x * mask
    if centred:
        out = (x - out.sum(dims, keepdim=True) / count) * mask
    variance = out.square().sum(dims, keepdim=True) / count
    out = out * torch.rsqrt(variance + (torch.finfo(x.dtype).eps if eps is None else eps))
    if weight is not None:
        out = out * weight.view(lie)
    return out if bias is None else out + bias.view(lie)


def _over_open(
    kind: str,
    func: Callable[..., Any],
    mask: Mask,
    input: Tensor,  # noqa: A002 - the name torch gives it
    shape: Any = None,
    weight: Tensor | None = None,
    bias: Any = None,
    eps: float | None = None,
    *_: Any,
    **options: Any,
) -> Tensor:
    dim = 1 if kind == "group_norm" else -1
    if input.shape[dim] != len(mask):
        raise another_path(
            f"a {kind} of the forward pass normalises {input.shape[dim]} units, the traced one {len(mask)}"
        )
    # Statistics of half precision numbers are taken in single precision, as torch's own norms do.
    x = input.float() if input.dtype in HALF else input
    weights = mask.to(x.dtype)
    if kind == "rms_norm":
        # rms_norm(input, normalized_shape, weight, eps): the fourth positional argument is eps.
        eps = bias if eps is None else eps
        eps = torch.finfo(input.dtype).eps if eps is None else eps
        out = masked_norm(dim, x, weights, weight, None, eps, centred=False)
    else:
        out = masked_norm(dim, x, weights, weight, bias, 1e-5 if eps is None else eps)
    return out if _norms_stay_single(input) else out.to(input.dtype)


def _norms_stay_single(x: Tensor) -> bool:
    """Whether torch's own norm of this half precision tensor would return single precision: autocast on a GPU."""
    return x.dtype in HALF and x.device.type == "cuda" and torch.is_autocast_enabled("cuda")


def _widths(dim: int, cut: Cut, node: Node) -> dict[str, tuple[Any, Any]]:
    """The width of a norm along `dim`, under the names that modules have for it."""
    labels = cut.gates(node)
    if not labels or labels[dim] is None:
        return {}
    dense, compact = len(labels[dim]), cut.kept.count(labels[dim])
    return {
        "normalized_shape": ((dense,), (compact,)),
        **dict.fromkeys(("num_channels", "num_features"), (dense, compact)),
    }


def _narrower(rewriter: Rewriter, node: Node) -> None:
    gates = rewriter.gates(node)
    if gates and gates[-1] is not None:
        set_argument(node, "normalized_shape", [rewriter.kept.count(gates[-1])])


def _by_weight(kind: str, *functions: Any) -> Normalisation:
    return Normalisation(kind, functions, partial(_over_open, kind), by_weight=True)


def _standardised(
    func: Callable[..., Any],
    mask: Mask,
    input: Tensor,  # noqa: A002 - the name torch gives it
    running_mean: None = None,
    running_var: None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = True,
    momentum: float | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """A batch norm without running statistics over `(1, channels, units)`: each channel over its open units."""
    if input.shape[0] != 1 or input.dim() != 3 or input.shape[2] != len(mask):
        raise another_path(
            f"a batch norm of the forward pass standardises {tuple(input.shape)}, the traced one {len(mask)} units"
        )
    out = masked_norm(-1, input, mask.to(input.dtype), None, None, eps)
    if weight is not None:
        out = out * weight.view(1, -1, 1)
    return out if bias is None else out + bias.view(1, -1, 1)


def _is_without_running_statistics(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    given = dict(zip(("input", "running_mean", "running_var"), args, strict=False)) | dict(kwargs)
    return given.get("running_mean") is None and given.get("running_var") is None


def _standardised_zeros(op: Op, node: Node, dim: int) -> Places:
    """A weight as one sample of a batch norm without a shift: its statistics are taken over what is open."""
    x, _, shift, mean, variance = node.args[:5]
    plain = mean is None and variance is None and shift is None and node_shape(node)[0] == 1
    return places_that_zero(op, x, dim) if plain else None


@Operation("instance_norm", attributes=partial(_widths, 1), training="use_input_stats")
@Operation(
    "batch_norm",
    normalises=Normalisation("batch_norm", (F.batch_norm,), _standardised, counts=_is_without_running_statistics),
    training="training",
    zeros=_standardised_zeros,
    closed=InClosedBranch.PASSES_CONSTANTS,
)
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


@Operation(
    "layer_norm",
    rewrite=_narrower,
    sizes=Cut.changed,
    attributes=partial(_widths, -1),
    normalises=_by_weight("layer_norm", F.layer_norm, torch.layer_norm, aten.layer_norm.default),
    closed=InClosedBranch.PASSES_CONSTANTS,
)
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


@Operation(
    "rms_norm",
    rewrite=_narrower,
    sizes=Cut.changed,
    attributes=partial(_widths, -1),
    normalises=_by_weight("rms_norm", F.rms_norm, torch.rms_norm, aten.rms_norm.default),
    closed=InClosedBranch.PASSES_CONSTANTS,
)
def rms_norm(op: Op) -> Labels:
    """Root mean square over the last dimension, with masked statistics for gated units."""
    labels = op.labels(op.arg("input"))
    if len(op.arg("normalized_shape")) > 1:
        raise NoRuleError
    _tie_affine(op, labels[-1], "weight")
    _record(op, "rms_norm", labels[-1])
    return labels


def _fewer_groups(rewriter: Rewriter, node: Node) -> None:
    gates, groups = rewriter.gates(node), argument_of(node, "num_groups")
    if gates and gates[1] is not None and groups > 1:
        set_argument(node, "num_groups", rewriter.kept.count(gates[1]) // (len(gates[1]) // groups))


def _group_widths(cut: Cut, node: Node) -> dict[str, tuple[Any, Any]]:
    found, groups = _widths(1, cut, node), argument_of(node, "num_groups")
    if found and groups > 1:
        dense, compact = found["num_channels"]
        found["num_groups"] = (groups, compact * groups // dense)
    return found


@Operation(
    "group_norm",
    rewrite=_fewer_groups,
    sizes=Cut.changed,
    attributes=_group_widths,
    normalises=_by_weight("group_norm", F.group_norm, torch.group_norm, aten.group_norm.default),
)
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
