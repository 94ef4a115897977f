"""Tokens whose row of the embedding goes are given the row of the token that is most like them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["directions", "rows_worth_keeping", "stand_ins"]

Ids = npt.NDArray[np.int64]
_PARTS, _AT_ONCE = 100, 256
"""Rows are chosen a hundredth of the vocabulary at a time, at most so many."""
_BLOCK = 4096
_FIRST_RANKS = 100.0


def directions(weight: Tensor) -> Tensor:
    """Directions of the rows of an embedding (V, D) from their mean: what they have in common says nothing of a token."""
    rows = weight.detach().float()
    return F.normalize(rows - rows.mean(0), dim=1)


def rows_worth_keeping(
    toward: Tensor, counts: Mapping[int, int], needed: Collection[int], *, n: int | None, coverage: float = 1.0
) -> set[int]:
    """Rows that stay, so that as little as can be is lost where each of the others takes the nearest one.

    A token is worth how often the corpus has it, plus a share of what new texts will have that the corpus has not: as much as the
    tokens that occur in it once, spread over the vocabulary by rank, since tokenizers put the frequent tokens first. Those come
    first that are worth most, times the distance from the nearest row that stays already.

    Args:
        toward: From `directions`, (V, D).
        counts: Id -> how often the corpus has the token.
        needed: Ids that stay in any case.
        n: How many rows stay; None goes by the coverage.
        coverage: Share of the corpus's tokens that have rows of their own, in (0, 1].
    """
    size = len(toward)
    seen = torch.zeros(size)
    for number, count in counts.items():
        if number < size:
            seen[number] = count
    rank = 1.0 / (torch.arange(size, dtype=torch.float32) + _FIRST_RANKS)
    worth = seen + rank * (float((seen == 1).sum()) / float(rank.sum()))
    chosen = {number for number in needed if number < size}
    nearest = torch.full((size,), -1.0)
    fresh = sorted(chosen)
    while True:
        if fresh:
            nearest = torch.maximum(nearest, (toward @ toward[fresh].T).amax(1))
        covered = float(seen[sorted(chosen)].sum()) / max(float(seen.sum()), 1.0)
        left = size - len(chosen) if n is None else n - len(chosen)
        if left <= 0 or (n is None and covered >= coverage - 1e-9):
            return chosen
        gain = worth * (1.0 - nearest).clamp_min(1e-6)
        gain[sorted(chosen)] = -1.0
        if n is None:
            gain[seen == 0] = -1.0
        fresh = torch.topk(gain, min(_AT_ONCE, max(1, size // _PARTS), left)).indices.tolist()
        fresh = [number for number in fresh if gain[number] >= 0]
        if not fresh:
            return chosen
        chosen |= set(fresh)


def stand_ins(toward: Tensor, kept: Ids, *, apart: Collection[int]) -> dict[int, int]:
    """Id of each token without a row of its own -> the one whose row it takes.

    Args:
        toward: From `directions`, (V, D).
        kept: Ids that have rows.
        apart: Those whose rows nobody shares, such as special tokens.
    """
    shared = np.setdiff1d(kept, np.array(sorted(apart), np.int64))
    gone = np.setdiff1d(np.arange(len(toward)), kept)
    found: dict[int, int] = {}
    candidates = toward[torch.from_numpy(shared)]
    for start in range(0, len(gone), _BLOCK):
        part = gone[start : start + _BLOCK]
        best = (toward[torch.from_numpy(part)] @ candidates.T).argmax(1).numpy()
        found |= dict(zip(part.tolist(), shared[best].tolist(), strict=True))
    return found
