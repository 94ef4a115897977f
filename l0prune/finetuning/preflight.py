"""What is looked at before a run changes or writes anything."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from l0prune.errors import CheckpointError, ConfigError, DataError, TrainingError, first_line
from l0prune.finetuning.config import FinetuneConfig
from l0prune.finetuning.passes import place, shapes
from l0prune.finetuning.runtime import Runtime, in_float32
from l0prune.gated.model import GatedModel
from l0prune.goals.goal import Goal
from l0prune.goals.selection import covered
from l0prune.model_call import copy_of, evaluation_mode, set_mode
from l0prune.surgery.shrink import shrink, with_values
from l0prune.tasks.task import Task

__all__ = [
    "rehearse_cut",
    "require_converging",
    "require_finite",
    "require_precision",
    "require_same_run",
    "require_trainable",
    "try_batch",
    "weights_digest",
]


def require_finite(model: nn.Module) -> None:
    """See that all weights are numbers.

    Raises:
        CheckpointError: names the first tensor that holds NaN or infinity.
    """
    name = _not_finite(model.state_dict())
    if name is not None:
        raise CheckpointError(f"{name!r} holds NaN or infinity before training: load sound weights")


def require_precision(model: nn.Module) -> None:
    """See that the weights can take steps.

    Raises:
        ConfigError: names the first weight in float16: its gradients underflow, and a step is lost in its rounding.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype == torch.float16:
            raise ConfigError(
                f"{name!r} is in float16, in which gradients underflow: convert the model with float() before it is traced; for"
                " the speed of half precision set mixed_precision"
            )


def require_converging(tensors: Mapping[str, Any], *, step: int, option: str, lr: float) -> None:
    """See that training has left numbers.

    Args:
        tensors: What was trained, or follows from it, by name; anything but floating-point tensors is passed over.
        step: Steps done.
        option: Name of the learning rate it was trained with last.
        lr: Its peak.

    Raises:
        TrainingError: names the first tensor that holds NaN or infinity, and what to lower.
    """
    name = _not_finite(tensors)
    if name is not None:
        raise TrainingError(
            f"training diverged: {name!r} holds NaN or infinity after step {step}; lower {option} (now {lr:g}), or set"
            " grad_clip=1"
        )


def _not_finite(tensors: Mapping[str, Any]) -> str | None:
    """Name of the first floating-point tensor that holds NaN or infinity."""
    for name, tensor in tensors.items():
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            return name
    return None


def weights_digest(model: nn.Module) -> str:
    """Hash of all names and values of a model's state dict, whatever device and memory order they have."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def try_batch(
    gated: GatedModel, inputs: Any, targets: Any, task: Task, runtime: Runtime, *, channels_last: bool, taught: bool
) -> tuple[bool, Task]:
    """Evaluate the loss on two rows, which changes nothing.

    Args:
        gated: On the runtime's device.
        inputs: Two rows of a batch.
        targets: Theirs.
        task: What the model is trained for.
        runtime: Device and precision.
        channels_last: Whether the run wants channels-last inputs.
        taught: Whether the dense network teaches.

    Returns:
        Whether channels-last inputs may be used: False if the model works only without them. And the task, calibrated on
        the outputs.

    Raises:
        DataError: if the model cannot take the inputs, or the loss cannot take outputs and targets.
        ConfigError: if the loss is not a scalar, or there is none and nobody teaches.
    """
    wanted = (True, False) if channels_last else (False,)
    outputs: Any = None
    targets = place(targets, runtime.device, channels_last=False)
    model = copy_of(gated.model).train() if task.in_training_only else gated
    with torch.no_grad(), nullcontext() if task.in_training_only else evaluation_mode(gated):
        for order in wanted:
            try:
                outputs = task.call(model, place(inputs, runtime.device, channels_last=order), targets)
                break
            except Exception as error:
                if order is wanted[-1]:
                    raise DataError(
                        f"the model cannot take a batch with inputs of shape {shapes(inputs)} ({first_line(error)}):"
                        " give batches with the model's input shape and type"
                    ) from error
        try:
            value = task.loss(in_float32(outputs), targets)
        except ConfigError:
            raise
        except Exception as error:
            raise DataError(
                f"the loss cannot take outputs of shape {shapes(outputs)} with targets of shape {shapes(targets)}"
                f" ({first_line(error)}): see that the targets fit the model and the loss"
            ) from error
    if value is None and not taught:
        raise ConfigError(f"{type(task).__name__} has no loss of its own, and nobody teaches: give a teacher")
    if value is not None and (not isinstance(value, torch.Tensor) or value.dim() != 0):
        raise ConfigError(f"the loss returned {shapes(value) or 'nothing'}: expected a scalar tensor, such as a mean")
    return order, task.calibrated(in_float32(outputs), targets)


def require_same_run(saved: Mapping[str, Any], present: Mapping[str, Any]) -> None:
    """See that a checkpoint is resumed with what it was made with.

    Args:
        saved: Identity of the run in the checkpoint: plain values, `config` those of `Settings` in this or an earlier version.
        present: Identity of the run that wants to go on.

    Raises:
        CheckpointError: names what differs, found and expected.
    """
    before, now = (dict(identity) for identity in (saved, present))
    asked, settings = (
        FinetuneConfig.from_json(identity.pop("config")).resolved(penalised=identity.get("penalty") is not None)
        for identity in (before, now)
    )
    for known in asked.differing(settings):
        before[known.name], now[known.name] = getattr(asked, known.name), getattr(settings, known.name)
    differing = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    if "dense_weights" in differing:
        raise CheckpointError(
            "the model has other weights than the run began with: load the same checkpoint and inject gates again"
            " before resuming (training changes the model in place)"
        )
    if differing:
        listed = ", ".join(f"{key} was {before.get(key)!r} and is {now.get(key)!r}" for key in differing)
        raise CheckpointError(f"the run cannot be resumed with other settings: {listed}; use the ones it began with")


def require_trainable(gated: GatedModel, goal: Goal) -> None:
    """See that there is something to learn.

    Raises:
        BudgetInfeasibleError: closing every gate costs more than a budget.
        ConfigError: if the gates are frozen, or there are none and less than everything is asked for; or if a penalty names
            a layer without gated inputs, or the gates need a budget.
    """
    if gated.frozen:
        raise ConfigError("the gates are frozen: call unfreeze(), or inject gates into the dense model again")
    if gated.n_gates == 0 and not goal.leaves_dense(gated.costs):
        raise ConfigError(
            "the model has no gates, so nothing can be cut: `l0prune inspect` shows what is pinned and why"
        )
    goal.check(gated.costs, gated.gates)


def rehearse_cut(gated: GatedModel, inputs: Any, targets: Any, task: Task) -> None:
    """See that the network will be there to recover after the cut, which is otherwise known only after the gate phase.

    The cut follows the network in evaluation mode. A branch that runs in training mode only, such as an auxiliary
    classifier, does not fit the network that was cut.

    Args:
        gated: On the CPU; not changed.
        inputs: Two rows of a batch.
        targets: Theirs.
        task: What it is trained for.

    Raises:
        ConfigError: the cut network cannot run in training mode although the dense one can.
        EquivalenceError: the network cannot be cut.
    """
    scores = gated.gates.log_alpha.detach().double().cpu().numpy()
    upper = np.argsort(np.argsort(scores)) >= gated.n_gates // 2
    kept = covered(upper, scores, gated.flow.dimensions)
    half = with_values(gated, kept.astype(np.float64))
    half.set_goal(None, None)  # of the copy: half of the gates may cost more
    compact = shrink(half)
    inputs, targets = (place(part, torch.device("cpu"), channels_last=False) for part in (inputs, targets))
    failure = _failure(compact, inputs, targets, task)
    if failure is not None and _failure(copy_of(gated.model), inputs, targets, task) is None:
        raise ConfigError(
            f"{type(gated.model).__name__} in training mode has a branch that it has not in evaluation mode, which does not"
            f" fit the network that will be cut ({first_line(failure, named=True)}): switch the branch off, or keep what"
            " feeds it with `ignore`"
        ) from failure


def _failure(model: nn.Module, inputs: Any, targets: Any, task: Task) -> Exception | None:
    """What a training step of a model that is not needed any more fails with."""
    set_mode(model, training=True)
    try:
        with torch.no_grad():
            task.loss(task.call(model, inputs, targets), targets)
    except Exception as error:  # noqa: BLE001 - whatever a branch meets that does not fit
        return error
    return None
