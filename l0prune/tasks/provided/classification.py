"""One class for each input."""

from __future__ import annotations

from dataclasses import dataclass

from l0prune.tasks.class_logits import ClassLogits

__all__ = ["Classification"]


@dataclass(frozen=True)
class Classification(ClassLogits):
    """Logits (N, C), targets (N,): cross-entropy, accuracy."""
