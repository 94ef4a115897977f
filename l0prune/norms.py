"""Normalisation over the open units only, without touching the model: calls are intercepted during the forward pass.

A LayerNorm over a gated dimension takes its mean and variance over the units that are open; that is what the smaller
LayerNorm of the compact model computes. Sites are told apart by the order of their calls, checked by their width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from l0prune.errors import TraceError

__all__ = ["MaskedNorms", "masked_group_norm", "masked_layer_norm", "masked_rms_norm"]

Mask = Tensor

_KIND_OF: dict[Callable[..., Any], str] = {
    F.layer_norm: "layer_norm",
    torch.layer_norm: "layer_norm",
    F.group_norm: "group_norm",
    torch.group_norm: "group_norm",
    F.rms_norm: "rms_norm",
    torch.rms_norm: "rms_norm",
}


def masked_layer_norm(x: Tensor, mask: Mask, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """LayerNorm over the last dimension with statistics over the open units.

    Args:
        x: Shape `(..., C)`.
        mask: 1 for open units and 0 for closed ones, shape `(C,)`, dtype of `x`.
        weight: Shape `(C,)`, or None.
        bias: Shape `(C,)`, or None.
        eps: Added to the variance, > 0.

    Returns:
        Shape `(..., C)`; closed units hold the bias.
    """
    count = mask.sum().clamp_min(1)
    centred = (x - (x * mask).sum(-1, keepdim=True) / count) * mask
    out = centred * torch.rsqrt(centred.square().sum(-1, keepdim=True) / count + eps)
    if weight is not None:
        out = out * weight
    return out if bias is None else out + bias


def masked_rms_norm(x: Tensor, mask: Mask, weight: Tensor | None, eps: float | None) -> Tensor:
    """RMSNorm over the last dimension with the mean square over the open units.

    Args:
        x: Shape `(..., C)`.
        mask: 1 for open and 0 for closed units, shape `(C,)`, dtype of `x`.
        weight: Shape `(C,)`, or None.
        eps: Added to the mean square; None is the machine epsilon of `x`, as in torch.

    Returns:
        Shape `(..., C)`; closed units are zero.
    """
    opened = x * mask
    mean_square = opened.square().sum(-1, keepdim=True) / mask.sum().clamp_min(1)
    out = opened * torch.rsqrt(mean_square + (torch.finfo(x.dtype).eps if eps is None else eps))
    return out if weight is None else out * weight


def masked_group_norm(x: Tensor, mask: Mask, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """One-group GroupNorm with statistics over the open channels.

    Args:
        x: Shape `(N, C, *)`.
        mask: 1 for open and 0 for closed channels, shape `(C,)`, dtype of `x`.
        weight: Shape `(C,)`, or None.
        bias: Shape `(C,)`, or None.
        eps: Added to the variance, > 0.

    Returns:
        Shape `(N, C, *)`; closed channels hold the bias.
    """
    per_channel = (1, -1, *([1] * (x.dim() - 2)))
    dims = tuple(range(1, x.dim()))
    mask = mask.view(per_channel)
    count = (mask.sum() * (x[0, 0].numel())).clamp_min(1)
    centred = (x - (x * mask).sum(dims, keepdim=True) / count) * mask
    out = centred * torch.rsqrt(centred.square().sum(dims, keepdim=True) / count + eps)
    if weight is not None:
        out = out * weight.view(per_channel)
    return out if bias is None else out + bias.view(per_channel)


class MaskedNorms(TorchFunctionMode):
    """Inside this block, the normalisations listed in `masks` use masked statistics.

    Args:
        masks: (kind, order of the call among its kind) -> mask over the normalised units, bool, shape `(C,)`.

    Raises:
        TraceError: a call normalises another width than the traced one: the forward pass took another path.
    """

    def __init__(self, masks: Mapping[tuple[str, int], Tensor]) -> None:
        super().__init__()
        self._masks = masks
        self._calls: dict[str, int] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Count the calls of each kind and replace the listed ones."""
        kwargs = kwargs or {}
        kind = _KIND_OF.get(func)
        if kind is None:
            return func(*args, **kwargs)
        order = self._calls.get(kind, 0)
        self._calls[kind] = order + 1
        mask = self._masks.get((kind, order))
        if mask is None:
            return func(*args, **kwargs)
        return _masked_call(kind, order, mask, *args, **kwargs)


def _masked_call(
    kind: str,
    order: int,
    mask: Tensor,
    input: Tensor,  # noqa: A002 - the name torch gives it
    shape: Any = None,
    weight: Tensor | None = None,
    bias: Any = None,
    eps: float | None = None,
    **options: Any,
) -> Tensor:
    width = input.shape[1] if kind == "group_norm" else input.shape[-1]
    if width != len(mask):
        raise TraceError(
            f"{kind} number {order} of the forward pass normalises {width} units, the traced one {len(mask)}: the model "
            "takes another path than when it was traced; trace it with inputs of the kind it is trained on"
        )
    weights = mask.to(input.dtype)
    if kind == "rms_norm":
        # rms_norm(input, normalized_shape, weight, eps): the fourth positional argument is eps.
        return masked_rms_norm(input, weights, weight, bias if eps is None else eps)
    if kind == "group_norm":
        return masked_group_norm(input, weights, weight, bias, 1e-5 if eps is None else eps)
    return masked_layer_norm(input, weights, weight, bias, 1e-5 if eps is None else eps)
