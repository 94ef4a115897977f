"""Normalisation over the open units only, without touching the model: calls are intercepted during the forward pass.

A LayerNorm over a gated dimension takes its mean and variance over the units that are open; that is what the smaller
LayerNorm of the compact model computes. Hand-written norms are made of means and variances: these are taken over the open
units too. Calls are known by their weight; those without one by their order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from l0prune.errors import TraceError
from l0prune.ops.operation import norm_called
from l0prune.recomputation import CountedCalls

__all__ = ["MaskedNorms"]

Mask = Tensor


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
        norm = norm_called(func, args, kwargs)
        mask = None if norm is None else self._mask(norm.kind, norm.weight_of(args, kwargs))
        return func(*args, **kwargs) if norm is None or mask is None else norm.masked(func, mask, *args, **kwargs)

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
