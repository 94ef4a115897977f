"""A task: the one place that knows what the outputs of a network and the targets of its data mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from l0prune.errors import DataError
from l0prune.model_call import call, evaluation_mode, plain_mappings

if TYPE_CHECKING:
    from l0prune.sources.datasets import DataSource
    from l0prune.sources.model_spec import LoadedModel

__all__ = ["Answer", "Metric", "Model", "Task", "batch_size", "only"]

Model = nn.Module | Callable[..., Any]
"""A module, or what stands for one, such as an ONNX file."""
LABELS = ("labels", "label")
"""What the targets are called in a batch that is a dict, as collators of transformers make it."""


@dataclass(frozen=True)
class Metric:
    """What a network is judged by.

    Args:
        name: As it is printed and written.
        higher_is_better: Its direction.
        unit: "%", or nothing.
    """

    name: str
    higher_is_better: bool
    unit: str = ""


@dataclass(frozen=True, eq=False)
class Answer:
    """What a network made of one batch.

    Attributes:
        outputs: As the task's `call` returns them.
        targets: Of the batch.
        taught: What the dense network makes of it, where the task compares with that.
        weight: Of the batch in a mean.
    """

    outputs: Any
    targets: Any
    taught: Any
    weight: float


class Task:
    """What a network is trained for and judged by.

    A task of your own overrides `loss`, and whatever else differs. It has no state: everything that training changes is in
    the network.

    Attributes:
        pairs: Whether each entry of the data is a pair of inputs: arrays (N, 2, ...).
        in_training_only: Whether only calls in training mode return what the loss takes.
    """

    pairs: bool = False
    in_training_only: bool = False

    @property
    def metric(self) -> Metric:
        """What `score` returns."""
        return Metric("loss", higher_is_better=False)

    @property
    def compares(self) -> bool:
        """Whether the score compares a network with the dense one."""
        return False

    def split(self, batch: Any) -> tuple[Any, Any]:
        """Split a batch into inputs and targets: a pair, or a dict with `labels`, whose other entries are the inputs.

        Raises:
            DataError: the batch is neither.
        """
        if isinstance(batch, (tuple, list)) and len(batch) == 2:
            return plain_mappings(batch[0]), batch[1]
        if isinstance(batch, Mapping):
            inputs = dict(plain_mappings(batch))
            name = next((name for name in LABELS if name in inputs), None)
            return self.unlabelled(inputs) if name is None else (inputs, inputs.pop(name))
        return self.unlabelled(batch)

    def unlabelled(self, batch: Any) -> tuple[Any, Any]:
        """Inputs and targets of a batch that comes without targets.

        Raises:
            DataError: the task needs them.
        """
        is_sequence = isinstance(batch, (tuple, list))
        found = f"a sequence of {len(batch)}" if is_sequence else f"a {type(batch).__name__}"
        named = f" with {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else ""
        raise DataError(
            f"a batch is {found}{named}: expected a pair (inputs, targets), or a dict with {LABELS[0]!r} among the inputs"
        )

    def call(self, model: Model, inputs: Any, targets: Any = None) -> Any:
        """A model's outputs for a batch, in the form that `loss`, `teach` and `score` take.

        Args:
            model: In training or evaluation mode.
            inputs: A tensor, a tuple of positional or a dict of keyword arguments.
            targets: For a network that computes its own loss.
        """
        del targets
        return call(model, inputs)

    def loss(self, outputs: Any, targets: Any) -> Tensor | None:
        """What is minimised: a scalar, the mean over what `weight` counts; None if the dense network alone teaches."""
        raise NotImplementedError(f"{type(self).__name__} has no loss")

    def teach(self, outputs: Any, taught: Any, targets: Any, *, temperature: float) -> Tensor | None:
        """How far the outputs are from the dense network's, a scalar, the mean over what `weight` counts.

        Args:
            outputs: The student's; gradients flow through them.
            taught: The teacher's.
            targets: The batch's; they say what is padding.
            temperature: Temperature of softened classes, > 0.

        Returns:
            None if outputs teach nothing.
        """
        del outputs, taught, targets, temperature
        return None

    def weight(self, inputs: Any, targets: Any) -> float:
        """How much a batch counts in a mean over several: the number of its rows."""
        return float(self.n_rows(inputs, targets))

    def n_rows(self, inputs: Any, targets: Any) -> int:
        """Entries in a batch."""
        del targets
        return batch_size(inputs)

    def calibrated(self, outputs: Any, targets: Any) -> Task:
        """The task, completed with what it measures on the dense network before a run.

        Args:
            outputs: The dense network's, for a few rows.
            targets: Theirs.
        """
        del outputs, targets
        return self

    def for_data(self, loaded: LoadedModel, data: DataSource) -> Task:
        """The task for a model and its data, after checking that they fit.

        Raises:
            DataError: they do not.
        """
        del loaded, data
        return self

    def doubts(self, score: float, data: DataSource) -> str | None:
        """What to check if a trained network scores no better than one that knows nothing; None if it does better."""
        known = self.chance(data)
        if known is None:
            return None
        metric, (least, how) = self.metric, known
        if math.isfinite(score) and (score > least if metric.higher_is_better else score < least):
            return None
        return (
            f"CAREFUL: {metric.name} of the dense network is {score:.4g} on {data.name}, no better than chance: {how} gives"
            f" {least:.4g}. Before you trust what follows, look at the data (the order of labels, the tokenizer), at the"
            " normalisation (--mean, --std) and at the weights (--weights)"
        )

    def chance(self, data: DataSource) -> tuple[float, str] | None:
        """The score that knowing nothing of the inputs gives, and how; None where that is not known."""
        del data
        return None

    def score(self, answers: Iterable[Answer]) -> float:
        """The metric over all batches of a data set, at least one; by default the mean loss."""
        total = n = 0.0
        for answer in answers:
            loss = self.loss(answer.outputs, answer.targets)
            total += 0.0 if loss is None else float(loss) * answer.weight
            n += answer.weight
        return total / max(n, 1.0)

    def evaluate(self, model: Model, batches: Iterable[Any], *, dense: Model | None = None) -> float:
        """Score of a model.

        Args:
            model: A module, evaluated in evaluation mode and left in the mode it was in; or a callable.
            batches: What `split` takes, on the model's device.
            dense: The network to compare with, if the score `compares`.

        Raises:
            DataError: there is no batch.
        """
        with evaluation_mode(model) if isinstance(model, nn.Module) else nullcontext(), torch.no_grad():
            answers = self._answers(model, batches, dense if self.compares else None)
            first = next(answers, None)
            if first is None:
                raise DataError("the data set is empty: there is nothing to evaluate.")
            return self.score(_chained(first, answers))

    def _answers(self, model: Model, batches: Iterable[Any], dense: Model | None) -> Iterator[Answer]:
        for batch in batches:
            inputs, targets = self.split(batch)
            outputs = _beside(self.call(model, inputs, targets), targets)
            taught = None if dense is None else self.call(dense, inputs, targets)
            yield Answer(outputs, targets, taught, self.weight(inputs, targets))


def batch_size(inputs: Any) -> int:
    """Rows of the first tensor in `inputs`.

    Raises:
        DataError: if there is none.
    """
    for leaf in pytree.tree_leaves(inputs):
        if isinstance(leaf, Tensor) and leaf.dim():
            return leaf.shape[0]
    raise DataError(f"the inputs of a batch are a {type(inputs).__name__} without a tensor that has rows")


def only(batch: Any) -> Any:
    """A batch, or what it holds where that is one thing in a list, as loaders make it of a data set without targets."""
    return plain_mappings(batch[0] if isinstance(batch, (tuple, list)) and len(batch) == 1 else batch)


def _chained(first: Answer, others: Iterator[Answer]) -> Iterator[Answer]:
    yield first
    yield from others


def _beside(outputs: Any, targets: Any) -> Any:
    """The outputs on the device of the targets: a file of another runtime answers on the CPU."""
    device = next((leaf.device for leaf in pytree.tree_leaves(targets) if isinstance(leaf, Tensor)), None)
    if device is None or device.type == "cpu":
        return outputs
    return pytree.tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, outputs)
