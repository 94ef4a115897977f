"""Which numbers of a network belong to a unit, read from its flow."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from l0prune.gated.model import GatedModel
from l0prune.gated.tensors import tensor_of

__all__ = ["per_unit", "weights_of_units"]


def weights_of_units(gated: GatedModel) -> Iterator[tuple[str, Tensor, int, Tensor]]:
    """Every dimension of a parameter that has gates: (name, parameter, dimension, gates).

    The parameter is detached, the gates have shape `(size of the dimension,)`, -1 where an index has none.
    """
    flow = gated.flow
    for name, dimensions in flow.tensors.items():
        if name in flow.parameters:
            for dim, gates in enumerate(dimensions):
                if gates is not None:
                    weight = tensor_of(gated.model, name).detach()
                    yield name, weight, dim, torch.from_numpy(gates).to(weight.device)


def per_unit(values: Tensor, gates: Tensor, n_gates: int) -> Tensor:
    """The sum of the values of each gate's indices, shape `(n_gates,)`, float64.

    Args:
        values: One an index, shape `(size,)`.
        gates: Gate of each index, -1 where it has none, shape `(size,)`.
        n_gates: Number of gates.
    """
    total = torch.zeros(n_gates, dtype=torch.float64, device=values.device)
    return total.index_add_(0, gates[gates >= 0], values[gates >= 0].double())
