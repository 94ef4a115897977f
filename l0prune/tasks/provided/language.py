"""The next token, or those that were masked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor

from l0prune.tasks.class_logits import ClassLogits
from l0prune.tasks.task import Answer, Metric, Task, only

if TYPE_CHECKING:
    from l0prune.sources.datasets import DataSource

__all__ = ["LanguageModelling"]


@dataclass(frozen=True)
class LanguageModelling(ClassLogits):
    """Logits (N, T, V), targets (N, T) token ids, as a rule the inputs themselves: cross-entropy, perplexity.

    Args:
        output: As in `ClassLogits`.
        ignore: Label of padding, and of tokens that are not to be predicted.
        shift: Whether logits are of the next token; False for masked tokens, whose labels stand in their own places.
    """

    ignore: int | None = -100
    shift: bool = True

    axis: ClassVar[int] = -1
    n_positions: ClassVar[tuple[int, ...]] = (1,)
    shapes: ClassVar[str] = "logits (N, T, V) and targets (N, T)"
    warns_of_spare_outputs: ClassVar[bool] = False

    @property
    def metric(self) -> Metric:
        """Exp of the mean cross-entropy of a token, in nats."""
        return Metric("perplexity", higher_is_better=False)

    def unlabelled(self, batch: Any) -> tuple[Any, Tensor]:
        """The inputs are their own targets, but for the padding that an `attention_mask` leaves out."""
        inputs = only(batch)
        if not isinstance(inputs, (Tensor, Mapping)) or not self.shift:
            return super().unlabelled(batch)
        named = inputs if isinstance(inputs, Mapping) else {"input_ids": inputs}
        labels: Tensor = named["input_ids"] if "input_ids" in named else next(iter(named.values()))
        mask = named.get("attention_mask")
        if mask is not None and self.ignore is not None:
            labels = labels.masked_fill(mask == 0, self.ignore)
        return inputs, labels

    def aligned(self, outputs: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and the token that each of them is to predict."""
        logits, targets = super().aligned(outputs, targets)
        return (logits[:, :-1], targets[:, 1:]) if self.shift else (logits, targets)

    def weight(self, inputs: Any, targets: Tensor) -> float:
        """The number of tokens that are predicted and count."""
        wanted = targets[:, 1:] if self.shift else targets
        return float(wanted.numel() if self.ignore is None else (wanted != self.ignore).sum())

    def doubts(self, score: float, data: DataSource) -> str | None:
        """Whether the perplexity is one that the frequencies of the tokens alone give."""
        return Task.doubts(self, score, data)

    def chance(self, data: DataSource) -> tuple[float, str] | None:
        """The perplexity of the tokens' frequencies."""
        _, counts = np.unique(self.labels(data.y_test), return_counts=True)
        shares = counts / max(counts.sum(), 1)
        return float(np.exp(-(shares * np.log(shares)).sum())), "how frequent each token is"

    def score(self, answers: Iterable[Answer]) -> float:
        """Perplexity over all tokens that count; infinite where it is beyond all numbers."""
        mean = Task.score(self, answers)
        return math.exp(mean) if mean < 700 else math.inf
