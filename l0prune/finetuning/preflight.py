"""What is looked at before a run changes or writes anything, by the library and the command line alike."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from l0prune.criteria.registry import criterion_names, load_criterion
from l0prune.errors import CheckpointError, ConfigError, DataError, TrainingError, first_line
from l0prune.finetuning.config import OPEN, FinetuneConfig
from l0prune.finetuning.counted import counted
from l0prune.finetuning.passes import Batches, count_batches, count_samples, first_rows, shapes
from l0prune.finetuning.runtime import Runtime, in_float32, send_home
from l0prune.finetuning.schedule import Phases, plan_phases
from l0prune.finetuning.settings import Settings, resolve
from l0prune.finetuning.suited import SuitedOptimizer, suited_optimizer
from l0prune.gated.decision import choose_open
from l0prune.gated.in_step import sizes_in_step
from l0prune.gated.model import GatedModel
from l0prune.goals.goal import Goal
from l0prune.goals.selection import covered
from l0prune.model_call import copy_of, evaluation_mode, set_mode
from l0prune.surgery.shrink import shrink, with_values
from l0prune.tasks.task import Task

__all__ = ["RunPlan", "preflight", "require_converging", "try_out"]


@dataclass(frozen=True, eq=False)
class RunPlan:
    """A run that can be made, as far as is seen without a step of it.

    Attributes:
        gated: The model with its gates, not frozen.
        batches: The training data.
        task: What the network is trained for.
        goal: What the compact network may cost, or what open gates do.
        settings: Everything else.
        phases: The run in steps.
        suited: The optimizer that suits the network, whichever is taken.
    """

    gated: GatedModel
    batches: Batches
    task: Task
    goal: Goal
    settings: Settings
    phases: Phases
    suited: SuitedOptimizer

    @property
    def trains_weights(self) -> bool:
        """Whether any weight takes a gradient; else the gates alone are trained."""
        return any(parameter.requires_grad for parameter in self.gated.parameters())


def preflight(gated: GatedModel, batches: Batches, *, task: Task, goal: Goal, config: FinetuneConfig) -> RunPlan:
    """Look over a run; nothing is changed.

    Args:
        gated: From `inject`.
        batches: As `finetune` takes them.
        task: As `finetune` takes it.
        goal: Budget or penalty; the samples of the latter are counted where they are not known.
        config: As `finetune` takes it.

    Raises:
        BudgetInfeasibleError: the budget is below what closing every gate can reach.
        ConfigError: an option, or the gated model's state, cannot work.
        DataError: the batches are empty, or cannot be iterated repeatedly.
        CheckpointError: weights are not finite.
    """
    batches = counted(batches, config.batches_per_epoch)
    suited = suited_optimizer(gated.model, gated.flow)
    settings = resolve(
        config,
        penalised=goal.cuts_as_trained,
        knows_widths=goal.knows_widths,
        steps_per_epoch=count_batches(batches),
        suited=suited.name,
    )
    phases = plan_phases(settings, count_batches(batches))
    goal = goal.over_samples(lambda: count_samples(batches, task)).with_depth(settings.depth)
    goal = goal.uniform(sizes_in_step(gated.model)) if config.uniform else goal
    plan = RunPlan(gated, batches, task, goal, settings, phases, suited)
    require_precision(gated.model)
    require_finite(gated.model)
    require_trainable(gated, goal)
    plan = replace(plan, settings=settings_for(plan, config))
    # Under costs in steps, or with branches, it is a search that takes long, and the goal has been checked.
    if not goal.branches(gated.costs) and not goal.knows_widths:
        choose_open(gated, goal, align=settings.align)
    return plan if plan.trains_weights else replace(plan, phases=phases.of_gates_alone())


def settings_for(plan: RunPlan, config: FinetuneConfig) -> Settings:
    """The settings of a run, after a look at the criteria and at where the gates are.

    Raises:
        ConfigError: a criterion does not fit the network or the task; or gates that somebody has placed are to start elsewhere.
    """
    settings, gated = plan.settings, plan.gated
    if settings.gate_start != OPEN and not gated.starts_open:
        if config.gate_start is not None:
            raise ConfigError(
                f"gate_start={config.gate_start} places the gates, which have been placed already, by droprate or by training:"
                " leave one of them out"
            )
        settings = replace(settings, gate_start=OPEN)
    if settings.closed_form and gated.flow.refusal:
        if config.closed_form:
            raise ConfigError(f"closed_form needs the graph of the model, and {gated.flow.refusal}: leave it out")
        settings = replace(settings, closed_form=False)
    for name in {settings.gate_start, settings.method} & set(criterion_names()):
        criterion = load_criterion(name)
        if criterion.needs_examples and (plan.task.in_training_only or not settings.salience_batches):
            why = "salience_batches=0 gives it none"
            if plan.task.in_training_only:
                why = f"the loss of {type(plan.task).__name__} exists in training only"
            raise ConfigError(f"criterion {name!r} looks at examples in evaluation mode, and {why}: choose another")
        criterion.check(gated)
    return settings


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


def try_out(plan: RunPlan, runtime: Runtime, *, is_taught: bool, rehearse: bool) -> Task:
    """Bring the model to the device of the run, and see that it takes two rows of a batch, before and after a cut.

    Args:
        plan: Of the run.
        runtime: Learns whether channels-last inputs can be used: not if the model works only without them.
        is_taught: Whether the dense network teaches.
        rehearse: Whether to try a cut.

    Returns:
        The task, calibrated on the outputs of the dense network.

    Raises:
        DataError: if the model cannot take the inputs, or the loss cannot take outputs and targets.
        ConfigError: if the loss is not a scalar, or there is none and nobody teaches; or the cut network cannot run.
    """
    gated = plan.gated
    inputs, targets = first_rows(plan.batches, plan.task)
    gated.to(runtime.device)
    runtime.channels_last = plan.settings.channels_last
    task = try_batch(gated, inputs, targets, plan.task, runtime, is_taught=is_taught)
    if rehearse and gated.n_gates:
        send_home(gated)
        rehearse_cut(gated, inputs, targets, task)
        gated.to(runtime.device)
    return task


def try_batch(gated: GatedModel, inputs: Any, targets: Any, task: Task, runtime: Runtime, *, is_taught: bool) -> Task:
    """Evaluate the loss on two rows, which changes nothing; see `try_out`."""
    wanted = (True, False) if runtime.channels_last else (False,)
    outputs: Any = None
    placed_targets: Any = None
    model = copy_of(gated.model).train() if task.in_training_only else gated
    with torch.no_grad(), nullcontext() if task.in_training_only else evaluation_mode(gated):
        for order in wanted:
            try:
                runtime.channels_last = order
                placed, placed_targets = runtime.place(inputs, targets)
                outputs = task.call(model, placed, placed_targets)
                break
            except DataError:
                raise
            except Exception as error:
                if order is wanted[-1]:
                    raise DataError(
                        f"the model cannot take a batch with inputs of shape {shapes(inputs)} ({first_line(error)}):"
                        " give batches with the model's input shape and type"
                    ) from error
        try:
            value = task.loss(in_float32(outputs), placed_targets)
        except (ConfigError, DataError):
            raise
        except Exception as error:
            raise DataError(
                f"the loss cannot take outputs of shape {shapes(outputs)} with targets of shape {shapes(targets)}"
                f" ({first_line(error)}): check that the targets fit the model and the loss"
            ) from error
    if value is None and not is_taught:
        raise ConfigError(f"{type(task).__name__} has no loss of its own and there is no teacher: give a teacher")
    if value is not None and (not isinstance(value, torch.Tensor) or value.dim() != 0):
        raise ConfigError(f"the loss returned {shapes(value) or 'nothing'}: expected a scalar tensor, such as a mean")
    return task.calibrated(in_float32(outputs), placed_targets)


def require_trainable(gated: GatedModel, goal: Goal) -> None:
    """See that there is something to learn.

    Raises:
        BudgetInfeasibleError: closing every gate costs more than a budget.
        ConfigError: if the gates are frozen, or there are none and less than everything is asked for; or if a penalty names
            a layer without gated inputs, or the gates need a budget.
    """
    if gated.frozen:
        raise ConfigError("the gates are frozen: call unfreeze(), or inject gates into the dense model again")
    bounds = goal.bounds(gated.costs)
    if gated.n_gates == 0 and not (bounds and all(bound.keep == 1 for bound in bounds)):
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
    scores = gated.gates.scores
    upper = np.argsort(np.argsort(scores)) >= gated.n_gates // 2
    kept = covered(upper, scores, gated.flow.dimensions)
    half = with_values(gated, kept.astype(np.float64))
    half.set_goal(None, None)  # of the copy: half of the gates may cost more
    compact = shrink(half)
    inputs, targets = pytree.tree_map_only(Tensor, Tensor.cpu, (inputs, targets))
    failure = _failure(compact, inputs, targets, task)
    if failure is not None and _failure(copy_of(gated.model), inputs, targets, task) is None:
        raise ConfigError(
            f"{type(gated.model).__name__} in training mode has a branch that it lacks in evaluation mode, which does not"
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
