"""LAMPImportance of torch-pruning."""

from __future__ import annotations

from typing import Any, ClassVar

from torch_pruning.pruner import importance

from l0prune.criteria.torch_pruning import TorchPruningCriterion

__all__ = ["TPLamp"]


class TPLamp(TorchPruningCriterion):
    """Magnitudes as shares of all larger ones in their width: torch-pruning's LAMP."""

    name: ClassVar[str] = "tp-lamp"

    def importance(self) -> Any:
        """The object of torch-pruning that is asked."""
        return importance.LAMPImportance()
