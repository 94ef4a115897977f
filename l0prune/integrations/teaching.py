"""The dense network teaches, by its outputs and its blocks, wherever a model of transformers computes its own loss."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from l0prune.finetuning.features import FeatureReader, Features, FeatureSite, feature_loss
from l0prune.tasks.teaching import counted_mean, frozen_copy, softened_divergence

__all__ = ["DenseTeacher"]

_IGNORED = -100
"""Label of what transformers does not count."""


class DenseTeacher:
    """Blends what a teacher says of the logits into the `loss` of a model's outputs, and of its blocks once it is cut.

    Args:
        dense: Is copied, and teaches as it is now.
        share: Its weight in the loss, in (0, 1].
        temperature: Softens classes, > 0.
        of_features: Weight of what blocks are taught by the channels that they kept, >= 0.

    Attributes:
        dtype: Precision of its calls; None is that of the caller.
    """

    def __init__(self, dense: nn.Module, share: float, temperature: float, of_features: float = 0.0) -> None:
        self.dtype: torch.dtype | None = None
        self._model = frozen_copy(dense)
        self._share, self._temperature, self._of_features = share, temperature, of_features
        self._is_causal = getattr(dense, "loss_type", None) == "ForCausalLM"
        self._counts_items: bool | None = None
        self._open = ExitStack()
        self._found: Features = {}
        self.teach_blocks(self._model, ())

    def attach(self, student: nn.Module) -> None:
        """Teach a model in each of its calls, when it is in training mode."""
        student.register_forward_pre_hook(self._begin)
        student.register_forward_hook(self._teach, with_kwargs=True)

    @property
    def teaches_features(self) -> bool:
        """Whether blocks are taught as well, once it is known what they kept."""
        return self._of_features > 0

    def teach_blocks(self, compact: nn.Module, sites: Sequence[FeatureSite]) -> None:
        """From now on teach the blocks of a network that stands for the gated model's own.

        Args:
            compact: The network, cut and in its own class.
            sites: Its blocks, from `feature_sites`; none leaves the outputs alone to teach.
        """
        self._sites = sites
        self._student, self._blocks = FeatureReader(compact, sites), FeatureReader(self._model, sites)

    def _begin(self, module: nn.Module, _: Any) -> None:
        """Before a call: watch the blocks."""
        self._open.close()
        if module.training and self._sites:
            self._found = self._open.enter_context(self._student.recording())

    def _teach(self, module: nn.Module, args: Any, kwargs: dict[str, Any], outputs: Any) -> Any:
        """The outputs with another loss; as they are in evaluation mode, and where they hold no loss."""
        features = {}
        if module.training and self._sites:
            features = dict(self._found)
            self._open.close()
        loss, logits = (getattr(outputs, name, None) for name in ("loss", "logits"))
        if not module.training or not isinstance(loss, Tensor) or not isinstance(logits, Tensor):
            return None
        casts = nullcontext() if self.dtype is None else torch.autocast(logits.device.type, dtype=self.dtype)
        self._model.to(logits.device)
        with torch.no_grad(), casts:
            told, wanted = self._blocks(lambda model: model(*args, **kwargs))
            n_items = self._items(told.loss, args, kwargs)
        distance, n_counted = self._distance(logits, told.logits.to(logits.dtype), kwargs.get("labels"))
        taught = self._share * distance
        sites = [site for site in self._sites if site.module in features and site.module in wanted]
        if sites:
            taught = taught + self._of_features * feature_loss(sites, features, wanted).to(taught.dtype)
        if n_items is not None:
            taught = taught * n_counted / n_items
        outputs.loss = (1 - self._share) * loss + taught
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
