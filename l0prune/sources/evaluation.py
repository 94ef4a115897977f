"""Accuracy of a classifier, and whether its outputs fit the classes of the data."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from l0prune.errors import DataError
from l0prune.model_call import call, evaluation_mode, logits_of
from l0prune.sources.datasets import DataSource
from l0prune.sources.model_spec import LoadedModel

__all__ = ["accuracy", "check_classes"]


def accuracy(model: nn.Module | Callable[..., Any], batches: Iterable[tuple[Any, Tensor]]) -> float:
    """Share of entries whose largest output is the target's.

    Args:
        model: A module, evaluated in eval mode and left in the mode it was in; or any callable (an onnxruntime session
            behind a function, say) that returns logits as a tensor or a numpy array.
        batches: Yields (inputs, targets): inputs a tensor, a tuple of positional or a dict of keyword tensors, targets
            (B,). Logits have the classes in their last dimension, (B, classes).

    Returns:
        Per cent, in [0, 100].

    Raises:
        DataError: if there is no entry.
    """
    right = total = 0
    with evaluation_mode(model) if isinstance(model, nn.Module) else nullcontext(), torch.no_grad():
        for inputs, targets in batches:
            predicted = logits_of(call(model, inputs)).argmax(-1)
            right += int((predicted == targets.to(predicted.device)).sum())
            total += targets.numel()
    if total == 0:
        raise DataError("the data set is empty: there is nothing to evaluate.")
    return 100.0 * right / total


def check_classes(loaded: LoadedModel, data: DataSource) -> None:
    """Refuse data with more classes than the model has outputs; costs one call of the model.

    Raises:
        DataError: naming both numbers.
    """
    if not data.has_classes or data.n_classes is None:
        return
    with torch.no_grad():
        outputs = logits_of(call(loaded.model, loaded.example_inputs)).shape[-1]
    if outputs < data.n_classes:
        raise DataError(
            f"{data.name} has {data.n_classes} classes, {loaded.spec!r} has {outputs} outputs; build it with "
            f"num_classes={data.n_classes} (--model-arg num_classes={data.n_classes})."
        )
