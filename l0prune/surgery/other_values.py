"""A gated model under other gate values, or at other weights, without editing it."""

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

__all__ = ["holding", "own_modules", "with_values"]


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
