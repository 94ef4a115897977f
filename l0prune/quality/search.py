"""Which budget to try next, so that few runs find the cheapest network that keeps a quality."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from l0prune.quality.bound import Quality

__all__ = ["Search", "Try", "cheapest_kept", "next_cheaper"]

FIRST = 0.5
"""Share of the dense cost that is tried first."""
FARTHEST = 3.0
"""Factor below the cheapest network so far, beyond which nothing is concluded from it."""
MARGIN = 0.15
"""Share of the (logarithmic) distance between two networks within which the next one does not come close to either."""
NARROW = 1.04
"""Ratio of the costs of a network that keeps the quality and one that does not, at which the search ends."""


@dataclass(frozen=True)
class Try:
    """A network that was tried.

    Attributes:
        keep: Share of the dense cost that it was allowed.
        score: Of the network, on the data held out.
    """

    keep: float
    score: float


@dataclass(frozen=True)
class Search:
    """Looks for the least share of the dense cost with which a quality is kept.

    What a network loses is taken to grow with the square of the logarithm of what it saves: its root is a line through the
    dense network, and between two networks that were tried it is interpolated. Scores are noisy, so that roots which fall
    where they should rise are averaged first.

    Args:
        quality: What has to be kept.
        dense: Score of the dense network, which keeps it.
        least: Smallest share that closing gates can reach.
        error: Standard error of a score; None if it is not known. Scores closer than half of it tell nothing apart.
    """

    quality: Quality
    dense: float
    least: float
    error: float | None = None

    def next_keep(self, tries: Sequence[Try]) -> float | None:
        """The share to try next, with three digits; None where nothing is left to be found.

        Args:
            tries: In any order.
        """
        if not tries:
            return self._rounded(FIRST if self.least < FIRST else math.sqrt(self.least))
        best = cheapest_kept(self.quality, tries)
        high = 1.0 if best is None else best.keep
        below = next_cheaper(tries, best)
        if below is None:
            low, margin = max(self.least, high / FARTHEST), 0.0
        elif high / below.keep < NARROW or (best is not None and self._alike(best, below)):
            return None
        else:
            low, margin = below.keep, MARGIN
        place = self._crossing(tries)
        width = math.log(high / low)
        place = min(max(place, math.log(low) + margin * width), math.log(high) - MARGIN * width)
        keep = self._rounded(math.exp(place))
        known = any(math.isclose(keep, tried.keep) for tried in tries)
        return None if known or not (low <= keep < high) else keep

    def _alike(self, one: Try, other: Try) -> bool:
        return self.error is not None and abs(one.score - other.score) < self.error / 2

    def _rounded(self, keep: float) -> float:
        """Three digits; up, where fewer would be out of reach."""
        keep = float(f"{keep:.3g}")
        return keep if keep >= self.least else float(f"{self.least * 1.01:.3g}")

    def _crossing(self, tries: Sequence[Try]) -> float:
        """Logarithm of the share at which the quality is expected to be just kept."""
        ordered = sorted(tries, key=lambda tried: -tried.keep)
        saved = [0.0, *(-math.log(tried.keep) for tried in ordered)]
        roots = rising([0.0, *(self._root(tried.score) for tried in ordered)])
        wanted = self._root(self.quality.target)
        for (x0, y0), (x1, y1) in itertools.pairwise(zip(saved, roots, strict=True)):
            if y0 <= wanted < y1:
                return -(x0 + (x1 - x0) * (wanted - y0) / (y1 - y0)) if math.isfinite(y1) else -(x0 + x1) / 2
        last = roots[-1]
        return -saved[-1] * wanted / last if last > 0 else -math.inf

    def _root(self, score: float) -> float:
        return math.sqrt(max(0.0, self.quality.lost(score, dense=self.dense)))


def cheapest_kept(quality: Quality, tries: Sequence[Try]) -> Try | None:
    """Of the networks that keep the quality the cheapest; None if none does."""
    return min((tried for tried in tries if quality.kept_by(tried.score)), key=lambda tried: tried.keep, default=None)


def next_cheaper(tries: Sequence[Try], best: Try | None) -> Try | None:
    """Of the networks cheaper than `best` the dearest; without `best` the dearest of all."""
    cheaper = [tried for tried in tries if best is None or tried.keep < best.keep]
    return max(cheaper, key=lambda tried: tried.keep, default=None)


def rising(values: Sequence[float]) -> list[float]:
    """The closest values, in squares, that nowhere fall: neighbours that do are replaced by their mean."""
    pools: list[tuple[float, int]] = []
    for value in values:
        pools.append((value, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (mean, n), (other, m) = pools[-2:]
            pools[-2:] = [((mean * n + other * m) / (n + m), n + m)]
    return [mean for mean, n in pools for _ in range(n)]
