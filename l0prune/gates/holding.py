"""Keeping gates from running past a target of their expected cost."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from l0prune.gates.bank import GateBank

__all__ = ["hold_"]

_HALVINGS = 16


@torch.no_grad()
def hold_(gates: GateBank, cost: Callable[[Tensor], Tensor | float], floor: float) -> bool:
    """Raise all locations by the same amount, the least that brings the expected cost to `floor`, if it is below.

    Adam's momentum goes on for about ten steps after the multiplier has let go; where a step is a tenth of a gate's
    range, that is far past the target, and closed gates hardly hear the task loss any more. A shift that all gates share
    keeps what tells them apart. Their momentum stays as it is: without what it has in common they would drift apart by noise.

    Args:
        gates: Their locations move, within their bounds.
        cost: Expected cost of open probabilities of shape `(n_gates,)`, scalar, increasing in each of them.
        floor: Where to hold the cost.

    Returns:
        Whether they have moved.
    """
    start = gates.log_alpha.detach().clone()

    def cost_after(shift: float) -> float:
        gates.log_alpha.copy_(start + shift)
        gates.clamp_()
        return float(cost(gates.open_probability()))

    if cost_after(0.0) >= floor:
        return False
    low, high = 0.0, 2 * gates.bound
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if cost_after(middle) < floor else (low, middle)
    cost_after(high)
    return True
