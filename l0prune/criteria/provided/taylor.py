"""How much the loss would change in first order."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from l0prune.criteria.criterion import Criterion, Evidence
from l0prune.criteria.sensitivity import sum_of_effects
from l0prune.gated.model import GatedModel

__all__ = ["Taylor"]


class Taylor(Criterion):
    """The sum over batches of |z dL/dz|.

    Source: Molchanov et al. (2017), arXiv:1611.06440, section 2.2, with gates in the place of feature maps.
    """

    name: ClassVar[str] = "taylor"
    needs_examples: ClassVar[bool] = True

    def scores(self, gated: GatedModel, evidence: Evidence) -> Tensor:
        """Shape `(n_gates,)`, compared all with all."""
        return sum_of_effects(gated, evidence.examples, evidence.objective, torch.abs)
