"""What speaks against a gate phase, in a line each: too few steps to decide or to follow, gates undecided at the freeze."""

from __future__ import annotations

import torch

from l0prune.gated.model import GatedModel
from l0prune.gates.optimizer import GateOptimizerConfig

__all__ = ["hurried_gates", "too_few_steps", "undecided_gates"]

_APART = 0.1
"""Distance of expected and hard cost, fraction of dense, from which on they describe two networks."""
_UNDECIDED = (0.05, 0.95)
"""Between these probabilities of being open, a gate is undecided."""
_HURRIED = 4
"""Steps of a gate phase below which weights cannot follow a cost that falls to its budget."""
_REMEDY = (
    "give them more steps (gate_epochs), place them by evidence (gate_training), start them from a criterion"
    " (gate_start=magnitude), or let one choose (method)"
)


@torch.no_grad()
def too_few_steps(gated: GatedModel, steps: int, lr: float | None) -> str | None:
    """Whether gates that all start open cannot close within their phase.

    Args:
        gated: Its gates are where they start.
        steps: Of the gate phase.
        lr: Learning rate of the gates, or None for the one that follows from the steps.

    Returns:
        A line that says so, and what to do; None where some can.
    """
    gates = gated.gates
    if not gated.n_gates or gates.distribution.needs_budget:
        return None
    lr = GateOptimizerConfig(lr=lr).learning_rate(steps)
    furthest = gates.distribution.prob_open(gates.locations - lr * steps)
    if bool((furthest <= 0.5).any()):
        return None
    return (
        f"CAREFUL: in {steps} steps at learning rate {lr:g} no gate can come further down than to a probability of"
        f" {float(furthest.min()):.2f} of being open, so what is cut will be decided by small differences: {_REMEDY}"
    )


def hurried_gates(steps: int, n_batches: int) -> str | None:
    """Whether gates that are placed by evidence have hardly a step to be placed in.

    Args:
        steps: Of the gate phase.
        n_batches: That told, before it, what the loss depends on.

    Returns:
        A line that says so, and what to do; None where there are enough.
    """
    if steps >= _HURRIED:
        return None
    many = "s" if steps != 1 else ""
    return (
        f"CAREFUL: the gates have {steps} step{many}, in which the cost falls to the budget faster than the weights can follow,"
        f" and are placed by what {n_batches} batches say: give more steps (epochs, gate_epochs, or a smaller batch), or let a"
        " criterion choose, which closes units one after another (method=fisher with gate_epochs)"
    )


@torch.no_grad()
def undecided_gates(gated: GatedModel, steps: int) -> str | None:
    """Whether expected and hard cost are apart because gates that all started open are still undecided.

    Args:
        gated: At the end of its gate phase, before it is decided which gates stay.
        steps: Of the gate phase.

    Returns:
        A line that says so, and what to do; None where the two costs agree.
    """
    is_open, values = gated.open_probability(), gated.gate_values()
    expected, hard = float(gated.expected_cost()), gated.hard_cost()
    low, high = _UNDECIDED
    n_undecided = int(((is_open > low) & (is_open < high)).sum())
    if abs(expected - hard) <= _APART or not n_undecided:
        return None
    scale = float(values[values != 0].mean()) if bool((values != 0).any()) else 0.0
    return (
        f"CAREFUL: {n_undecided} of {gated.n_gates} gates are undecided after {steps} steps, open with a probability between"
        f" {low:g} and {high:g}: the expected cost is {expected:.2f}, but {hard:.2f} is open, at a mean value of {scale:.2f}, so"
        f" a score from before the cut says little; {_REMEDY}"
    )
