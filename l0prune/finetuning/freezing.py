"""The freeze: which gates stay open, what they are worth, and the statistics of the network that is left."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from l0prune.budget.budget import Budget
from l0prune.budget.selection import select_open
from l0prune.finetuning.config import FinetuneConfig
from l0prune.gated import GatedModel
from l0prune.model_call import call

__all__ = ["choose_open", "decided_values", "recalibrate_"]


def choose_open(gated: GatedModel, budget: Budget, *, align: int, salience: Tensor | None = None) -> Tensor:
    """The gates that stay open within the budget, best `log_alpha` first.

    Args:
        gated: Its gates are ranked; it is not changed.
        budget: Upper bound of the exact cost.
        align: Kept widths are multiples of this where the budget allows it, >= 1.
        salience: Shape `(n_gates,)`, >= 0, decides which widths the rounding shortens; None takes their sizes.

    Returns:
        Shape `(n_gates,)`, bool, on the CPU.

    Raises:
        BudgetInfeasibleError: if the budget is below what closing every gate can reach.
    """
    scores = gated.gates.log_alpha.detach().double().cpu().numpy()
    chosen = select_open(
        scores,
        gated.costs(budget.metric),
        gated.flow.dimensions,
        gated.flow.gate_group,
        budget,
        align=align,
        salience=None if salience is None else salience.double().cpu().numpy(),
    )
    return torch.from_numpy(chosen)


def decided_values(gated: GatedModel, is_open: Tensor, config: FinetuneConfig) -> Tensor:
    """Values to freeze the gates at.

    Args:
        gated: Its test-time values are what "soft" keeps.
        is_open: From `choose_open`, shape `(n_gates,)`, bool.
        config: `gate_decision` and `gate_floor`.

    Returns:
        Shape `(n_gates,)`, 0 where closed; where open 1, or the gate's own value but not under the floor.
    """
    if config.gate_decision == "binary":
        return is_open.float()
    values = gated.gate_values().float().cpu().clamp_min(config.gate_floor)
    return values * is_open


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
