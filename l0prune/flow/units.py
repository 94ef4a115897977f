"""From ids and ties to units and gates: connected components, minus what is pinned; and what no gate can remove, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from l0prune.flow.follow import Followed
from l0prune.ops.tracker import NO_UNIT, IdArray, Labels, Tracker

__all__ = ["Units", "solve", "unreached_parameters"]

UNCONSUMED = "no parameter consumes it"
SOLE = "the only unit of a dimension that must not vanish"


@dataclass(frozen=True, eq=False)
class Units:
    """Which gate every id belongs to.

    Attributes:
        n_gates: Number of removable units.
        gate_of_id: Gate of each id, shape `(n_ids,)`, -1 where the unit cannot be gated.
        pinned: Reason -> number of units that cannot be gated for that reason (the first reason found).
        pinned_splits: Keys of ambiguous views all of whose units came out pinned.
        reasons: Every reason with the op that gave it.
        reason_of_id: Number of the reason each id is pinned for, shape `(n_ids,)`, -1 where it is not pinned.
    """

    n_gates: int
    gate_of_id: IdArray
    pinned: dict[str, int]
    pinned_splits: tuple[str, ...]
    reasons: tuple[str, ...]
    reason_of_id: IdArray

    def gates(self, ids: IdArray | None) -> IdArray | None:
        """Gate of every index of a dimension; None if none of them is gated."""
        if ids is None:
            return None
        gates = self.gate_of_id[ids]
        return gates if (gates >= 0).any() else None

    def label_gates(self, labels: Labels) -> tuple[IdArray | None, ...]:
        """Gates of every dimension of a tensor."""
        return tuple(self.gates(ids) for ids in labels)


def solve(followed: Followed) -> Units:
    """Tie, pin, and number the gates in order of first appearance."""
    tracker = followed.tracker
    unit = _components(tracker.n_ids, tracker.ties)
    n_units = int(unit.max()) + 1 if unit.size else 0
    pinned = np.zeros(n_units, dtype=bool)
    reasons: Counter[str] = Counter()
    why = np.full(n_units, -1, dtype=np.int64)
    reported = np.zeros(n_units, dtype=bool)
    reported[unit[_reported_ids(tracker)]] = True
    known: dict[str, int] = {}
    for ids, reason, op in tracker.pins:
        new = np.unique(unit[ids])
        new = new[~pinned[new]]
        pinned[new] = True
        reasons[reason] += int(reported[new].sum())
        why[new] = known.setdefault(f"{reason} ({op})" if op else reason, len(known))
    consumed = np.zeros(n_units, dtype=bool)
    for consumption in tracker.consumptions:
        consumed[unit[consumption.ids]] = True
    for reason in (UNCONSUMED, SOLE):
        new = np.flatnonzero(~consumed & ~pinned) if reason == UNCONSUMED else _sole_units(followed, unit, pinned)
        pinned[new] = True
        reasons[reason] += int(reported[new].sum())
        why[new] = known.setdefault(reason, len(known))
    exhausted = tuple(split.key for split in tracker.splits if pinned[unit[split.ids]].all())
    gate_of_unit = np.where(pinned, -1, np.cumsum(~pinned) - 1)
    return Units(
        n_gates=int((~pinned).sum()),
        gate_of_id=gate_of_unit[unit].astype(np.int64),
        pinned={reason: count for reason, count in reasons.items() if count and reason != NO_UNIT},
        pinned_splits=exhausted,
        reasons=tuple(known),
        reason_of_id=why[unit],
    )


def _reported_ids(tracker: Tracker) -> IdArray:
    ids = np.ones(tracker.n_ids, dtype=bool)
    for copies in tracker.unreported:
        ids[copies] = False
    return np.flatnonzero(ids)


def _sole_units(followed: Followed, unit: IdArray, pinned: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """Units that make up a whole dimension of some parameter: they can never all be removed."""
    sole: set[int] = set()
    for labels in followed.tensors.values():
        for ids in labels:
            if ids is not None:
                first = int(unit[ids[0]])
                if not pinned[first] and (unit[ids] == first).all():
                    sole.add(first)
    return np.array(sorted(sole), dtype=np.intp)


def _components(n_ids: int, ties: list[tuple[IdArray, IdArray]]) -> IdArray:
    """Component of each id, numbered by first appearance so that gates follow the order of the graph."""
    if n_ids == 0:
        return np.zeros(0, dtype=np.int64)
    rows = np.concatenate([a.ravel() for a, _ in ties]) if ties else np.zeros(0, dtype=np.int64)
    columns = np.concatenate([b.ravel() for _, b in ties]) if ties else np.zeros(0, dtype=np.int64)
    graph = coo_matrix((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(n_ids, n_ids))
    _, component = connected_components(graph, directed=False)
    _, first, inverse = np.unique(component, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]


def unreached_parameters(
    tensors: Mapping[str, Labels], sizes: Mapping[str, tuple[int, ...]], units: Units
) -> dict[str, int]:
    """Number of parameters that stay whatever is closed, by the reason for which their units are pinned.

    An entry of a tensor stays if the units of all its dimensions are pinned; it counts in equal shares for each of these
    dimensions, and within one in the proportion of the reasons of its pinned indices.

    Args:
        tensors: Unit ids of every parameter.
        sizes: Their shapes.
        units: What came out of the ties and pins.

    Returns:
        Reason, with the op in brackets -> number of parameters, the largest first.
    """
    held: Counter[str] = Counter()
    for name, labels in tensors.items():
        stays = float(np.prod(sizes[name]))
        shares: list[dict[str, float]] = []
        for ids in labels:
            if ids is None:
                continue
            pinned = units.reason_of_id[ids]
            pinned = pinned[pinned >= 0]
            stays *= len(pinned) / len(ids)
            found, counts = np.unique(pinned, return_counts=True)
            of_dimension = {units.reasons[r]: c / len(pinned) for r, c in zip(found, counts, strict=True)}
            if not all(reason.startswith(NO_UNIT) for reason in of_dimension):
                shares.append(of_dimension)
        for share in shares if stays else ():
            for reason, part in share.items():
                held[reason] += stays * part / len(shares)  # type: ignore[assignment]
    return {reason: round(count) for reason, count in held.most_common() if round(count)}
