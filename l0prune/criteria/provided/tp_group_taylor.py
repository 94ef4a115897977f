"""GroupTaylorImportance of torch-pruning."""

from __future__ import annotations

from typing import Any, ClassVar

from torch_pruning.pruner import importance

from l0prune.criteria.torch_pruning import TorchPruningCriterion

__all__ = ["TPGroupTaylor"]


class TPGroupTaylor(TorchPruningCriterion):
    """The sum of |w dL/dw| over the weights of a unit: torch-pruning's grouped Taylor expansion."""

    name: ClassVar[str] = "tp-group-taylor"
    needs_examples: ClassVar[bool] = True

    def importance(self) -> Any:
        """The object of torch-pruning that is asked."""
        return importance.GroupTaylorImportance()
