"""How the weights move: their optimizer, which of them decay, and gradients that are cut short."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from l0prune.finetuning.settings import Settings
from l0prune.gated.model import GatedModel

__all__ = ["GatedDecay", "GradientClip", "build_optimizer", "decay_groups", "decays"]


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
    model: nn.Module, config: Settings, *, lr: float, elsewhere: Collection[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """The configured optimizer over a model's parameters.

    Args:
        model: Its `named_parameters()` that take a gradient are trained; there may be none.
        config: Kind, momentum and weight decay.
        lr: Learning rate of the first step, >= 0.
        elsewhere: Parameters whose decay is a part of the loss.
    """
    groups = decay_groups(model.named_parameters(), config.weight_decay, elsewhere=elsewhere) or [{"params": []}]
    if config.optimizer != "sgd":
        return (torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam)(groups, lr=lr)
    return torch.optim.SGD(groups, lr=lr, momentum=config.momentum, nesterov=config.momentum > 0)


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay is for this parameter: matrices and filters; no norms, biases and others of one dimension."""
    return parameter.requires_grad and parameter.dim() > 1 and name.rpartition(".")[2] != "bias"


class GatedDecay:
    """1/2 * decay * sum over weights of P(all gates of the weight are open) * weight^2, over the matrices with gates.

    It takes the place of these matrices' plain decay: the same where all gates are open, nothing where they are closed,
    and it moves gates as well, the sooner the larger their weights are.

    Args:
        gated: On its device; its gates count as independent.
        decay: Weight decay, >= 0.

    Attributes:
        parameters: The matrices, which must not decay otherwise.

    Source: Louizos, Welling, Kingma (2018), arXiv:1712.01312, section 2.3 and the spike-and-slab bound of their appendix;
    their code's prior precision is N times this decay.
    """

    def __init__(self, gated: GatedModel, decay: float) -> None:
        self._gated = gated
        self._decay = decay
        named = dict(gated.model.named_parameters(remove_duplicate=False))
        places: dict[str, list[tuple[int, Tensor]]] = {}
        for consumer in gated.flow.consumers:
            parameter = named.get(consumer.parameter)
            if parameter is not None and decays(consumer.parameter, parameter):
                index = torch.from_numpy(consumer.gates).to(parameter.device)
                # -1 (not gated) points at the one that is appended to the probabilities.
                index = torch.where(index < 0, gated.n_gates, index)
                places.setdefault(consumer.parameter, []).append((consumer.dim, index))
        self._terms = [(named[name], found) for name, found in places.items()]
        self.parameters = [parameter for parameter, _ in self._terms]

    def __call__(self) -> Tensor:
        """The term, a scalar, differentiable in weights and gates."""
        is_open = self._gated.open_probability()
        extended = torch.cat([is_open, is_open.new_ones(1)])
        total = extended.new_zeros(())
        for parameter, places in self._terms:
            gated_dims = {dim for dim, _ in places}
            others = [dim for dim in range(parameter.dim()) if dim not in gated_dims]
            squares = parameter.square()
            squares = squares.sum(others, keepdim=True) if others else squares
            for dim, index in places:
                shape = [1] * parameter.dim()
                shape[dim] = -1
                squares = squares * extended[index].view(shape)
            total = total + squares.sum()
        return 0.5 * self._decay * total


_MEMORY = 50
"""Steps whose norms are remembered."""


class GradientClip:
    """Shortens gradients whose L2 norm is above `largest`, or above `spike` times the median of the last 50 norms.

    Without norms in the network, one long step at a large learning rate starts a divergence that later steps do not repair;
    such steps are rare, and several times longer than the others, whatever the scale of the loss.

    Args:
        largest: Norm that no gradient exceeds, >= 0; 0 sets no bound.
        spike: How many times the median a norm may be, >= 1; 0 sets no bound.

    Source: clipping by the history of norms, Seetharaman et al. (2020), AutoClip, arXiv:2007.14469, section 2, with a window.
    """

    def __init__(self, largest: float, spike: float) -> None:
        self._largest, self._spike = largest, spike
        self._norms = torch.full((_MEMORY,), math.nan)
        self._steps = 0

    @torch.no_grad()
    def __call__(self, parameters: Sequence[Tensor]) -> None:
        """Shorten the gradients of one step, which are not scaled; nothing waits for the device."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if not gradients or not (self._largest or self._spike):
            return
        norm = nn.utils.get_total_norm(gradients)
        limit = torch.full_like(norm, self._largest or math.inf)
        if self._spike:
            self._norms = self._norms.to(norm)
            bound = self._spike * self._norms.nanmedian()
            limit = torch.where(bound > 0, torch.minimum(limit, bound), limit)  # not so before anything is known
            self._norms[self._steps % _MEMORY] = torch.where(norm.isfinite(), norm, math.nan)
            self._steps += 1
        shorter = (limit / (norm + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(shorter.to(gradient.device))

    def state_dict(self) -> dict[str, Any]:
        """Norms that are remembered, and how many steps there were."""
        return {"norms": self._norms.clone(), "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._norms, self._steps = state["norms"].clone(), state["steps"]
