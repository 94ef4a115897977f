"""What the dense network returns, whatever it is: nothing has to be known about it, and no targets are needed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from l0prune.errors import ConfigError
from l0prune.model_call import call
from l0prune.tasks.outputs import named_outputs
from l0prune.tasks.task import Answer, Metric, Model, Task, only
from l0prune.tasks.teaching import squared_difference

__all__ = ["Match"]

MASK = "attention_mask"


@dataclass(frozen=True)
class Match(Task):
    """Every floating-point output as the dense network has it; the dense network alone teaches.

    Where an input is called `attention_mask`, what outputs hold for the tokens that it leaves out does not count.

    Args:
        scales: What squares of each output are measured by; empty until it is measured on the dense network's own.
    """

    scales: tuple[float, ...] = ()

    @property
    def metric(self) -> Metric:
        """Norm of the difference over the norm of what the dense network returns."""
        return Metric("relative_error", higher_is_better=False)

    @property
    def compares(self) -> bool:
        """With the dense network."""
        return True

    def unlabelled(self, batch: Any) -> tuple[Any, None]:
        """All of it is inputs."""
        return only(batch), None

    def call(self, model: Model, inputs: Any, targets: Any = None) -> dict[str, Tensor]:
        """Floating-point outputs by name, (N, ...), or (tokens, ...) of those that count."""
        del targets
        outputs = named_outputs(call(model, inputs))
        mask = inputs.get(MASK) if isinstance(inputs, Mapping) else None
        floating = {name: value for name, value in outputs.items() if value.is_floating_point()}
        if mask is None:
            return floating
        counted = mask != 0
        return {name: value[counted] if value.shape[:2] == mask.shape else value for name, value in floating.items()}

    def calibrated(self, outputs: dict[str, Tensor], targets: Any) -> Match:
        """With the mean square of each output."""
        del targets
        squares = [float(value.double().square().mean()) for value in outputs.values() if value.numel()]
        return replace(self, scales=tuple(square if 0 < square < math.inf else 1.0 for square in squares))

    def loss(self, outputs: Any, targets: Any) -> None:
        """Nothing but what the dense network teaches."""
        del outputs, targets

    def teach(self, outputs: Any, taught: Any, targets: Any, *, temperature: float) -> Tensor:
        """Mean over the outputs of their squared differences, each by its scale."""
        del targets, temperature
        return torch.stack(
            [
                squared_difference(student, teacher, scale=1.0 if scale is None else scale)
                for student, teacher, scale in _together(outputs, taught, self.scales)
            ]
        ).mean()

    def weight(self, inputs: Any, targets: Any) -> float:
        """Tokens that count, where inputs have a mask; rows elsewhere."""
        mask = inputs.get(MASK) if isinstance(inputs, Mapping) else None
        return super().weight(inputs, targets) if mask is None else float((mask != 0).sum())

    def score(self, answers: Iterable[Answer]) -> float:
        """Over all outputs and inputs."""
        error = size = 0.0
        for answer in answers:
            for student, teacher, _ in _together(answer.outputs, answer.taught, ()):
                error += float((student.double() - teacher.double()).square().sum())
                size += float(teacher.double().square().sum())
        return math.sqrt(error / size) if size else math.sqrt(error)


def _together(outputs: dict[str, Tensor], taught: dict[str, Tensor], scales: tuple[float, ...]) -> list[Any]:
    """Outputs of student and teacher in their order, each with its scale or None."""
    if not taught or len(outputs) < len(taught):
        raise ConfigError(
            f"the dense network returns {', '.join(taught) or 'no floating-point tensor'}, the one that is taught"
            f" {', '.join(outputs) or 'none'}: give a network with the same outputs"
        )
    pairs = zip(outputs.values(), taught.values(), strict=False)
    return [(student, teacher, scale) for (student, teacher), scale in zip_longest(pairs, scales[: len(taught)])]
