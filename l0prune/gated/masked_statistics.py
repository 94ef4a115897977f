"""Means, variances, extremes and norms of vectors over the open units only."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from l0prune.errors import TraceError
from l0prune.ops.norm_calls import VECTOR_NORMS

__all__ = ["HALF", "masked_statistic", "statistic_of_open"]

Mask = Tensor
HALF = (torch.float16, torch.bfloat16)


def statistic_of_open(func: Callable[..., Any], kind: str, mask: Mask, *args: Any, **kwargs: Any) -> Any:
    """What a call of `func` gives over the open units.

    Args:
        func: One of `l0prune.ops.norm_calls.STATISTICS`.
        kind: Its kind there.
        mask: True for open and False for closed units, shape `(C,)`.
        args: Its positional arguments.
        kwargs: Its keyword arguments.

    Raises:
        TraceError: it does not reduce exactly one dimension of length C.
    """
    if kind in VECTOR_NORMS:
        return _norm_of_open(func, mask, *args, **kwargs)
    return _statistic_call(kind, mask, *args, **kwargs)


def masked_statistic(
    kind: str, x: Tensor, mask: Mask, dims: Sequence[int], *, keepdim: bool = False, correction: float = 1
) -> Tensor:
    """Mean, sum, variance, standard deviation or an extreme over the open units.

    Args:
        kind: "mean", "sum", "var", "std", "amax" or "amin".
        x: Any shape, floating-point.
        mask: True for open and False for closed units, shape `(C,)`.
        dims: What to reduce; exactly one of these dimensions has length C.
        keepdim: Leave reduced dimensions with length one.
        correction: Subtracted from the number of elements a variance is divided by.

    Returns:
        The statistic; closed units count neither in the sum nor in the number of elements. Extremes of none are zero.
    """
    dims = [d % x.dim() for d in dims]
    shape = _shape_along(x, mask, dims, kind)
    closed = ~mask.view(shape)
    if kind in ("amax", "amin"):
        extreme = torch.amax if kind == "amax" else torch.amin
        limits = torch.finfo(x.dtype)
        unseen = x.masked_fill(closed, limits.min if kind == "amax" else limits.max)
        return extreme(unseen, dims, keepdim).where(mask.any(), 0)
    opened = x.masked_fill(closed, 0)
    if kind == "sum":
        return opened.sum(dims, keepdim=keepdim)
    others = math.prod(x.shape[d] for d in dims if shape[d] == 1)
    count = mask.sum().clamp_min(1) * others
    mean = opened.sum(dims, keepdim=True) / count
    if kind == "mean":
        return mean if keepdim else mean.squeeze(dims)
    square = (x - mean).masked_fill(closed, 0).square().sum(dims, keepdim=keepdim)
    variance = square / (count - correction).clamp_min(0)
    return variance if kind == "var" else variance.sqrt()


def _norm_of_open(func: Callable[..., Any], mask: Mask, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """The norm of vectors, or vectors over their norm, as if closed units were zero: they add nothing to a norm."""
    given: Any = kwargs.get("dim", args[1] if len(args) > 1 else 1)
    dims = [given] if isinstance(given, int) else list(given)
    closed = ~mask.view(_shape_along(x, mask, dims, "norm"))
    return func(x.masked_fill(closed, 0), *args, **kwargs)


def _shape_along(x: Tensor, mask: Mask, dims: Sequence[int], kind: str) -> list[int]:
    """The shape in which a mask lies along the one of these dimensions that is as long."""
    along = [d % x.dim() for d in dims if x.shape[d] == len(mask)]
    if len(along) != 1:
        raise TraceError(
            f"a {kind} of the forward pass runs over dimensions of lengths {[x.shape[d] for d in dims]}, the traced one over "
            f"{len(mask)} units: the model takes another path than when it was traced; trace it with inputs of the kind it is "
            "trained on"
        )
    shape = [1] * x.dim()
    shape[along[0]] = -1
    return shape


def _place_and_extreme(kind: str, x: Tensor, mask: Mask, dim: int, *, keepdim: bool) -> Any:
    """`max` or `min` along one dimension, with places as if closed units were there; of none, the extreme is zero."""
    limits = torch.finfo(x.dtype)
    shape = _shape_along(x, mask, [dim], kind)
    unseen = x.masked_fill(~mask.view(shape), limits.min if kind == "max" else limits.max)
    found = torch.max(unseen, dim, keepdim) if kind == "max" else torch.min(unseen, dim, keepdim)
    return type(found)((found.values.where(mask.any(), 0), found.indices))


def _statistic_call(kind: str, mask: Mask, *args: Any, **kwargs: Any) -> Any:
    """Read the arguments of `mean(x, dim, keepdim)`, `var(x, dim, unbiased, keepdim)` and their relatives."""
    names = ("input", "dim", "unbiased", "keepdim") if kind in ("var", "std") else ("input", "dim", "keepdim")
    options = {**dict(zip(names, args, strict=False)), **kwargs}
    x = options["input"] if "input" in options else options["self"]
    given: Any = options.get("dim", options.get("axis"))
    dims = [given] if isinstance(given, int) else list(given)
    if kind in ("max", "min"):
        return _place_and_extreme(kind, x, mask, given, keepdim=bool(options.get("keepdim", False)))
    dtype = options.get("dtype") or x.dtype
    correction = options.get("correction", None if options.get("unbiased", True) else 0)
    out = masked_statistic(
        kind,
        x.float() if dtype in HALF else x.to(dtype),
        mask,
        dims,
        keepdim=bool(options.get("keepdim", options.get("keepdims", False))),
        correction=1 if correction is None else correction,
    )
    return out.to(dtype)
