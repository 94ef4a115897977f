"""The dense network teaches, by its outputs and its blocks, wherever a model of transformers computes its own loss."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from l0prune.errors import L0PruneWarning
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
        is_silent: Whether calls are none of the training, and are left as they are.
    """

    def __init__(self, dense: nn.Module, share: float, temperature: float, of_features: float = 0.0) -> None:
        self.dtype: torch.dtype | None = None
        self.is_silent = False
        self._model = frozen_copy(dense)
        self._share, self._temperature, self._of_features = share, temperature, of_features
        self._is_causal = getattr(dense, "loss_type", None) == "ForCausalLM"
        self._counts_items: bool | None = None
        self._has_told = False
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
        if not module.training or self.is_silent:
            return None
        loss, logits = _loss_and_logits(outputs, kwargs)
        if loss is None or logits is None:
            self._tell_once(outputs)
            return None
        casts = nullcontext() if self.dtype is None else torch.autocast(logits.device.type, dtype=self.dtype)
        self._model.to(logits.device)
        with torch.no_grad(), casts:
            told, wanted = self._blocks(lambda model: model(*args, **kwargs))
            told_loss, told_logits = _loss_and_logits(told, kwargs)
            assert told_loss is not None
            assert told_logits is not None
            n_items = self._items(told_loss, args, kwargs)
        distance, n_counted = self._distance(logits, told_logits.to(logits.dtype), kwargs.get("labels"))
        taught = self._share * distance
        sites = [site for site in self._sites if site.module in features and site.module in wanted]
        if sites:
            taught = taught + self._of_features * feature_loss(sites, features, wanted).to(taught.dtype)
        if n_items is not None:
            taught = taught * n_counted / n_items
        return _with_loss(outputs, (1 - self._share) * loss + taught)

    def _tell_once(self, outputs: Any) -> None:
        """Say that nothing is taught, and why: the loss is computed elsewhere, where it cannot be blended."""
        if self._has_told or not torch.is_grad_enabled():
            return
        self._has_told = True
        warnings.warn(
            f"the dense network teaches nothing: in training the model returns a {type(outputs).__name__} without the loss and"
            " logits that its teaching is blended into. Pass the labels to the model, and have it compute its loss: the Trainer"
            " of transformers takes them out under label_smoothing_factor and compute_loss_func. Or train without a teacher"
            " (distillation=0)",
            L0PruneWarning,
            stacklevel=2,
        )

    def _items(self, loss: Tensor, args: Any, kwargs: dict[str, Any]) -> Any:
        """How many items the model's loss is a mean over, where that is not those of this call; None where it is.

        The Trainer tells models the number in all batches that it accumulates, and not all that take it heed it: two calls show.
        """
        n_items = kwargs.get("num_items_in_batch")
        if n_items is not None and self._counts_items is None:
            other, _ = _loss_and_logits(self._model(*args, **{**kwargs, "num_items_in_batch": 2 * n_items}), kwargs)
            assert other is not None
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


def _loss_and_logits(outputs: Any, kwargs: Mapping[str, Any]) -> tuple[Tensor | None, Tensor | None]:
    """What a model that was given labels returned as its loss and its logits: entries, fields, or the first two of a tuple."""
    if isinstance(outputs, Mapping):
        loss, logits = outputs.get("loss"), outputs.get("logits")
    elif isinstance(outputs, tuple) and not hasattr(outputs, "loss"):
        loss, logits = outputs[:2] if len(outputs) > 1 and kwargs.get("labels") is not None else (None, None)
    else:
        loss, logits = (getattr(outputs, name, None) for name in ("loss", "logits"))
    fit = isinstance(loss, Tensor) and loss.dim() == 0 and isinstance(logits, Tensor)
    return (loss, logits) if fit else (None, None)


def _with_loss(outputs: Any, loss: Tensor) -> Any:
    """What a model returned, with another loss."""
    if hasattr(outputs, "_replace"):
        return outputs._replace(loss=loss)
    if isinstance(outputs, tuple):
        return (loss, *outputs[1:])
    if isinstance(outputs, Mapping) and not hasattr(outputs, "loss"):
        return {**outputs, "loss": loss}
    outputs.loss = loss
    return outputs
