"""GroupHessianImportance of torch-pruning."""

from __future__ import annotations

from typing import Any, ClassVar

from torch_pruning.pruner import importance

from l0prune.criteria.torch_pruning import TorchPruningCriterion

__all__ = ["TPHessian"]


class TPHessian(TorchPruningCriterion):
    """The sum of w^2 (dL/dw)^2 over the weights of a unit: torch-pruning's grouped optimal brain damage.

    The squared gradients are those of batches, where torch-pruning's example takes those of single inputs.
    """

    name: ClassVar[str] = "tp-hessian"
    needs_examples: ClassVar[bool] = True
    squares_gradients: ClassVar[bool] = True

    def importance(self) -> Any:
        """The object of torch-pruning that is asked."""
        return importance.GroupHessianImportance()
