"""What scaling whole branches does to the loss, from the gradients of one backward pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from l0prune.flow.branches import Branch
from l0prune.gated.tensors import tensor_of

__all__ = ["branch_effects"]


@torch.no_grad()
def branch_effects(model: nn.Module, branches: Sequence[Branch], effects: Tensor) -> Tensor:
    """What a factor on all that a branch adds does to the loss in first order: the effects of its units all at once.

    It is W dL/dW, summed over the last weights W on its way to the rest. For a branch that ends in a product this is the sum of
    z dL/dz over the units that enter it; before a norm, that sum would say nothing, because the norm undoes the factor.

    Args:
        model: The user's model, whose parameters have their gradients.
        branches: Of its flow.
        effects: z dL/dz of each unit, shape `(n_gates,)`, for branches whose last weights are not known or not trained.

    Returns:
        Shape `(n_branches,)`, dtype and device of `effects`.
    """
    found = effects.new_zeros(len(branches))
    for number, branch in enumerate(branches):
        weights = [tensor_of(model, name) for name in branch.scaled_by]
        scaled = [(weight, weight.grad) for weight in weights if weight.grad is not None]
        if weights and len(scaled) == len(weights):
            found[number] = sum((weight * gradient).sum() for weight, gradient in scaled)
        else:
            found[number] = effects[torch.from_numpy(branch.exits[0]).to(effects.device)].sum()
    return found
