"""GroupMagnitudeImportance of torch-pruning."""

from __future__ import annotations

from typing import Any, ClassVar

from torch_pruning.pruner import importance

from l0prune.criteria.torch_pruning import TorchPruningCriterion

__all__ = ["TPGroupNorm"]


class TPGroupNorm(TorchPruningCriterion):
    """The L2 norm of all weights of a unit, as torch-pruning takes it: DepGraph's group norm."""

    name: ClassVar[str] = "tp-group-norm"

    def importance(self) -> Any:
        """The object of torch-pruning that is asked."""
        return importance.GroupMagnitudeImportance(p=2)
