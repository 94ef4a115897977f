"""The freeze: what the gates that stay open are worth, and the statistics of the network that is left."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from l0prune.finetuning.config import FinetuneConfig
from l0prune.gated.model import GatedModel

__all__ = ["decided_values", "recalibrate_"]


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
def recalibrate_(model: nn.Module, calls: Iterable[Callable[[nn.Module], Any]]) -> None:
    """Replace the running statistics of batch norms by their means over some calls.

    Where the network is an exported graph, its statistics move towards these means as they do in training.

    Args:
        model: Its normalisation buffers change; nothing else does.
        calls: Each calls the model with a batch, on its device.

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
        for call in calls:
            call(model)
    finally:
        for module, momentum in zip(modules, momenta, strict=True):
            module.momentum = momentum
        model.train(was_training)
