"""From scores to the places of gates, which is what a selection ranks them by, and where their training starts."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from l0prune.criteria.criterion import Criterion
from l0prune.gated.model import GatedModel

__all__ = ["SPREAD", "place_", "quantiles"]

SPREAD = 4.0
"""Distance between the location of the worst and of the best gate; the middle one is where gates start otherwise.

With hard concrete gates the worst start at 1, where they are open with a probability of 0.93, and the best at 5.
"""


def quantiles(scores: npt.ArrayLike, widths: npt.ArrayLike | None = None) -> npt.NDArray[np.float64]:
    """The place of every score among the others, in (0, 1): the middle of its rank, so that n scores lie 1/n apart.

    Args:
        scores: Shape `(n,)`, finite; of equal ones the first is the highest.
        widths: Number of the width that each belongs to, shape `(n,)`, to compare within each width; None compares all.

    Returns:
        Shape `(n,)`.
    """
    values = np.asarray(scores, dtype=np.float64)
    places = np.arange(len(values))
    group = np.zeros_like(places) if widths is None else np.unique(np.asarray(widths), return_inverse=True)[1].ravel()
    order = np.lexsort((-places, values, group))
    sizes = np.bincount(group)
    starts = np.cumsum(sizes) - sizes
    rank = np.empty_like(places)
    rank[order] = places - starts[group[order]]
    return np.asarray((rank + 0.5) / sizes[group] if len(values) else values)


def place_(gated: GatedModel, criterion: Criterion, scores: Tensor, *, costs: Tensor | None = None) -> None:
    """Put the gates at the locations that a criterion's scores give them.

    Args:
        gated: Its gates move, around where the distribution has gates of trained networks start; nothing else changes.
        criterion: Says what its scores are compared with.
        scores: From `score`, shape `(n_gates,)`.
        costs: What each unit adds to the cost of the whole network, >= 0, shape `(n_gates,)`, for a criterion whose scores are
            set against it; units that cost nothing rank first. None counts all alike.
    """
    values = scores.double().cpu()
    if criterion.per_cost and costs is not None:
        values = values / costs.to(values)
        values = torch.where(values.isnan(), torch.inf, values)  # nothing for nothing
    widths = gated.flow.gate_group if criterion.within_widths else None
    share = torch.from_numpy(quantiles(values.numpy(), widths))
    gated.place_gates_(gated.gates.distribution.initial_log_alpha + SPREAD * (share - 0.5))
