"""Accuracy of a classifier, and whether its outputs fit the classes of the data."""

import warnings
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from l0prune.errors import DataError, L0PruneWarning
from l0prune.model_call import call, evaluation_mode, logits_of
from l0prune.sources.datasets import DataSource
from l0prune.sources.model_spec import LoadedModel

__all__ = ["accuracy", "check_classes", "class_names", "is_chance", "most_frequent"]

N_SHOWN = 3


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

    Warns:
        L0PruneWarning: the model has other classes than the data, as far as can be seen: more of them, or the same names in
            another order.
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
    if outputs > data.n_classes:
        _say(
            f"{data.name} has {data.n_classes} classes, {loaded.spec!r} has {outputs} outputs: label 0 is taken for output 0"
            f" and so on{_in_order(data)}. Are these the first of the classes that the network knows?"
        )
    known = class_names(loaded.model)
    if known and data.class_names and known[: data.n_classes] != data.class_names:
        which = next(i for i, pair in enumerate(zip(known, data.class_names, strict=False)) if pair[0] != pair[1])
        _say(
            f"label {which} of {data.name} is {data.class_names[which]!r}, output {which} of {loaded.spec!r} is {known[which]!r}:"
            " bring the labels into the order of the network"
        )


def class_names(model: nn.Module) -> tuple[str, ...]:
    """What a model calls its outputs, as those of transformers do; empty where it does not say."""
    names = getattr(getattr(model, "config", None), "id2label", None)
    if not isinstance(names, dict) or any(names.get(i) == f"LABEL_{i}" for i in names):
        return ()
    return tuple(str(names[i]) for i in sorted(names))


def most_frequent(data: DataSource) -> float:
    """The accuracy, in per cent, of always answering the class that is most frequent in the test data."""
    return 100.0 * float(np.bincount(data.y_test).max()) / len(data.y_test)


def is_chance(score: float, data: DataSource) -> bool:
    """Whether an accuracy, in per cent, is what a network could have that knows nothing of these classes.

    It is where always answering one class is as good, or where it is within two standard deviations of guessing among them.
    """
    n, n_classes = len(data.y_test), data.n_classes or 1
    guessed = 1.0 / n_classes
    lucky = guessed + 2.0 * float(np.sqrt(guessed * (1.0 - guessed) / n))
    return n_classes > 1 and score <= max(most_frequent(data), 100.0 * lucky)


def _in_order(data: DataSource) -> str:
    if not data.class_names:
        return ""
    shown = ", ".join(f"{name} = {label}" for label, name in enumerate(data.class_names[:N_SHOWN]))
    return f", folders in the order of their names ({shown}{' ...' if len(data.class_names) > N_SHOWN else ''})"


def _say(text: str) -> None:
    warnings.warn(text, L0PruneWarning, stacklevel=3)
