"""The loss that a network computes itself, when it is given the targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from l0prune.errors import ConfigError
from l0prune.model_call import call, split_inputs
from l0prune.tasks.outputs import named_outputs
from l0prune.tasks.task import Model, Task, batch_size

__all__ = ["OwnLoss"]


@dataclass(frozen=True)
class OwnLoss(Task):
    """Targets are one more argument; the network returns a loss, an object or a dict with `loss`, or a dict of losses.

    Networks of transformers take `labels` in both modes. The detectors of torchvision take `targets` and return losses in
    training mode alone (`argument="targets", in_training_only=True`); such a network is judged by an `evaluate` of its own.
    The dense network teaches by features alone.

    Args:
        argument: Name of the argument.
        in_training_only: Whether targets are given, and the loss is there, in training mode only.
    """

    argument: str = "labels"
    in_training_only: bool = False

    def split(self, batch: Any) -> tuple[Any, Any]:
        """As ever; a list of inputs, with a list of targets, is one argument."""
        inputs, targets = super().split(batch)
        if isinstance(targets, (list, tuple)) and isinstance(inputs, (list, tuple)) and len(inputs) == len(targets):
            return (list(inputs),), list(targets)
        return inputs, targets

    def n_rows(self, inputs: Any, targets: Any) -> int:
        """Of targets in a list, its length."""
        return len(targets) if isinstance(targets, list) else batch_size(inputs)

    def call(self, model: Model, inputs: Any, targets: Any = None) -> Any:
        """With the targets where the network wants them."""
        is_training = isinstance(model, nn.Module) and model.training
        if targets is None or not (is_training or not self.in_training_only):
            return call(model, inputs)
        args, kwargs = split_inputs(inputs, model)
        return model(*args, **kwargs, **{self.argument: targets})

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """What the network says: its loss, or the sum of its losses.

        Raises:
            ConfigError: it says nothing of the kind.
        """
        del targets
        if isinstance(outputs, Tensor) and outputs.dim() == 0:
            return outputs
        named = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
        if isinstance(named, Tensor):
            return named
        losses = list(outputs.values()) if isinstance(outputs, Mapping) else []
        if losses and all(isinstance(value, Tensor) and value.dim() == 0 for value in losses):
            total: Tensor = sum(losses[1:], start=losses[0])
            return total
        raise ConfigError(
            f"the network was given {self.argument} and returned no loss, but {', '.join(named_outputs(outputs)) or 'nothing'}:"
            " have it return a scalar, `loss`, or a dict of scalars"
        )
