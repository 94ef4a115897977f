"""How the loss reacts to the gates: what criteria of first order share, and the salience that a selection is rounded by."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from l0prune.gated.model import GatedModel
from l0prune.model_call import evaluation_mode, output_tensors

__all__ = ["measure_salience", "projected_outputs", "sum_of_effects"]


def sum_of_effects(
    gated: GatedModel,
    batches: Iterable[tuple[Any, Any]],
    objective: Callable[[Any, Any], Tensor],
    measure: Callable[[Tensor], Tensor],
) -> Tensor:
    """The sum over the batches of `measure(z dL/dz)`: z dL/dz is what closing a gate does to the loss in first order.

    Args:
        gated: In evaluation mode for the measurement, its gates at their test-time values; afterwards as it was.
        batches: (inputs, targets) on the model's device.
        objective: (inputs, targets) to the loss, a scalar.
        measure: From effects, shape `(n_gates,)`, to what is summed. The model's parameters have their gradients then.

    Returns:
        What `measure` gives, float32, on the model's device. Closed gates have no effect.
    """
    bank, was_frozen = gated.gates, gated.frozen
    kept = bank.frozen_values.clone()
    bank.freeze(gated.gate_values())
    values = bank.frozen_values.requires_grad_()
    total = torch.zeros_like(measure(torch.zeros_like(kept)))
    parameters = list(gated.parameters())
    gradients = [parameter.grad for parameter in parameters]
    try:
        with evaluation_mode(gated):
            for inputs, targets in batches:
                values.grad = None
                gated.zero_grad(set_to_none=True)
                loss = objective(inputs, targets)
                if loss.requires_grad:
                    loss.backward()  # not autograd.grad: from reentrant checkpoints gradients come by accumulation alone
                if values.grad is not None:
                    total += measure((values.grad * values.detach()).nan_to_num(0.0, 0.0, 0.0))
    finally:
        values.requires_grad, values.grad = False, None
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        if was_frozen:
            bank.freeze(kept)
        else:
            bank.unfreeze()
    return total


def measure_salience(
    gated: GatedModel, batches: Iterable[tuple[Any, Any]], objective: Callable[[Any, Any], Tensor]
) -> Tensor:
    """How much the loss would suffer if a gate closed: the sum over the batches of (z dL/dz)^2.

    Args:
        gated: As `sum_of_effects` takes it.
        batches: As `sum_of_effects` takes them.
        objective: As `sum_of_effects` takes it.

    Returns:
        Shape `(n_gates,)`, >= 0, float32, on the model's device, up to a common factor. Zero for closed gates.

    Source: Molchanov et al. (2019), arXiv:1906.10771, equation 8 with gates as the parameters; see also their section 3.2.
    """
    return sum_of_effects(gated, batches, objective, torch.square)


def projected_outputs(
    call: Callable[[Any, Any], Any], generator: torch.Generator, inputs: Any, targets: Any = None
) -> Tensor:
    """All outputs in one number, each with a random sign and by its size: an objective where nobody knows a better one.

    The squares of its gradients are, in expectation, how much the outputs move in squares: that needs no targets, and says
    something at a network that is compared only with itself.

    Args:
        call: (inputs, targets) to the outputs.
        generator: Of the signs.
        inputs: Of a batch.
        targets: Of the batch.

    Source: Hutchinson (1989), trace estimation by random signs, of the Gauss-Newton matrix.
    """
    parts = []
    for output in output_tensors(call(inputs, targets)):
        if output.is_floating_point():
            signs = 2.0 * torch.randint(2, output.shape, generator=generator) - 1
            size = output.detach().square().mean().sqrt().clamp_min(torch.finfo(output.dtype).tiny)
            parts.append((output * signs.to(output)).sum() / size)
    return torch.stack(parts).sum() if parts else torch.zeros(())
