"""Roots of increasing functions, elementwise."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["find_root"]

_QUICK_STEPS, _SAFE_STEPS = 12, 200


def find_root(
    function: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]], start: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    """Where an increasing function crosses zero, elementwise.

    Halley's steps, kept within the bracket. They triple the correct digits, so the search ends with the step from a value
    below the rounding error to the power 0.4. Should they not converge, a bracketing search goes on from there.

    Args:
        function: x to (value, slope, curvature), each in the shape of x; values of order 1 where x is far off.
        start: First guess, within the bracket.
        low: Where the function is negative or zero.
        high: Where it is positive or zero.
    """
    x = start
    small = torch.finfo(x.dtype).eps ** 0.4
    for _ in range(_QUICK_STEPS):
        value, slope, curvature = function(x)
        step = value / slope
        bend = (1 - 0.5 * step * (curvature / slope)).clamp(0.4, 2.0)
        x = torch.minimum(torch.maximum(x - step / bend, low), high)
        if x.numel() == 0 or float(value.abs().max()) <= small:
            return x
    return _bracketed(function, x, low, high)


def _bracketed(
    function: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]], x: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    """Newton's steps, and halving the bracket where one would leave it."""
    close = torch.finfo(x.dtype).eps * 4
    for _ in range(_SAFE_STEPS):
        value, slope, _ = function(x)
        above = value > 0
        high, low = torch.where(above, x, high), torch.where(above, low, x)
        step = x - value / slope
        step = torch.where((step > low) & (step < high), step, (low + high) / 2)
        moved = (step - x).abs()
        x = step
        if bool((moved <= close * x.abs()).all()):
            break
    return x
