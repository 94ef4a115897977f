"""Which normalisations a forward pass calls: known by their weight tensor, or by the order of their calls if they have none.

Means, sums and variances along a dimension, which hand-written normalisations are made of, and extremes, which attention to
places is made of, are known by their order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["KIND_OF", "STATISTICS", "VECTOR_NORMS", "NormCalls", "RecordNorms", "norm_weight", "statistic_kind"]

aten = torch.ops.aten

KIND_OF: dict[Callable[..., Any], str] = {
    F.layer_norm: "layer_norm",
    torch.layer_norm: "layer_norm",
    F.group_norm: "group_norm",
    torch.group_norm: "group_norm",
    F.rms_norm: "rms_norm",
    torch.rms_norm: "rms_norm",
    aten.layer_norm.default: "layer_norm",
    aten.group_norm.default: "group_norm",
    aten.rms_norm.default: "rms_norm",
}
"""Functions that normalise over a dimension of units, and the op each becomes, or is already, in an exported graph."""

STATISTICS: dict[Callable[..., Any], str] = {
    Tensor.mean: "mean",
    torch.mean: "mean",
    Tensor.sum: "sum",
    torch.sum: "sum",
    Tensor.var: "var",
    torch.var: "var",
    Tensor.std: "std",
    torch.std: "std",
    Tensor.amax: "amax",
    torch.amax: "amax",
    Tensor.amin: "amin",
    torch.amin: "amin",
    Tensor.max: "max",
    torch.max: "max",
    Tensor.min: "min",
    torch.min: "min",
    F.normalize: "linalg_vector_norm",
    torch.norm: "linalg_vector_norm",
    Tensor.norm: "linalg_vector_norm",
    torch.linalg.vector_norm: "linalg_vector_norm",
    torch.linalg.norm: "linalg_norm",
    aten.mean.dim: "mean",
    aten.sum.dim_IntList: "sum",
    aten.var.dim: "var",
    aten.var.correction: "var",
    aten.std.dim: "std",
    aten.std.correction: "std",
    aten.amax.default: "amax",
    aten.amin.default: "amin",
    aten.max.dim: "max",
    aten.min.dim: "min",
    aten.linalg_vector_norm.default: "linalg_vector_norm",
    aten.linalg_norm.default: "linalg_norm",
}
"""Functions that reduce over a dimension of units, and the op each becomes, or is already, in an exported graph."""

VECTOR_NORMS = frozenset({"linalg_vector_norm", "linalg_norm"})
"""Kinds whose second argument is the order of a norm."""


def statistic_kind(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """The kind of a call that takes statistics along given dimensions; None for one over everything, and for other functions.

    A batch norm without running statistics is one: it is what standardised weights are made with. So is a weight norm.
    """
    if func is F.batch_norm:
        given = dict(zip(("input", "running_mean", "running_var"), args, strict=False)) | kwargs
        return "batch_norm" if given.get("running_mean") is None and given.get("running_var") is None else None
    if func is torch._weight_norm:
        return "weight_norm"
    kind = STATISTICS.get(func)
    if kind is None:
        return None
    place = 2 if kind in VECTOR_NORMS else 1
    default = 1 if func is F.normalize else None
    dims = kwargs.get("dim", kwargs.get("axis", args[place] if len(args) > place else default))
    matrix = kind in VECTOR_NORMS and "nuc" in (kwargs.get("p"), *args[1:2])
    return None if matrix or dims is None or isinstance(dims, bool | Tensor) or dims in ((), []) else kind


@dataclass(frozen=True)
class NormCalls:
    """The normalisations and statistics of one forward pass.

    Attributes:
        weights: Names of the parameters or buffers that serve as their weights.
        n_others: Kind -> number of calls without a weight (statistics have none), or with one that was computed.
        observed: Whether the model ran; False where it has no numbers (meta device) and reads some.
    """

    weights: frozenset[str] = frozenset()
    n_others: dict[str, int] = field(default_factory=dict)
    observed: bool = True


def norm_weight(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The weight of a call of any of the functions in `KIND_OF`: their third argument."""
    weight = kwargs.get("weight", args[2] if len(args) > 2 else None)
    return weight if isinstance(weight, Tensor) else None


class RecordNorms(TorchFunctionMode):
    """Inside this block, calls of normalisations are written down."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[str, Tensor | None]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Write the call down and make it."""
        kwargs = kwargs or {}
        if func in KIND_OF:
            self._calls.append((KIND_OF[func], norm_weight(args, kwargs)))
        elif (kind := statistic_kind(func, args, kwargs)) is not None:
            self._calls.append((kind, None))
        return func(*args, **kwargs)

    def calls(self, model: nn.Module) -> NormCalls:
        """What was called, with the names that `model` has for the weights."""
        names = {id(tensor): name for name, tensor in [*model.named_buffers(), *model.named_parameters()]}
        found = [(kind, names.get(id(weight))) for kind, weight in self._calls]
        return NormCalls(
            frozenset(name for _, name in found if name is not None),
            dict(Counter(kind for kind, name in found if name is None)),
        )
