"""How far two networks that compute the same may be apart, by the numbers they compute with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["COARSE", "TOLERANCE", "WatchPrecision"]

TOLERANCE = {torch.float64: 1e-9}
"""Largest relative difference allowed between gated and compact outputs, by the coarsest dtype; `COARSE` for the others."""

COARSE = 1e-4


class WatchPrecision(TorchDispatchMode):
    """Inside this block it is seen whether anything is computed in less than double precision.

    Attributes:
        is_coarse: Whether some op gave such numbers, made of others.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_coarse = False

    @property
    def tolerance(self) -> float:
        """Largest relative difference allowed after what was seen."""
        return COARSE if self.is_coarse else TOLERANCE[torch.float64]

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Make the call, and look at what comes out of it."""
        result = func(*args, **(kwargs or {}))
        if not self.is_coarse and _any_floating(result, coarse=True):
            self.is_coarse = _any_floating((args, kwargs), coarse=False)
        return result


def _any_floating(values: Any, *, coarse: bool) -> bool:
    return any(
        isinstance(leaf, Tensor) and leaf.is_floating_point() and not (coarse and leaf.dtype == torch.float64)
        for leaf in pytree.tree_leaves(values)
    )
