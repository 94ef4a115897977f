"""What the tasks share whose network answers with a score for each class."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from l0prune.errors import ConfigError, DataError, L0PruneWarning
from l0prune.model_call import call
from l0prune.sources.datasets import Array
from l0prune.sources.stored import TokenRows
from l0prune.tasks.outputs import USUAL, chosen_output
from l0prune.tasks.task import Answer, Metric, Task
from l0prune.tasks.teaching import counted_mean, softened_divergence

if TYPE_CHECKING:
    from torch import nn

    from l0prune.sources.datasets import DataSource
    from l0prune.sources.model_spec import LoadedModel

__all__ = ["ACCURACY", "ClassLogits", "class_names", "classes_of", "is_chance"]

ACCURACY = Metric("accuracy", higher_is_better=True, unit="%")
N_SHOWN = 3


@dataclass(frozen=True)
class ClassLogits(Task):
    """Classes by cross-entropy; the dense network teaches by its softened classes.

    Args:
        output: Name of the output that holds the logits, where the network has several and none is called "logits".
        ignore: Targets of this number do not count; None counts all.
    """

    output: str | None = None
    ignore: int | None = None

    axis: ClassVar[int] = 1
    """Dimension of the classes in the logits; the targets have the others."""
    n_positions: ClassVar[tuple[int, ...]] = (0,)
    """Dimensions that the targets may have beside that of the batch; that many positions have a class each."""
    shapes: ClassVar[str] = "logits (N, C) and targets (N,)"
    """What fits, in words."""
    usual: ClassVar[tuple[str, ...]] = USUAL
    """Names of the output that need not be given."""

    @property
    def metric(self) -> Metric:
        """Accuracy in per cent of the targets that count."""
        return ACCURACY

    def aligned(self, outputs: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and the class that each of their predictions should be.

        Raises:
            DataError: they are of another number of dimensions, or of other sizes, than the task is about.
        """
        logits = chosen_output(outputs, self.output, usual=type(self).usual)
        self.require_shapes(logits, tuple(targets.shape))
        return logits, targets

    def require_shapes(self, logits: Tensor, targets: tuple[int, ...], *, sizes: bool = True, source: str = "") -> None:
        """See that logits are of what the targets are of.

        Args:
            logits: Of some rows.
            targets: Shape of the targets.
            sizes: Whether they are of the same rows, so that sizes have to agree as well; those of pixels are resized.
            source: What the targets come from, for the message.

        Raises:
            DataError: naming both shapes and those that are expected.
        """
        kind, found = type(self), tuple(logits.shape)
        fits = len(targets) - 1 in kind.n_positions and len(found) == len(targets) + 1
        if fits and sizes:
            own = [size for dim, size in enumerate(found) if dim != kind.axis % len(found)]
            fits = own[0] == targets[0] if kind.axis == 1 else own == list(targets)
        if not fits:
            raise DataError(
                f"task {task_name(kind)!r} takes {kind.shapes}, and the network gives {found} for targets {targets}{source}:"
                " choose another task, or give data or a network that fit it"
            )

    def counted(self, targets: Tensor) -> Tensor | None:
        """Which of the aligned targets count, bool of their shape; None where all do."""
        return None if self.ignore is None else targets != self.ignore

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """Cross-entropy, mean over the targets that count; 0 where none does."""
        logits, wanted = self.aligned(outputs, targets)
        counted = self.counted(wanted)
        if counted is None:
            return F.cross_entropy(logits.movedim(self.axis, 1), wanted)
        each = F.cross_entropy(logits.movedim(self.axis, 1), wanted.masked_fill(~counted, 0), reduction="none")
        return counted_mean(each, counted)

    def teach(self, outputs: Any, taught: Any, targets: Tensor, *, temperature: float) -> Tensor:
        """Divergence of the softened classes, mean over the targets that count."""
        (logits, wanted), (teacher, _) = self.aligned(outputs, targets), self.aligned(taught, targets)
        return softened_divergence(
            logits, teacher, axis=self.axis, temperature=temperature, counted=self.counted(wanted)
        )

    def weight(self, inputs: Any, targets: Tensor) -> float:
        """The number of targets that count; where all do, of rows."""
        return super().weight(inputs, targets) if self.ignore is None else float((targets != self.ignore).sum())

    def score(self, answers: Iterable[Answer]) -> float:
        """Share of the targets that count whose class has the largest logit, in [0, 100]."""
        right = total = 0
        for answer in answers:
            logits, wanted = self.aligned(answer.outputs, answer.targets)
            is_right, counted = logits.argmax(self.axis) == wanted, self.counted(wanted)
            right += int((is_right if counted is None else is_right & counted).sum())
            total += wanted.numel() if counted is None else int(counted.sum())
        return 100.0 * right / max(total, 1)

    def for_data(self, loaded: LoadedModel, data: DataSource) -> ClassLogits:
        """See that targets are numbers of classes, and that the model has an output for each; costs one call of the model.

        Raises:
            DataError: naming both numbers.

        Warns:
            L0PruneWarning: the model has other classes than the data, as far as can be seen: more of them, or the same names
                in another order.
        """
        n_classes = self.n_classes(data)
        takes_head = loaded.spec.startswith("hf:") and type(self).n_positions == (0,)
        try:
            logits = classes_of(loaded.model, loaded.example_inputs, self.output, usual=type(self).usual)
        except ConfigError as error:
            if self.output is None and takes_head:
                raise ConfigError(
                    f"{loaded.spec} has no head that gives classes: --num-labels {n_classes} puts one on it ({error})"
                ) from error
            raise
        targets = (len(logits), *data.y_train.shape[1:])
        self.require_shapes(logits, targets, sizes=False, source=f" of {data.name}")
        n_outputs = logits.shape[self.axis]
        if n_outputs < n_classes:
            how = f"num_classes={n_classes} (--model-arg num_classes={n_classes})"
            how = f"a new head (--num-labels {n_classes})" if takes_head else how
            raise DataError(
                f"{data.name} has {n_classes} classes, {loaded.spec!r} has {n_outputs} outputs; build it with {how}."
            )
        if n_outputs > n_classes and data.class_names and type(self).warns_of_spare_outputs:
            shown = f"{', '.join(data.class_names[:N_SHOWN])}{' ...' if n_classes > N_SHOWN else ''}"
            raise DataError(
                f"{data.name} has {n_classes} classes ({shown}), {loaded.spec!r} has {n_outputs} outputs, and nothing says"
                " which of them these are: call the classes as the network calls its outputs, or give their numbers in a JSON"
                " file (--class-map FILE)"
            )
        if n_outputs > n_classes and type(self).warns_of_spare_outputs:
            _say(
                f"{data.name} has {n_classes} classes, {loaded.spec!r} has {n_outputs} outputs: label 0 is taken for output 0"
                " and so on. Are these the first of the classes that the network knows?"
            )
        known = class_names(loaded.model)
        if known and data.class_names and known[:n_classes] != data.class_names:
            which = next(i for i, pair in enumerate(zip(known, data.class_names, strict=False)) if pair[0] != pair[1])
            _say(
                f"label {which} of {data.name} is {data.class_names[which]!r}, output {which} of {loaded.spec!r} is"
                f" {known[which]!r}: put the labels into the order of the network"
            )
        return self

    warns_of_spare_outputs: ClassVar[bool] = True

    def n_classes(self, data: DataSource) -> int:
        """Classes of a data set: as many as it says, or as it has.

        Raises:
            DataError: targets are no numbers of classes.
        """
        if data.y_train.dtype != np.int64:
            raise DataError(f"{data.name}: targets have type {data.y_train.dtype}, expected class numbers.")
        labels = [self.labels(y) for y in (data.y_train, data.y_test)]
        if not all(map(len, labels)):
            raise DataError(f"{data.name}: every target is {self.ignore}, which does not count.")
        low, high = min(int(y.min()) for y in labels), max(int(y.max()) for y in labels)
        n_classes = high + 1 if data.n_classes is None else data.n_classes
        if low < 0 or high >= n_classes:
            raise DataError(
                f"{data.name}: labels range from {low} to {high}, expected 0 to {max(n_classes - 1, 0)}; "
                "number the classes from 0."
            )
        return n_classes

    def labels(self, y: Array) -> Array:
        """The targets that count, in one row."""
        y = y.numbers() if isinstance(y, TokenRows) else y.reshape(-1)
        return y if self.ignore is None else y[y != self.ignore]

    def doubts(self, score: float, data: DataSource) -> str | None:
        """Whether an accuracy is one that chance would give."""
        labels = self.labels(data.y_test)
        if self.metric is not ACCURACY or not is_chance(score, labels, self.n_classes(data)):
            return None
        return (
            f"CAREFUL: the dense network is right on {score:.2f} % of {data.name}, no better than chance: one class alone is "
            f"{most_frequent(labels):.2f} % of it. Before you trust what follows, look at the order of the labels against its "
            "outputs, at the normalisation (--mean, --std) and at the weights (--weights)"
        )


def task_name(kind: type[Task]) -> str:
    """What a task is called on the command line: as its file is."""
    return kind.__module__.rpartition(".")[2].replace("_", "-")


def class_names(model: nn.Module) -> tuple[str, ...]:
    """What a model calls its outputs, as those of transformers do; empty where it does not say."""
    names = getattr(getattr(model, "config", None), "id2label", None)
    if not isinstance(names, dict) or any(names.get(i) == f"LABEL_{i}" for i in names):
        return ()
    return tuple(str(names[i]) for i in sorted(names))


@torch.no_grad()
def classes_of(model: nn.Module, inputs: Any, output: str | None = None, *, usual: Sequence[str] = USUAL) -> Tensor:
    """The logits of a model for some inputs; `output` and `usual` as in `ClassLogits`."""
    return chosen_output(call(model, inputs), output, usual=usual)


def most_frequent(labels: Array) -> float:
    """The accuracy, in per cent, of always answering the class that is most frequent among labels (N,)."""
    return 100.0 * float(np.bincount(labels).max()) / len(labels)


def is_chance(score: float, labels: Array, n_classes: int) -> bool:
    """Whether an accuracy, in per cent, is what a network could have that knows nothing of these classes.

    It is where always answering one class is as good, or where it is within two standard deviations of guessing among them.

    Args:
        score: The accuracy.
        labels: What it was reached on, (N,).
        n_classes: Classes that could have been answered.
    """
    guessed = 1.0 / n_classes
    lucky = guessed + 2.0 * float(np.sqrt(guessed * (1.0 - guessed) / len(labels)))
    return n_classes > 1 and score <= max(most_frequent(labels), 100.0 * lucky)


def _say(text: str) -> None:
    warnings.warn(text, L0PruneWarning, stacklevel=3)
