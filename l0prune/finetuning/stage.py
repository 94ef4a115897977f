"""One optimizer step of a stage: forward, task and teacher, backward, weights, gates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from l0prune.errors import TrainingError
from l0prune.finetuning.features import FeatureReader, FeatureSite, feature_loss
from l0prune.finetuning.optimization import GatedDecay, GradientClip, build_optimizer
from l0prune.finetuning.runtime import Runtime, in_float32
from l0prune.finetuning.settings import Settings
from l0prune.gated.model import GatedModel
from l0prune.tasks.task import Model, Task

__all__ = ["LossMeans", "LossWindow", "Losses", "Stage"]


@dataclass(frozen=True)
class Losses:
    """What one step minimised, detached scalars.

    Attributes:
        total: Everything, penalty included.
        task: The task's part before weighting, or None where the teacher's is all.
        distillation: The teacher's part before weighting, or None.
        features: What its features add before weighting, or None.
    """

    total: Tensor
    task: Tensor | None
    distillation: Tensor | None
    features: Tensor | None = None


class Stage:
    """A network in training with its optimizer: the gated one before the freeze, the compact one after it.

    Args:
        model: What is trained; a `GatedModel` also moves its gates.
        task: What it is trained for.
        teacher: Teaches by its outputs, or None.
        config: Weights of the losses and the optimizer's settings.
        runtime: Device, precision, processes.
        sites: Blocks that the teacher also teaches by its features.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        task: Task,
        teacher: nn.Module | None,
        config: Settings,
        runtime: Runtime,
        sites: Sequence[FeatureSite] = (),
    ) -> None:
        self.model = model
        self.gated = model if isinstance(model, GatedModel) else None
        self._decay = GatedDecay(self.gated, config.weight_decay) if self.gated and config.gated_weight_decay else None
        elsewhere = self._decay.parameters if self._decay is not None else ()
        self.optimizer = build_optimizer(model, config, lr=0.0, elsewhere=elsewhere)
        self._parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.optimizer.zero_grad(set_to_none=True)  # of what the network was trained in before
        self._clip = GradientClip(config.grad_clip, config.grad_spike)
        self._task = task
        self._sites = sites
        self._read = FeatureReader(model, sites)
        self._read_teacher = None if teacher is None else FeatureReader(teacher, sites)
        self._config = config
        self._runtime = runtime

    def step(self, inputs: Any, targets: Any, *, lr: float, weight: float = 1.0) -> Losses:
        """Train on one batch.

        Args:
            inputs: A tensor, a tuple of positional or a dict of keyword tensors, on the device.
            targets: Of the batch.
            lr: Learning rate of this step, >= 0.
            weight: Factor of the loss of this process's part of the batch.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        losses, objective = self._losses(inputs, targets, weight)
        if objective.requires_grad:
            self._runtime.scaler.scale(objective).backward()
        self._runtime.average_gradients_(self._parameters)
        self._update()
        return losses

    def objective(self, inputs: Any, targets: Any) -> Tensor:
        """What a step on this batch would differentiate, a scalar, scaled as half precision needs it."""
        return self._runtime.scaler.scale(self._losses(inputs, targets, 1.0)[1])

    def state_dict(self) -> dict[str, Any]:
        """Optimizer, loss scale and norms of gradients, tensors and plain values."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._runtime.scaler.state_dict(),
            "clip": self._clip.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.optimizer.load_state_dict(state["optimizer"])
        self._runtime.scaler.load_state_dict(state["scaler"])
        self._clip.load_state_dict(state["clip"])

    def _losses(self, inputs: Any, targets: Any, weight: float) -> tuple[Losses, Tensor]:
        """All losses, and the scalar to differentiate."""

        def call(model: Model) -> Any:
            return in_float32(self._task.call(model, inputs, targets))

        taught: Any = None
        wanted: dict[str, Tensor] = {}
        with self._runtime.autocast():
            if self._read_teacher is not None:
                with torch.no_grad():
                    taught, wanted = self._read_teacher(call)
            outputs, features = self._read(call)
        task, distillation, hints = self._task.loss(outputs, targets), None, None
        if self._read_teacher is not None:
            temperature = self._config.distillation_temperature
            distillation = self._task.teach(outputs, taught, targets, temperature=temperature)
        total = self._blended(task, distillation)
        sites = [site for site in self._sites if site.module in features]
        if sites:
            hints = feature_loss(sites, features, wanted)
            total = total + self._config.feature_distillation * hints
        objective = total if weight == 1.0 else total * weight
        if self.gated is not None:
            penalty = self.gated.penalty() if self._decay is None else self.gated.penalty() + self._decay()
            total, objective = total.detach() + penalty.detach(), objective + penalty
        parts = [None if part is None else part.detach() for part in (task, distillation, hints)]
        return Losses(total.detach(), *parts), objective

    def _blended(self, task: Tensor | None, distillation: Tensor | None) -> Tensor:
        """Loss of the task and the teacher's by their weights; one of them alone where the other does not exist."""
        share = self._config.distillation
        if task is not None and distillation is not None:
            return (1 - share) * task + share * distillation
        return distillation if task is None else task  # type: ignore[return-value]

    def _update(self) -> None:
        """Move weights, then gates; a step whose scaled half-precision gradients overflowed moves neither."""
        scaler = self._runtime.scaler
        scale = scaler.get_scale()
        if self._parameters:
            scaler.unscale_(self.optimizer)
            self._clip(self._parameters)
            scaler.step(self.optimizer)
            scaler.update()
        if self.gated is not None and not self.gated.gates.unscale_gradient_(scale) and not self._parameters:
            scaler.update(scale / 2)  # no weight tells the scaler of the overflow
        if self.gated is not None:
            self.gated.step()
        self.optimizer.zero_grad(set_to_none=True)


@dataclass(frozen=True)
class LossMeans:
    """Means of `Losses` over several steps; None where there are none."""

    total: float
    task: float | None
    distillation: float | None
    features: float | None


class LossWindow:
    """Losses since the last log line; kept on the device, so that a step need not wait for its numbers."""

    def __init__(self) -> None:
        self._losses: list[Losses] = []

    def add(self, losses: Losses) -> None:
        """Take in one step."""
        self._losses.append(losses)

    def state_dict(self) -> list[dict[str, Tensor | None]]:
        """The losses by name, step by step."""
        return [dict(vars(losses)) for losses in self._losses]

    def load_state_dict(self, state: list[dict[str, Any]], device: torch.device) -> None:
        """Continue from `state_dict`, on a device."""
        moved: list[Any] = [
            {name: loss if loss is None else loss.to(device) for name, loss in one.items()} for one in state
        ]
        self._losses = [Losses(**one) for one in moved]

    def means(self, *, last_step: int, lr: float, phase: str) -> LossMeans:
        """Means since the last call; the window is empty afterwards.

        Args:
            last_step: Number of the last step taken in, counted from 1.
            lr: Its learning rate.
            phase: Its phase.

        Raises:
            TrainingError: if a loss is not finite; names the first such step.
        """
        losses, self._losses = self._losses, []
        total = torch.stack([loss.total for loss in losses]).double()
        if not bool(torch.isfinite(total).all()):
            first = int((~torch.isfinite(total)).nonzero()[0])
            rate = "lr" if phase in ("warmup", "gate") else "lr or recovery_lr"
            raise TrainingError(
                f"the loss is {float(total[first])} at step {last_step - len(losses) + first + 1} ({phase} phase,"
                f" learning rate {lr:.3g}): lower {rate}, set grad_clip=1,"
                " or train without mixed precision; check that inputs, targets and weights are finite"
            )
        parts = zip(*((loss.task, loss.distillation, loss.features) for loss in losses), strict=True)
        return LossMeans(float(total.mean()), *map(_mean, parts))


def _mean(losses: Sequence[Tensor | None]) -> float | None:
    """Of those there are; None if there is none."""
    there = [loss for loss in losses if loss is not None]
    return float(torch.stack(there).double().mean()) if there else None
