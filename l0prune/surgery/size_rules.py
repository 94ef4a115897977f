"""How the size of a result follows from that of an argument: as seen in calls at several sizes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

__all__ = ["SizeRule"]

_MOST = 64
"""Strides and factors that are looked for."""


class SizeRule(NamedTuple):
    """A size n becomes `(n * factor + offset) // stride`: of layers with windows, of those that enlarge, and of a size in code.

    Attributes:
        factor: By what it is multiplied; 0 where the result has one size whatever the argument has.
        offset: What is added before the division.
        stride: By what it is divided, rounded down.
    """

    factor: int = 1
    offset: int = 0
    stride: int = 1

    def __call__(self, size: int) -> int:
        """The size of the result."""
        return (size * self.factor + self.offset) // self.stride

    @staticmethod
    def of(sizes: Iterable[tuple[int, int]]) -> SizeRule | None:
        """The simplest rule for sizes of arguments and results; None if there is none.

        The same size comes before a part of it, a multiple of it, one size for all, and those of windows without padding.
        """
        seen = set(sizes)
        return next((rule for rule in _candidates(seen) if all(rule(n) == m for n, m in seen)), None)


def _candidates(seen: set[tuple[int, int]]) -> Iterator[SizeRule]:
    n, m = max(seen)
    yield SizeRule()
    if m and 1 < round(n / m) <= _MOST:
        stride = round(n / m)
        yield SizeRule(1, stride - 1, stride)
        yield SizeRule(1, 0, stride)
    if n:
        yield SizeRule(m // n)
    if len({result for _, result in seen}) == 1:
        yield SizeRule(0, m)
        return
    for scale in range(1, _MOST + 1):
        for factor, stride in dict.fromkeys(((1, scale), (scale, 1))):
            offset = min(result * stride + stride - 1 - size * factor for size, result in seen)
            if all(result * stride - size * factor <= offset for size, result in seen):
                yield SizeRule(factor, offset, stride)
