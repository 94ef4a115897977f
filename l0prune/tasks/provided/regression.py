"""Numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from l0prune.errors import DataError
from l0prune.tasks.outputs import chosen_output
from l0prune.tasks.task import Metric, Task
from l0prune.tasks.teaching import squared_difference

if TYPE_CHECKING:
    from l0prune.sources.datasets import DataSource

__all__ = ["Regression"]


@dataclass(frozen=True)
class Regression(Task):
    """As many numbers for each input as the targets have: mean squared error.

    Args:
        output: Name of the output, where the network has several.
    """

    output: str | None = None

    @property
    def metric(self) -> Metric:
        """Mean over all numbers."""
        return Metric("mse", higher_is_better=False)

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """Mean squared error.

        Raises:
            DataError: outputs and targets are of other shapes; dimensions of size 1, and all of them in a row, do not count.
        """
        predicted = chosen_output(outputs, self.output)
        given, wanted = ([size for size in x.shape[1:] if size != 1] for x in (predicted, targets))
        alike = given == wanted or (math.prod(given) == math.prod(wanted) and 1 in (len(given), len(wanted)))
        if not alike or predicted.shape[:1] != targets.shape[:1]:
            raise DataError(
                f"the targets have shape {tuple(targets.shape[1:])} each, and the model gives {tuple(predicted.shape[1:])}:"
                " give targets, or a model, of the same size"
            )
        return F.mse_loss(predicted.reshape(targets.shape), targets.to(predicted.dtype))

    def chance(self, data: DataSource) -> tuple[float, str]:
        """The mean squared error of the targets' mean."""
        targets = np.asarray(data.y_test, np.float64)
        return float(((targets - targets.mean(0)) ** 2).mean()), "the mean of the targets"

    def teach(self, outputs: Any, taught: Any, targets: Tensor, *, temperature: float) -> Tensor:
        """Mean squared difference."""
        del targets, temperature
        return squared_difference(chosen_output(outputs, self.output), chosen_output(taught, self.output))
