"""FPGMImportance of torch-pruning."""

from __future__ import annotations

from typing import Any, ClassVar

from torch_pruning.pruner import importance

from l0prune.criteria.torch_pruning import TorchPruningCriterion

__all__ = ["TPFpgm"]


class TPFpgm(TorchPruningCriterion):
    """Distance to the other units of the width: torch-pruning's FPGM, filter pruning via the geometric median."""

    name: ClassVar[str] = "tp-fpgm"

    def importance(self) -> Any:
        """The object of torch-pruning that is asked."""
        return importance.FPGMImportance()
