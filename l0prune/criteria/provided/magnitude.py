"""How large the weights of a unit are."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from l0prune.criteria.criterion import Criterion, Evidence
from l0prune.criteria.weights import per_unit, weights_of_units
from l0prune.gated.model import GatedModel

__all__ = ["Magnitude"]


class Magnitude(Criterion):
    """The L2 norm of all weights that go when the unit goes: of its producers, its consumers, and norms and biases between.

    Layers differ in scale for reasons that say nothing about units, so all widths lose the same share.

    Source: Li et al. (2017), arXiv:1608.08710, section 3.1, for filters with L1; Fang et al. (2023), DepGraph,
    arXiv:2301.12900, section 3.3, for all that depends on each other.
    """

    name: ClassVar[str] = "magnitude"
    within_widths: ClassVar[bool] = True

    def scores(self, gated: GatedModel, evidence: Evidence) -> Tensor:
        """Shape `(n_gates,)`."""
        total = torch.zeros(gated.n_gates, dtype=torch.float64, device=gated.gates.log_alpha.device)
        for _, weight, dim, gates in weights_of_units(gated):
            squares = weight.double().square().movedim(dim, 0).reshape(weight.shape[dim], -1).sum(1)
            total += per_unit(squares, gates, gated.n_gates)
        return total.sqrt()
