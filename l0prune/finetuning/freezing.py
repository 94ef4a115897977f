"""The freeze: which gates stay open, what they are worth, and the statistics of the network that is left."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from l0prune.budget.as_trained import covered
from l0prune.budget.budget import Budget
from l0prune.budget.selection import align_open, select_open
from l0prune.finetuning.config import FinetuneConfig
from l0prune.finetuning.goal import Goal, metric_of
from l0prune.gated.model import GatedModel
from l0prune.model_call import call

__all__ = ["choose_open", "decided_values", "recalibrate_"]


def choose_open(gated: GatedModel, goal: Goal, *, align: int, salience: Tensor | None = None) -> Tensor:
    """The gates that stay open: within a budget the best by `log_alpha`; under a penalty those that training left open.

    Args:
        gated: Its gates are ranked; it is not changed.
        goal: A budget is the upper bound of the exact cost. Under a penalty exactly the gates whose test-time value is 0
            close, but for the best of each dimension that would vanish, and before widths are rounded up to `align`.
        align: Kept widths are multiples of this where a budget allows it, >= 1.
        salience: Shape `(n_gates,)`, >= 0, decides which widths the rounding under a budget shortens; None takes their
            sizes.

    Returns:
        Shape `(n_gates,)`, bool, on the CPU.

    Raises:
        BudgetInfeasibleError: if the budget is below what closing every gate can reach.
    """
    scores = gated.gates.log_alpha.detach().double().cpu().numpy()
    costs, flow = gated.costs(metric_of(goal)), gated.flow
    if isinstance(goal, Budget):
        measured = None if salience is None else salience.double().cpu().numpy()
        chosen = select_open(scores, costs, flow.dimensions, flow.gate_group, goal, align=align, salience=measured)
    else:
        chosen = covered((gated.gate_values() != 0).cpu().numpy(), scores, flow.dimensions)
        if align > 1:
            chosen = align_open(chosen, scores, costs, flow.dimensions, flow.gate_group, align=align)
    return torch.from_numpy(chosen)


def decided_values(gated: GatedModel, is_open: Tensor, config: FinetuneConfig, *, floored: bool = True) -> Tensor:
    """Values to freeze the gates at.

    Args:
        gated: Its test-time values are what "soft" keeps.
        is_open: From `choose_open`, shape `(n_gates,)`, bool.
        config: `gate_decision`, which must be resolved, and `gate_floor`.
        floored: Whether "soft" lifts every value under the floor; otherwise only zeros.

    Returns:
        Shape `(n_gates,)`, 0 where closed; where open 1, or the gate's own value but not under the floor.
    """
    if config.gate_decision == "binary":
        return is_open.float()
    values = gated.gate_values().float().cpu()
    low = values < config.gate_floor if floored else values == 0
    return torch.where(low, config.gate_floor, values) * is_open


@torch.no_grad()
def recalibrate_(model: nn.Module, batches: Iterable[Any]) -> None:
    """Replace the running statistics of batch norms by their means over `batches`.

    Where the network is an exported graph, its statistics move towards these means as they do in training.

    Args:
        model: Its normalisation buffers change; nothing else does.
        batches: Inputs, on the model's device.

    Source: re-estimation of population statistics, Ioffe, Szegedy (2015), arXiv:1502.03167, algorithm 2.
    """
    modules = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [module.momentum for module in modules]
    was_training = model.training
    model.train()
    try:
        for module in modules:
            module.reset_running_stats()
            module.momentum = None  # the plain mean over all batches
        for inputs in batches:
            call(model, inputs)
    finally:
        for module, momentum in zip(modules, momenta, strict=True):
            module.momentum = momentum
        model.train(was_training)
