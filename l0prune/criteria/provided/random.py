"""Chance, which every other criterion should beat."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from l0prune.criteria.criterion import Criterion, Evidence
from l0prune.gated.model import GatedModel

__all__ = ["Random"]


class Random(Criterion):
    """Numbers drawn with the run's seed; all widths lose the same share."""

    name: ClassVar[str] = "random"
    within_widths: ClassVar[bool] = True

    def scores(self, gated: GatedModel, evidence: Evidence) -> Tensor:
        """Shape `(n_gates,)`."""
        return torch.rand(gated.n_gates, generator=torch.Generator().manual_seed(evidence.seed), dtype=torch.float64)
