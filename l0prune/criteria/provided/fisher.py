"""How much the loss would change in second order, as far as gradients tell."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from l0prune.criteria.criterion import Criterion, Evidence
from l0prune.criteria.sensitivity import measure_salience
from l0prune.gated.model import GatedModel

__all__ = ["Fisher"]


class Fisher(Criterion):
    """The sum over batches of (z dL/dz)^2, the diagonal of the empirical Fisher matrix of the gates, for what the unit costs.

    Source: Theis et al. (2018), arXiv:1801.05787, section 2; Molchanov et al. (2019), arXiv:1906.10771, equation 8.
    """

    name: ClassVar[str] = "fisher"
    per_cost: ClassVar[bool] = True
    needs_examples: ClassVar[bool] = True

    def scores(self, gated: GatedModel, evidence: Evidence) -> Tensor:
        """Shape `(n_gates,)`, compared all with all."""
        return measure_salience(gated, evidence.examples, evidence.objective)
