"""The decision which gates stay open: the one that `finetune` freezes, and that `shrink` cuts after a loop of the user's own."""

from __future__ import annotations

import torch
from torch import Tensor

from l0prune.gated.model import GatedModel
from l0prune.goals.goal import Goal
from l0prune.measuring.alignment import require_alignment, resolve_alignment

__all__ = ["REOPENED", "choose_open", "values_to_cut"]

REOPENED = 0.1
"""Value of a gate that training had closed and that opens again, to fill a budget or a width: a network that is not trained
any more takes a unit it has learned to do without as noise, and loses far more at 1."""


def choose_open(
    gated: GatedModel,
    goal: Goal,
    *,
    align: int,
    salience: Tensor | None = None,
) -> Tensor:
    """The gates that stay open: within budgets the best by `log_alpha`; without any, those that training left open.

    Args:
        gated: Its gates are ranked; it is not changed.
        goal: Budgets are upper bounds of exact costs, the tightest of which is filled to within 1 % where any set of gates
            does that. Without any, exactly the gates whose test-time value is 0 close, but for the best of each dimension
            that would vanish, and before widths are rounded up to `align`.
        align: Kept widths are multiples of this where budgets allow it, >= 1.
        salience: Shape `(n_gates,)`, >= 0, decides which widths the rounding under a budget shortens; None takes their
            sizes.

    Returns:
        Shape `(n_gates,)`, bool, on the CPU.

    Raises:
        BudgetInfeasibleError: if a budget is below what closing every gate can reach.
    """
    chosen = goal.choose_open(
        gated.costs,
        gated.gates.scores,
        (gated.gate_values() != 0).cpu().numpy(),
        align=align,
        salience=None if salience is None else salience.double().cpu().numpy(),
    )
    return torch.from_numpy(chosen)


def values_to_cut(gated: GatedModel, align: int | str | None) -> Tensor:
    """Values of the gates that a network is cut with which nobody trains any further: the trained ones as far as they go.

    Args:
        gated: Gates that are frozen are cut as they are; the others as `choose_open` says. It is not changed.
        align: Kept widths are multiples of this. "auto" is what this machine likes where a budget decides, and 1 elsewhere.

    Returns:
        Shape `(n_gates,)`, float64 with the precision of the bank, on the CPU: 0 where closed, elsewhere the test-time
        value, or `REOPENED`.

    Raises:
        BudgetInfeasibleError: if the budget is below what closing every gate can reach.
        ConfigError: if `align` is neither "auto", None nor a number >= 1; or the weights were trained or averaged without
            the gates.
    """
    require_alignment(align)
    values = gated.gate_values().to("cpu", gated.gates.frozen_values.dtype)
    knows = gated.frozen or gated.goal.cuts_as_trained or gated.goal.knows_widths
    leaves_widths = gated.n_gates == 0 or (align == "auto" and knows)
    step = 1 if leaves_widths else resolve_alignment(align)
    if not gated.frozen:
        is_open = choose_open(gated, gated.goal, align=step)
        if not bool(is_open.all()):
            gated.require_own_gates()
    elif step > 1:
        scores = values.double() + 1e-3 * torch.sigmoid(torch.from_numpy(gated.gates.scores))
        opened = gated.goal.rounded(gated.costs, scores.numpy(), (values != 0).numpy(), align=step)
        is_open = torch.from_numpy(opened)
    else:
        return values.double()
    return torch.where(values == 0, REOPENED, values).mul(is_open).double()
