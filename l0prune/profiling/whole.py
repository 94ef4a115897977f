"""The correction of a sum of layers by what whole networks took."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["whole_curve"]

FloatArray = npt.NDArray[np.float64]

_KNOTS = 9
_NEAR = 0.3
_MOST = 0.5
"""Largest correction, of the logarithm."""


def whole_curve(sums: FloatArray, measured: FloatArray) -> tuple[tuple[float, float], ...]:
    """Sums of layers, and what networks of them take: medians over networks of about that size.

    A layer takes less time in a small network, whose weights stay in the processor's cache from one run to the next.

    Args:
        sums: Of the layers by their tables, microseconds, shape `(n,)`.
        measured: What each network took.

    Returns:
        Points, ascending in both.
    """
    size, ratio = np.log(sums), np.clip(np.log(measured / sums), -_MOST, _MOST)
    order = np.argsort(ratio)
    knots = np.unique(np.linspace(size.min(), size.max(), _KNOTS))
    points: list[tuple[float, float]] = []
    for knot in knots:
        weight = np.cumsum(np.exp(-((size[order] - knot) ** 2) / (2 * _NEAR**2)))
        middle = ratio[order[np.searchsorted(weight, weight[-1] / 2)]]
        total, at = float(np.exp(knot + middle)), float(f"{np.exp(knot):.6g}")
        if not points or at > points[-1][0]:
            points.append((at, float(f"{max(total, points[-1][1] if points else 0.0):.6g}")))
    return tuple(points)
