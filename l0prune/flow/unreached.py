"""Which parameters no gate can remove, and why: by reason and op."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from l0prune.flow.units import Units
from l0prune.ops.tracker import NO_UNIT, Labels

__all__ = ["unreached_parameters"]


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
