"""One class for each token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from l0prune.tasks.class_logits import ClassLogits

__all__ = ["TokenClassification"]


@dataclass(frozen=True)
class TokenClassification(ClassLogits):
    """Logits (N, T, C), targets (N, T): cross-entropy and accuracy of the tokens that have a label.

    Args:
        output: As in `ClassLogits`.
        ignore: Label of padding and of tokens without one.
    """

    ignore: int | None = -100

    axis: ClassVar[int] = -1
    n_positions: ClassVar[tuple[int, ...]] = (1,)
    shapes: ClassVar[str] = "logits (N, T, C) and targets (N, T)"
