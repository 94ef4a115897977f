"""The dense network teaches by its outputs, wherever a model of transformers computes its own loss."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from l0prune.tasks.teaching import counted_mean, frozen_copy, softened_divergence

__all__ = ["OutputTeacher"]

_IGNORED = -100
"""Label of what transformers does not count."""


class OutputTeacher:
    """A forward hook that blends what a teacher says of the logits into the `loss` of the outputs.

    Args:
        dense: Is copied, and teaches as it is now.
        share: Its weight in the loss, in (0, 1].
        temperature: Softens classes, > 0.

    Attributes:
        dtype: Precision of its calls; None is that of the caller.
    """

    def __init__(self, dense: nn.Module, share: float, temperature: float) -> None:
        self.dtype: torch.dtype | None = None
        self._model = frozen_copy(dense)
        self._share, self._temperature = share, temperature
        self._is_causal = getattr(dense, "loss_type", None) == "ForCausalLM"
        self._counts_items: bool | None = None

    def __call__(self, module: nn.Module, args: Any, kwargs: dict[str, Any], outputs: Any) -> Any:
        """The outputs with another loss; as they are in evaluation mode, and where they hold no loss."""
        loss, logits = (getattr(outputs, name, None) for name in ("loss", "logits"))
        if not module.training or not isinstance(loss, Tensor) or not isinstance(logits, Tensor):
            return None
        casts = nullcontext() if self.dtype is None else torch.autocast(logits.device.type, dtype=self.dtype)
        with torch.no_grad(), casts:
            told = self._model.to(logits.device)(*args, **kwargs)
            n_items = self._items(told.loss, args, kwargs)
        distance, n_counted = self._distance(logits, told.logits.to(logits.dtype), kwargs.get("labels"))
        if n_items is not None:
            distance = distance * n_counted / n_items
        outputs.loss = (1 - self._share) * loss + self._share * distance
        return outputs

    def _items(self, loss: Tensor, args: Any, kwargs: dict[str, Any]) -> Any:
        """How many items the model's loss is a mean over, where that is not those of this call; None where it is.

        The Trainer tells models the number in all batches that it accumulates, and not all that take it heed it: two calls show.
        """
        n_items = kwargs.get("num_items_in_batch")
        if n_items is not None and self._counts_items is None:
            other = self._model(*args, **{**kwargs, "num_items_in_batch": 2 * n_items}).loss
            self._counts_items = not torch.allclose(loss, other)
        return n_items if self._counts_items else None

    def _distance(self, student: Tensor, teacher: Tensor, labels: Any) -> tuple[Tensor, Tensor]:
        """Mean distance from the teacher over the predictions that count, and how many these are."""
        if self._is_causal and isinstance(labels, Tensor):  # a prediction is of the token that comes next
            student, teacher, labels = student[:, :-1], teacher[:, :-1], labels[:, 1:]
        each = student.shape[:-1]
        counted = labels != _IGNORED if isinstance(labels, Tensor) and labels.shape == each else None
        n_counted = torch.tensor(each.numel(), device=student.device) if counted is None else counted.sum()
        if student.shape[-1] == 1:
            squares = (student - teacher).float().square().squeeze(-1)
            return counted_mean(squares, counted), n_counted
        distance = softened_divergence(student, teacher, axis=-1, temperature=self._temperature, counted=counted)
        return distance, n_counted
