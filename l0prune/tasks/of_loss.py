"""The task that a loss alone makes: what the dense network teaches is found by trying the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from l0prune.errors import ConfigError
from l0prune.tasks.outputs import named_outputs
from l0prune.tasks.task import Task
from l0prune.tasks.teaching import softened_divergence, squared_difference

__all__ = ["Lesson", "Loss", "LossTask"]

Loss = Callable[[Any, Any], Tensor]
"""(outputs, targets) to a scalar, the mean over the batch."""
SIZES = (1.0, 10.0, 100.0)
"""How large noise is, in standard deviations of an output, until the loss notices it."""
BLIND = 1e-3
"""A loss does not notice a change that moves it by less than this share of what noise of the same size does."""


@dataclass(frozen=True)
class Lesson:
    """What is taught by one output.

    Args:
        name: Of the output.
        axis: Dimension of its classes; None where it holds numbers.
        scale: What squares of its numbers are measured by.
    """

    name: str
    axis: int | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class LossTask(Task):
    """A loss of the user's.

    An output holds classes along an axis if the loss does not notice that a number is added to all of them, as no loss does that
    takes their softmax: there the dense network teaches by softened classes, in all other outputs by their numbers.

    Args:
        function: (outputs, targets) to a scalar, the mean over the batch.
        lessons: What each output teaches; found by `calibrated`.
        teaching: Instead of that, (outputs, outputs of the teacher) to a scalar, the mean over the batch.
    """

    function: Loss
    lessons: tuple[Lesson, ...] = ()
    teaching: Callable[[Any, Any], Tensor] | None = None

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """What the function says."""
        return self.function(outputs, targets)

    def calibrated(self, outputs: Any, targets: Any) -> LossTask:
        """With what the dense network teaches: by the outputs that the loss reads, or by all where it reads none."""
        if self.teaching is not None:
            return self
        named = {name: value for name, value in named_outputs(outputs).items() if value.is_floating_point()}
        tried = {name: self._axes(value, outputs, targets) for name, value in named.items()}
        read = {name: axes for name, axes in tried.items() if axes is not None} or {name: [] for name in named}
        lessons = [
            Lesson(name, axis=axes[0]) if axes else _of_numbers(name, named[name]) for name, axes in read.items()
        ]
        return replace(self, lessons=tuple(lessons))

    def teach(self, outputs: Any, taught: Any, targets: Any, *, temperature: float) -> Tensor:
        """Mean over the outputs that teach.

        Raises:
            ConfigError: one of them is missing, or has another shape.
        """
        del targets
        if self.teaching is not None:
            return self.teaching(outputs, taught)
        student, teacher = list(named_outputs(outputs).values()), named_outputs(taught)
        # in training mode a network may return more: what it always returns comes first
        places = {name: place for place, name in enumerate(teacher)}
        missing = [lesson.name for lesson in self.lessons if places.get(lesson.name, len(student)) >= len(student)]
        if missing or not self.lessons:
            raise ConfigError(
                f"there is no output {', '.join(missing) or 'with numbers'} to teach by: give a teacher with the same outputs,"
                " or set distillation=0"
            )
        parts = [
            squared_difference(student[places[lesson.name]], teacher[lesson.name], scale=lesson.scale)
            if lesson.axis is None
            else softened_divergence(
                student[places[lesson.name]], teacher[lesson.name], axis=lesson.axis, temperature=temperature
            )
            for lesson in self.lessons
        ]
        return parts[0] if len(parts) == 1 else torch.stack(parts).mean()

    @torch.no_grad()
    def _axes(self, value: Tensor, outputs: Any, targets: Any) -> list[int] | None:
        """The axes along which the loss is blind to a constant; None where it does not read this output at all."""
        generator = torch.Generator().manual_seed(0)
        spread = float(value.float().std()) if value.numel() > 1 else 0.0
        spread = spread if 0 < spread < float("inf") else 1.0
        plain, noticed = self._tried(outputs, targets), 0.0
        for spread in (size * spread for size in SIZES):  # a network that is very sure of itself does not feel a little
            noticed = abs(
                self._changed(value, spread * _noise(value.shape, value, generator), outputs, targets) - plain
            )
            if noticed != 0:
                break
        if noticed == 0:
            return None
        axes = []
        for axis in range(1, value.dim()):
            shape = [1 if dim == axis else size for dim, size in enumerate(value.shape)]
            moved = self._changed(value, spread * _noise(shape, value, generator), outputs, targets)
            is_blind = abs(moved - plain) <= BLIND * noticed
            if value.shape[axis] > 1 and (is_blind or _are_log_probabilities(value, axis)):
                axes.append(axis)
        return axes

    def _changed(self, value: Tensor, change: Tensor, outputs: Any, targets: Any) -> float:
        """The loss with an output changed, which is then as it was."""
        kept = value.clone()
        try:
            value.add_(change)
            return self._tried(outputs, targets)
        finally:
            value.copy_(kept)

    def _tried(self, outputs: Any, targets: Any) -> float:
        return float(self.function(outputs, targets))


def _noise(shape: Any, like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64).to(like)


def _are_log_probabilities(value: Tensor, axis: int) -> bool:
    """Whether the exponentials along an axis sum to 1, as after a log-softmax, which undoes itself."""
    total = value.double().logsumexp(axis)
    return bool((total.abs() < BLIND).all())


def _of_numbers(name: str, value: Tensor) -> Lesson:
    """Squares are measured by those of the dense network, so that the unit of the output does not matter."""
    square = float(value.double().square().mean()) if value.numel() else 0.0
    return Lesson(name, scale=square if 0 < square < float("inf") else 1.0)
