"""From chosen gates to the network that is cut: closing them so that others can adapt, the values at the freeze."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from l0prune.finetuning.settings import Settings
from l0prune.gated.model import GatedModel

__all__ = ["Settling", "decided_values", "recalibrate_"]

_SPREAD = 0.7


@dataclass(frozen=True, eq=False)
class Settling:
    """Gates on their way from the values that training gave them to the values they are frozen at.

    Gates that close do so one after another, the least important first, each within 30 % of the steps; gates that open
    again do so over all of them. So the network that is cut has already adapted to the cut.

    Args:
        start: Trained values, shape `(n_gates,)`, in [0, 1].
        end: Values after the freeze, shape `(n_gates,)`, in [0, 1].
        delay: When each gate sets out, as a share of the steps, in [0, 1), shape `(n_gates,)`.
        pace: Inverse of the share of the steps that each gate takes, > 0, shape `(n_gates,)`.
    """

    start: Tensor
    end: Tensor
    delay: Tensor
    pace: Tensor

    @classmethod
    def plan(cls, start: Tensor, end: Tensor, importance: Tensor) -> Settling:
        """Order the gates.

        Args:
            start: As in the class.
            end: As in the class.
            importance: Salience, or rank; the lowest closes first, shape `(n_gates,)`.
        """
        closing = ((end == 0) & (start != 0)).nonzero().flatten()
        delay, pace = torch.zeros_like(start), torch.ones_like(start)
        order = importance[closing].argsort(stable=True)
        delay[closing[order]] = _SPREAD * torch.arange(len(closing), dtype=start.dtype) / max(1, len(closing))
        pace[closing] = 1 / (1 - _SPREAD)
        return cls(start, end, delay, pace)

    @property
    def moves(self) -> bool:
        """Whether any gate opens or closes."""
        return bool(((self.start != 0) != (self.end != 0)).any())

    def at(self, progress: float) -> Tensor:
        """Values of the gates, shape `(n_gates,)`.

        Args:
            progress: Share of the steps that is done, in [0, 1].
        """
        if progress >= 1:
            return self.end
        return self.start.lerp(self.end, ((progress - self.delay) * self.pace).clamp(0, 1))

    def state_dict(self) -> dict[str, Tensor]:
        """Everything, as tensors."""
        return {"start": self.start, "end": self.end, "delay": self.delay, "pace": self.pace}


def decided_values(gated: GatedModel, is_open: Tensor, config: Settings, *, floored: bool = True) -> Tensor:
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
