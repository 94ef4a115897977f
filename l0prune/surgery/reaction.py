"""A gated model under other gate values, without editing it; and which units move its outputs at all.

A comparison says nothing about those that do not. The gradient of the outputs, weighted at random, is taken for all gate values
at once. Where the code is not differentiable (it counts, compares, detaches), gate values are changed instead, width by width.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from l0prune.gated.model import GatedModel
from l0prune.look.kept_by_forward import without_caches
from l0prune.model_call import ModelCall, evaluation_mode, output_tensors
from l0prune.surgery.equivalence import same_random_numbers

__all__ = [
    "Units",
    "holding",
    "own_modules",
    "units_that_change",
    "units_with_gradient",
    "with_values",
]


def with_values(gated: GatedModel, values: npt.NDArray[np.float64]) -> GatedModel:
    """The same weights under other gate values, without touching `gated`."""
    other = type(gated).__new__(type(gated))
    vars(other).update(vars(gated))  # `copy.copy` would begin anew, and add up all weights for it
    other._modules = dict(gated._modules)
    other._buffers = dict(gated._buffers)
    other.gates = copy.deepcopy(gated.gates)
    other.freeze(torch.from_numpy(values))
    return other


def own_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a model with their names, each once, but for those of TorchScript, whose tensors cannot be replaced."""
    return ((path, module) for path, module in model.named_modules() if not isinstance(module, torch.jit.ScriptModule))


@contextmanager
def holding(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside this block a model computes with other tensors; afterwards it is as it was.

    Args:
        model: Any module.
        tensors: Dotted name of a parameter or buffer -> what stands in its place; a shared one is named in each of its places.
    """
    replaced = []
    for path, module in own_modules(model):
        for held in (module._parameters, module._buffers):
            for leaf, tensor in held.items():
                other = tensors.get(f"{path}.{leaf}" if path else leaf)
                if other is not None:
                    replaced.append((held, leaf, tensor, other))
    made = [
        (module, leaf, t) for module in model.modules() for leaf, t in vars(module).items() if isinstance(t, Tensor)
    ]
    with without_caches(model):
        try:
            for held, leaf, _, other in replaced:
                held[leaf] = other  # type: ignore[assignment]
            yield
        finally:
            for held, leaf, tensor, _ in replaced:
                held[leaf] = tensor  # type: ignore[assignment]
            for module, leaf, tensor in made:  # weights that hooks make of others
                vars(module)[leaf] = tensor


Units = npt.NDArray[np.bool_]
"""A choice of units, shape `(n_gates,)`."""

_MOST_WIDTHS = 16
"""Widths that are tried one by one where gradients show nothing; the others count as not reacting."""

_OPEN = 0.75
"""Value of a closed gate where all are open."""


def units_with_gradient(gated: GatedModel, call: ModelCall, *, all_open: bool = False) -> Units:
    """Units whose gate moves an output of the network, on one call and at the weights that it holds; none without a gradient.

    Args:
        gated: The gated model, its gates at their test-time values.
        call: Inputs.
        all_open: Take the gradient with the closed gates open: those of a branch that is closed entirely hide one another.

    Returns:
        Shape `(n_gates,)`.
    """
    values = gated.gate_values().double().cpu().numpy()
    probe = with_values(gated, np.where(values == 0, _OPEN, values) if all_open else values)
    probe.gates.double()
    gates = probe.gates.frozen_values.requires_grad_()
    try:
        with evaluation_mode(gated), torch.enable_grad(), same_random_numbers(gates.device):
            loss = _weighted_sum(output_tensors(call(probe)))
            gradient = torch.autograd.grad(loss, gates)[0].detach().abs()
    except (RuntimeError, NotImplementedError):  # no derivative, or no way from the gates to an output
        return np.zeros(len(values), dtype=bool)
    sizes = gradient.where(gradient.isfinite(), 0).cpu().numpy()
    found: Units = sizes > torch.finfo(_coarsest(gated)).eps * sizes.max(initial=0.0)
    return found


def _weighted_sum(outputs: list[Tensor]) -> Tensor:
    """Outputs with random weights, each of about the same size; masked scores left out."""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros((), dtype=torch.float64)
    for output in outputs:
        if output.requires_grad:
            real = torch.view_as_real(output) if output.is_complex() else output
            real = real.double().where(real.isfinite(), 0)
            size = real.detach().square().mean().sqrt().clamp_min(1e-30)
            weights = torch.randn(real.shape, generator=generator, dtype=torch.float64).to(real)
            total = total.to(real) + (real / size * weights).sum()
    return total


def _coarsest(gated: GatedModel) -> torch.dtype:
    kinds = {t.dtype for t in gated.model.parameters() if t.is_floating_point()}
    return torch.float64 if kinds <= {torch.float64} else torch.float32


@torch.no_grad()
def units_that_change(gated: GatedModel, call: ModelCall, known: Units) -> Units:
    """The units in `known`, and all others of those widths where other gate values give other outputs."""
    values = gated.gate_values().double().cpu().numpy()
    changed = np.where(values == 0, _OPEN, 0.5 * values)
    expected = _outputs(gated, values, call)

    def moves(units: Units) -> bool:
        return _differ(expected, _outputs(gated, np.where(units, changed, values), call))

    if not moves(~known):
        return known
    found = known.copy()
    for width in np.unique(gated.flow.gate_group[~known])[:_MOST_WIDTHS]:
        units = ~known & (gated.flow.gate_group == width)
        if moves(units):
            found |= units
    return found


def _outputs(gated: GatedModel, values: npt.NDArray[np.float64], call: ModelCall) -> list[Tensor]:
    with evaluation_mode(gated), same_random_numbers(next((t.device for t in gated.model.parameters()), None)):
        return output_tensors(call(with_values(gated, values)))


def _differ(some: list[Tensor], others: list[Tensor]) -> bool:
    return len(some) != len(others) or any(
        a.shape != b.shape or not torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(some, others, strict=True)
    )
