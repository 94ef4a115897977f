"""Which graphs of a network are timed: random widths, in blocks and off them, with branches gone now and then."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from l0prune.flow.channel_flow import ChannelFlow
from l0prune.goals.selection import covered

__all__ = ["DENSE_EVERY", "random_cuts"]

DENSE_EVERY = 10
"""The whole network is timed again after so many others."""

BoolArray = npt.NDArray[np.bool_]
_SPREAD = 0.3
_WHOLE = 0.1
_CLOSED = 0.12


def random_cuts(flow: ChannelFlow, *, block: int, multiple: int, seed: int = 0) -> Iterator[BoolArray]:
    """Sets of units without end, shape `(n_gates,)` each; the first is the whole network, and so is every 10th.

    Half of the networks have widths in whole blocks, a quarter in multiples that the blocked kernels take, a quarter any. A
    network keeps about a random share of everything, and each width its own share of that.

    Args:
        flow: The traced network.
        block: Channels of a block of the kernels.
        multiple: Counts of the blocked layout are multiples of this.
        seed: Of the networks.
    """
    rng = np.random.default_rng(seed)
    groups = [np.flatnonzero(flow.gate_group == group) for group in np.unique(flow.gate_group)]
    scores = np.zeros(flow.n_gates)
    removable = [dimension for dimension in flow.dimensions if dimension.removable]
    number = 0
    while True:
        if number % DENSE_EVERY == 0:
            yield np.ones(flow.n_gates, bool)
            number += 1
            continue
        number += 1
        step = (block, block, multiple, 1)[rng.integers(4)]
        common = rng.uniform(0.05, 1.0)
        is_open = np.zeros(flow.n_gates, bool)
        for members in groups:
            share = float(np.clip(common + rng.uniform(-_SPREAD, _SPREAD), 0.0, 1.0))
            if rng.random() < _WHOLE:
                share = 1.0
            count = share * len(members)
            if step <= len(members):
                count = max(step, round(count / step) * step)
            is_open[members[: max(1, min(len(members), round(count)))]] = True
        if rng.random() < 0.5:
            for dimension in removable:
                if rng.random() < 2 * _CLOSED:
                    is_open[dimension.gates] = False
        yield covered(is_open, scores, flow.dimensions)
