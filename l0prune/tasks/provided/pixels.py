"""One class for each pixel."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from l0prune.tasks.class_logits import ClassLogits
from l0prune.tasks.task import Answer, Metric, Task

if TYPE_CHECKING:
    from l0prune.sources.datasets import DataSource

__all__ = ["PixelClassification"]


@dataclass(frozen=True)
class PixelClassification(ClassLogits):
    """Logits (N, C, H, W), targets (N, H, W): cross-entropy, and the mean intersection over union of the classes.

    Logits of another resolution are resized bilinearly to that of the targets.

    Args:
        output: As in `ClassLogits`; also "out" need not be given.
        ignore: Label of pixels that have none.
    """

    ignore: int | None = 255

    n_positions: ClassVar[tuple[int, ...]] = (2, 3)
    shapes: ClassVar[str] = "logits (N, C, H, W) and targets (N, H, W)"
    usual: ClassVar[tuple[str, ...]] = ("logits", "out")

    @property
    def metric(self) -> Metric:
        """In per cent; classes that are neither there nor predicted are left out."""
        return Metric("miou", higher_is_better=True, unit="%")

    def doubts(self, score: float, data: DataSource) -> str | None:
        """Whether the most frequent class everywhere is as good."""
        return Task.doubts(self, score, data)

    def chance(self, data: DataSource) -> tuple[float, str] | None:
        """The mean intersection over union of the most frequent class everywhere."""
        counts = np.bincount(self.labels(data.y_test))
        if (counts > 0).sum() < 2:
            return None
        return 100.0 * float(counts.max() / counts.sum()) / int((counts > 0).sum()), "one class everywhere"

    def aligned(self, outputs: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Logits at the resolution of the targets."""
        logits, targets = super().aligned(outputs, targets)
        if logits.shape[2:] != targets.shape[1:]:
            logits = F.interpolate(logits, targets.shape[1:], mode="bilinear", align_corners=False)
        return logits, targets

    def score(self, answers: Iterable[Answer]) -> float:
        """Mean over the classes of |predicted and true| / |predicted or true|, over all pixels that count."""
        found = torch.zeros(())
        for answer in answers:
            logits, wanted = self.aligned(answer.outputs, answer.targets)
            n_classes, counted = logits.shape[1], self.counted(wanted)
            pairs = n_classes * wanted + logits.argmax(1)
            pairs = pairs.reshape(-1) if counted is None else pairs[counted]
            counts = torch.bincount(pairs, minlength=n_classes**2).view(n_classes, n_classes)
            found = found + counts.double().cpu()
        both = found.diagonal()
        either = found.sum(0) + found.sum(1) - both
        return 100.0 * float((both / either)[either > 0].mean()) if bool(either.any()) else 0.0
