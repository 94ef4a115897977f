"""Weight decay of gated matrices that counts a weight by the probability that its gates are open."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from l0prune.gated.model import GatedModel

__all__ = ["GatedDecay", "decays"]


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
