"""The optimizer of the weights."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch
from torch import nn

from l0prune.finetuning.config import FinetuneConfig
from l0prune.finetuning.gated_decay import decays

__all__ = ["build_optimizer", "decay_groups"]


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
        model: Its `named_parameters()` that take a gradient are trained; there may be none.
        config: Kind, momentum and weight decay.
        lr: Learning rate of the first step, >= 0.
        elsewhere: Parameters whose decay is a part of the loss.
    """
    groups = decay_groups(model.named_parameters(), config.decay, elsewhere=elsewhere) or [{"params": []}]
    if config.optimizer != "sgd":
        return (torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam)(groups, lr=lr)
    return torch.optim.SGD(groups, lr=lr, momentum=config.momentum, nesterov=config.momentum > 0)
