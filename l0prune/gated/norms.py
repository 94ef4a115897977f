"""Normalisation over the open units only, without touching the model: calls are intercepted during the forward pass.

A LayerNorm over a gated dimension takes its mean and variance over the units that are open; that is what the smaller
LayerNorm of the compact model computes. Hand-written norms are made of means and variances: these are taken over the open
units too. Calls are known by their weight; those without one by their order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from l0prune.errors import TraceError
from l0prune.gated.masked_statistics import HALF, statistic_of_open
from l0prune.ops.norm_calls import KIND_OF, norm_weight, statistic_kind
from l0prune.recomputation import CountedCalls

__all__ = ["MaskedNorms", "masked_group_norm", "masked_layer_norm", "masked_rms_norm"]

Mask = Tensor


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


class MaskedNorms(CountedCalls):
    """Inside this block, the normalisations that have a mask use masked statistics.

    Args:
        by_weight: id of a norm's weight -> mask over the normalised units, bool, shape `(C,)`; None for a norm without.
        by_order: (kind, position among the calls of its kind whose weight is not in `by_weight`) -> mask.
        n_others: Kind -> number of those calls in the traced forward pass.

    Raises:
        TraceError: the forward pass took another path than the traced one: a call normalises another width, or the number
            of calls that are known by their order only is another.
    """

    def __init__(
        self,
        by_weight: Mapping[int, Mask | None],
        by_order: Mapping[tuple[str, int], Mask],
        n_others: Mapping[str, int],
    ) -> None:
        super().__init__()
        self._by_weight = by_weight
        self._by_order = by_order
        self._n_others = n_others

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Replace the calls that have a mask."""
        kwargs = kwargs or {}
        if self.is_again and not torch.is_grad_enabled():
            return func(*args, **kwargs)
        kind = KIND_OF.get(func)
        statistic = statistic_kind(func, args, kwargs) if kind is None else None
        if statistic is not None:
            mask = self._mask(statistic, None)
            if mask is None:
                return func(*args, **kwargs)
            masked = _OF_WEIGHTS.get(statistic) or partial(statistic_of_open, func, statistic)
            return masked(mask, *args, **kwargs)
        mask = None if kind is None else self._mask(kind, norm_weight(args, kwargs))
        if kind is None or mask is None:
            return func(*args, **kwargs)
        return _masked_call(kind, mask, *args, **kwargs)

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        """Leave the block; see that as many norms were called as were traced."""
        super().__exit__(kind, *rest)
        for name in {name for name, _ in self._by_order} if kind is None and not self.is_again else ():
            found, expected = self.calls.get(name, 0), self._n_others.get(name, 0)
            if found != expected:
                raise TraceError(
                    f"the forward pass calls {name} without a weight {found} times, the traced one {expected} times, so they "
                    "cannot be told apart; trace the model as it is trained, or pin these layers with ignore="
                )

    def _mask(self, kind: str, weight: Tensor | None) -> Mask | None:
        if weight is not None and id(weight) in self._by_weight:
            return self._by_weight[id(weight)]
        order = self.calls.get(kind, 0)
        self.calls[kind] = order + 1
        return self._by_order.get((kind, order))


def _masked_call(
    kind: str,
    mask: Mask,
    input: Tensor,  # noqa: A002 - the name torch gives it
    shape: Any = None,
    weight: Tensor | None = None,
    bias: Any = None,
    eps: float | None = None,
    *_: Any,
    **options: Any,
) -> Tensor:
    width = input.shape[1] if kind == "group_norm" else input.shape[-1]
    if width != len(mask):
        raise TraceError(
            f"a {kind} of the forward pass normalises {width} units, the traced one {len(mask)}: the model takes another "
            "path than when it was traced; trace it with inputs of the kind it is trained on"
        )
    # Statistics of half precision numbers are taken in single precision, as torch's own norms do.
    x = input.float() if input.dtype in HALF else input
    weights = mask.to(x.dtype)
    if kind == "rms_norm":
        # rms_norm(input, normalized_shape, weight, eps): the fourth positional argument is eps.
        eps = bias if eps is None else eps
        out = masked_rms_norm(x, weights, weight, torch.finfo(input.dtype).eps if eps is None else eps)
    elif kind == "group_norm":
        out = masked_group_norm(x, weights, weight, bias, 1e-5 if eps is None else eps)
    else:
        out = masked_layer_norm(x, weights, weight, bias, 1e-5 if eps is None else eps)
    return out if _norms_stay_single(input) else out.to(input.dtype)


def _standardised(
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
        raise TraceError(
            f"a batch norm of the forward pass standardises {tuple(input.shape)}, the traced one {len(mask)} units: the model "
            "takes another path than when it was traced; trace it with inputs of the kind it is trained on"
        )
    out = masked_layer_norm(input, mask.to(input.dtype), None, None, eps)
    if weight is not None:
        out = out * weight.view(1, -1, 1)
    return out if bias is None else out + bias.view(1, -1, 1)


def _weight_norm(mask: Mask, v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """`g v / |v|`, where closed units of `v` are zero already; zero where they all are."""
    if len(mask) not in v.shape:
        raise TraceError(
            f"a weight norm of the forward pass is over {tuple(v.shape)}, the traced one over {len(mask)} units: the model takes "
            "another path than when it was traced; trace it with inputs of the kind it is trained on"
        )
    norm = torch.norm_except_dim(v, 2, dim)
    return v * (g / norm.where(norm > 0, 1))


_OF_WEIGHTS: dict[str, Callable[..., Tensor]] = {"batch_norm": _standardised, "weight_norm": _weight_norm}
"""Statistics that a weight is made with when it is used."""


def _norms_stay_single(x: Tensor) -> bool:
    """Whether torch's own norm of this half precision tensor would return single precision: autocast on a GPU."""
    return x.dtype in HALF and x.device.type == "cuda" and torch.is_autocast_enabled("cuda")
