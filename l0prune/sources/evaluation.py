"""Accuracy of a classifier, and whether its outputs fit the classes of the data."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from l0prune.errors import DataError
from l0prune.sources.datasets import DataSource
from l0prune.sources.model_spec import LoadedModel

__all__ = ["accuracy", "check_classes", "logits_of"]


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
    with _evaluating(model), torch.no_grad():
        for inputs, targets in batches:
            predicted = logits_of(_call(model, inputs)).argmax(-1)
            right += int((predicted == targets.to(predicted.device)).sum())
            total += targets.numel()
    if total == 0:
        raise DataError("the data set is empty: there is nothing to evaluate.")
    return 100.0 * right / total


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Eval mode for a while, then each module's own mode again."""
    if not isinstance(model, nn.Module) or not any(module.training for module in model.modules()):
        yield
        return
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        model.train(modes[0][1])
        for module, mode in modes:
            module.training = mode


def logits_of(output: Any) -> Tensor:
    """The logits in a model's output: itself, its `logits`, or its first part."""
    if isinstance(output, Tensor):
        return output
    if hasattr(output, "logits"):
        return logits_of(output.logits)
    if isinstance(output, Mapping):
        return logits_of(output["logits"] if "logits" in output else next(iter(output.values())))
    if isinstance(output, tuple | list):
        return logits_of(output[0])
    return torch.as_tensor(output)


def check_classes(loaded: LoadedModel, data: DataSource) -> None:
    """Refuse data with more classes than the model has outputs; costs one call of the model.

    Raises:
        DataError: naming both numbers.
    """
    if not data.has_classes or data.n_classes is None:
        return
    with torch.no_grad():
        outputs = logits_of(_call(loaded.model, loaded.example_inputs)).shape[-1]
    if outputs < data.n_classes:
        raise DataError(
            f"{data.name} has {data.n_classes} classes, {loaded.spec!r} has {outputs} outputs; build it with "
            f"num_classes={data.n_classes} (--model-arg num_classes={data.n_classes})."
        )


def _call(model: Callable[..., Any], inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)
