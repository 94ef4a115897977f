"""What a gated model was when it was made or copied: it tells an average that left the gates behind."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Origin"]


class Origin:
    """The gates, and the sums of the weights, of a gated model at its beginning.

    Args:
        weights: The user's model.
        locations: Those of the gates, shape `(n_gates,)`.
    """

    def __init__(self, weights: nn.Module, locations: Tensor) -> None:
        self._locations = locations.detach().clone()
        self._sums = _sums(weights)

    def weights_moved(self, weights: nn.Module) -> bool:
        """Whether any weight is another one than at the beginning."""
        return not torch.equal(self._sums, _sums(weights))

    def gates_moved(self, locations: Tensor) -> bool:
        """Whether any gate is elsewhere than at the beginning."""
        return not torch.equal(self._locations.to(locations), locations.detach())


@torch.no_grad()
def _sums(model: nn.Module) -> Tensor:
    """One number for each parameter, in double precision, on the CPU."""
    found = [parameter.sum(dtype=torch.float64).cpu() for parameter in model.parameters() if not parameter.is_meta]
    return torch.stack(found) if found else torch.zeros(0, dtype=torch.float64)
