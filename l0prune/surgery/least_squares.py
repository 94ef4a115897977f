"""Least squares from sums over rows: weights that reproduce given outputs, held near those that there are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["RIDGES", "Affine", "Moments", "fitted"]

RIDGES = (1e-10, 1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Strengths that are tried, as shares of the mean square of the columns; the held-out rows choose."""


class Affine(NamedTuple):
    """A map of rows: `x^T weight + shift`.

    Attributes:
        weight: Shape `(columns, outputs)`, double precision.
        shift: Shape `(outputs,)`; None where nothing is added.
    """

    weight: Tensor
    shift: Tensor | None


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over rows of columns x and outputs y, in double precision: enough for any affine fit of y by x.

    Attributes:
        n: Number of rows.
        x: Sum of the columns, shape `(columns,)`.
        y: Sum of the outputs, shape `(outputs,)`.
        xx: Sum of x x^T, shape `(columns, columns)`.
        xy: Sum of x y^T, shape `(columns, outputs)`.
        yy: Sum of y^2, a scalar.
    """

    n: int
    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor

    @classmethod
    def of(cls, columns: Tensor, outputs: Tensor) -> Moments:
        """The sums over some rows: columns `(rows, columns)` and outputs `(rows, outputs)` of any precision."""
        x, y = columns.double(), outputs.double()
        return cls(len(x), x.sum(0), y.sum(0), x.T @ x, x.T @ y, y.square().sum())

    def __add__(self, other: Moments) -> Moments:
        """The sums over the rows of both."""
        return Moments(
            self.n + other.n,
            self.x + other.x,
            self.y + other.y,
            self.xx + other.xx,
            self.xy + other.xy,
            self.yy + other.yy,
        )

    def centred(self) -> Moments:
        """The same about the means of these rows: what a fit with a free shift sees."""
        n = max(1, self.n)
        return Moments(
            self.n,
            torch.zeros_like(self.x),
            torch.zeros_like(self.y),
            self.xx - torch.outer(self.x, self.x) / n,
            self.xy - torch.outer(self.x, self.y) / n,
            self.yy - self.y.square().sum() / n,
        )

    def best_shift(self, weight: Tensor) -> Tensor:
        """What has to be added to `x^T weight` so that the means agree, shape `(outputs,)`."""
        return (self.y - self.x @ weight) / max(1, self.n)

    def error(self, found: Affine) -> float:
        """Sum over rows and outputs of the square of what a map misses."""
        weight, shift = found
        missed = self.yy - 2 * (self.xy * weight).sum() + (weight * (self.xx @ weight)).sum()
        if shift is not None:
            missed = missed - 2 * (shift * (self.y - self.x @ weight)).sum() + self.n * shift.square().sum()
        return float(missed)


def fitted(train: Moments, held_out: Moments, start: Affine) -> Affine | None:
    """A map that predicts the outputs better than `start` does: ridge regression of what that leaves.

    The strength of the ridge, which draws the weights to those of `start` and not to zero, is the one that predicts the
    held-out rows best; with it, all rows are fitted. A shift is fitted with the weights, or alone, if there is one.

    Args:
        train: Rows to fit.
        held_out: Rows to judge by.
        start: What there is.

    Returns:
        A map of the same kind; None if `start` predicts the held-out rows no worse than all that were tried.
    """
    best, least = None, held_out.error(start)
    shifts = start.shift is not None
    for ridge in (*RIDGES, *((math.inf,) if shifts else ())):
        found = _solved(train, start, ridge)
        error = math.inf if found is None else held_out.error(found)
        if error < least:
            best, least = ridge, error
    return None if best is None else _solved(train + held_out, start, best)


def _solved(moments: Moments, start: Affine, ridge: float) -> Affine | None:
    """The minimum of |y - x^T w - b|^2 + n ridge mean(x^2) |w - start|^2; None where the columns leave it open.

    An infinite ridge leaves the weights as they are.
    """
    weight = start.weight
    if ridge < math.inf:
        about = moments if start.shift is None else moments.centred()
        left = about.xx + ridge * about.xx.diagonal().mean() * torch.eye(len(about.xx)).to(about.xx)
        factor, failed = torch.linalg.cholesky_ex(left)
        if int(failed):
            return None
        weight = weight + torch.cholesky_solve(about.xy - about.xx @ weight, factor)
        if not bool(weight.isfinite().all()):
            return None
    return Affine(weight, None if start.shift is None else moments.best_shift(weight))
