"""The optimizer of the weights, and the moving average of what it reaches."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor, nn

from l0prune.finetuning.config import FinetuneConfig
from l0prune.finetuning.gated_decay import decays

__all__ = ["MovingAverage", "build_optimizer", "decay_groups"]


def decay_groups(
    named: Iterable[tuple[str, nn.Parameter]], decay: float, *, elsewhere: Collection[nn.Parameter] = ()
) -> list[dict[str, object]]:
    """Parameter groups: matrices and filters decay; norms, biases and everything else of one dimension do not.

    Args:
        named: Names and parameters; those that need no gradient are left out.
        decay: Weight decay of the first group, >= 0.
        elsewhere: Parameters whose decay is a part of the loss.
    """
    apart = {id(parameter) for parameter in elsewhere}
    decaying: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in named:
        if parameter.requires_grad:
            (decaying if decays(name, parameter) and id(parameter) not in apart else others).append(parameter)
    groups: list[dict[str, object]] = [
        {"params": decaying, "weight_decay": decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(
    model: nn.Module, config: FinetuneConfig, *, lr: float, elsewhere: Collection[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """The configured optimizer over a model's parameters.

    Args:
        model: Its `named_parameters()` are trained.
        config: Kind, momentum and weight decay.
        lr: Learning rate of the first step, >= 0.
        elsewhere: Parameters whose decay is a part of the loss.
    """
    groups = decay_groups(model.named_parameters(), config.decay, elsewhere=elsewhere)
    if config.optimizer != "sgd":
        return (torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam)(groups, lr=lr)
    return torch.optim.SGD(groups, lr=lr, momentum=config.momentum, nesterov=config.momentum > 0)


class MovingAverage:
    """Exponential moving average of a model's floating-point parameters and buffers.

    In the first steps the decay is smaller, (1 + n) / (10 + n), so that the start does not linger.

    Args:
        model: What is averaged; its state at construction is the start.
        decay: Weight of the past, in (0, 1).

    Source: Polyak, Juditsky (1992), averaging of iterates; the growing decay as TensorFlow's moving average has it.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.n_updates = 0
        self._average = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the present state of `model`."""
        self.n_updates += 1
        weight = 1.0 - min(self.decay, (1 + self.n_updates) / (10 + self.n_updates))
        averages: list[Tensor] = []
        values: list[Tensor] = []
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                averages.append(self._average[name])
                values.append(tensor)
            else:
                self._average[name].copy_(tensor)
        torch._foreach_lerp_(averages, values, weight)

    def copy_to_(self, model: nn.Module) -> None:
        """Write the average into `model`."""
        model.load_state_dict(self._average)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by name, and the number of updates."""
        return {**self._average, "n_updates": torch.tensor(self.n_updates)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state_dict`."""
        self.n_updates = int(state["n_updates"])
        for name, tensor in self._average.items():
            tensor.copy_(state[name])
