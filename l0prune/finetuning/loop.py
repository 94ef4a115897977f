"""Fine-tuning under a budget or a penalty: `finetune` checks everything, then trains, freezes, cuts and recovers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from l0prune.errors import CheckpointError, ConfigError, RunDirectoryError
from l0prune.finetuning.checkpoints import checkpoint_exists, load_checkpoint
from l0prune.finetuning.config import FinetuneConfig, Settings
from l0prune.finetuning.journal import Journal, Progress, SilentProgress
from l0prune.finetuning.passes import Batches, count_batches, count_samples, first_rows
from l0prune.finetuning.preflight import (
    rehearse_cut,
    require_finite,
    require_precision,
    require_same_run,
    require_trainable,
    try_batch,
    weights_digest,
)
from l0prune.finetuning.results import Evaluate, FinetuneResult
from l0prune.finetuning.runtime import Runtime
from l0prune.finetuning.schedule import Phases, plan_phases
from l0prune.finetuning.trainer import Trainer
from l0prune.gated.decision import choose_open
from l0prune.gated.model import GatedModel
from l0prune.gates.optimizer import GateOptimizerConfig
from l0prune.goals.budget import Budget, one_goal
from l0prune.goals.goal import Goal
from l0prune.goals.penalty import Penalty
from l0prune.reading import reading
from l0prune.tasks.of_loss import Loss, LossTask
from l0prune.tasks.registry import load_task
from l0prune.tasks.task import Task
from l0prune.tasks.teaching import frozen_copy

__all__ = ["FinetuneConfig", "FinetuneResult", "finetune"]

AGAIN = "start the run again"


def finetune(
    gated: GatedModel,
    train_batches: Batches,
    *,
    loss: Loss | None = None,
    task: Task | str | None = None,
    budget: Budget | Sequence[Budget] | None = None,
    penalty: Penalty | None = None,
    config: FinetuneConfig | None = None,
    teacher: nn.Module | Literal[False] | None = None,
    evaluate: Evaluate | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> FinetuneResult:
    """Train gates and weights, cut the closed units away, and let the rest recover.

    The run has up to four parts: a warm-up with all gates open, the gate phase, the freeze (the best set of gates whose
    exact cost is within the budget; with a penalty, those that training left open), and the recovery of the compact
    network. The result is written back into `gated`, so that `gated` and the compact network compute the same. Under
    `accelerate launch` the processes share every batch.

    Args:
        gated: From `inject`; its gates must not be frozen. Its model is trained in place.
        train_batches: Iterable again and again, with a length, yields `(inputs, targets)`, or dicts with `labels`; inputs
            are a tensor, a tuple of positional or a dict of keyword tensors. `set_epoch(epoch)` is called before each pass
            where it exists.
        loss: `(outputs, targets)` to a scalar, the mean over the batch. Where it takes a softmax of an output the dense
            network teaches by softened classes there, else by the numbers; which it does is found by trying.
        task: Instead of a loss, what the network is for: a `Task`, or the name of one, such as "pixels".
        budget: What the compact network may cost, one bound or several; either this or `penalty`.
        penalty: A fixed price of open gates instead, in the L0 paper's units (`Penalty`): nothing is promised about the
            cost, and exactly the gates that training closed are cut.
        config: Lengths, optimizer, distillation ...; None takes the defaults.
        teacher: Network with the same outputs that teaches by them; None is a copy of the dense network as it is
            now, False trains without one.
        evaluate: Called with a network in evaluation mode (on the training device) at the end of each epoch, after the
            freeze and at the end; returns a number or figures by name, which go to the log and the result.
        out: Directory for metrics.jsonl and checkpoint/; None writes nothing.
        resume: Continue from the checkpoint in `out`, to the same result as without the interruption; `gated` must be
            injected into the dense model anew. Without a checkpoint there the run starts from the beginning.
        progress: Is told how far the run is; None is silent.

    Returns:
        The compact network, the gated one, and the figures; `budget_met` says whether the budget holds.

    Raises:
        BudgetInfeasibleError: the budget is below what closing every gate can reach; nothing was trained.
        ConfigError: both budget and penalty, or neither; both loss and task, or neither; an option, or the gated model's
            state, cannot work; a branch that runs in training mode only does not fit the cut network.
        DataError: the batches are empty, or do not fit the model or the loss.
        CheckpointError: weights are not finite, or the checkpoint is damaged or of another run.
        RunDirectoryError: `out` holds a checkpoint and `resume` is False.
        TrainingError: the loss is not finite; the last checkpoint stays.
        KeyboardInterrupt: with a message that says how to continue; the last checkpoint stays.
    """
    goal, task = one_goal(budget, penalty), _one_task(loss, task)
    settings = (FinetuneConfig() if config is None else config).resolved(penalised=goal.cuts_as_trained)
    progress = SilentProgress() if progress is None else progress
    directory = None if out is None else Path(out)
    steps_per_epoch = count_batches(train_batches)
    phases = plan_phases(settings, steps_per_epoch)
    if not any(parameter.requires_grad for parameter in gated.parameters()):
        phases = phases.of_gates_alone()
        progress.message(
            "no weight takes a gradient: the gates alone are trained, and nothing is recovered after the cut"
        )
    goal = goal.over_samples(lambda: count_samples(train_batches, task))
    continuing = resume and directory is not None and checkpoint_exists(directory / "checkpoint")
    _require_free(directory, resume=resume)
    require_precision(gated.model)
    require_finite(gated.model)
    if not continuing:
        require_trainable(gated, goal)
        choose_open(gated, goal, align=settings.align)
    runtime = Runtime(settings.mixed_precision)
    settings = replace(settings, align=runtime.from_main(settings.align))  # "auto" is measured by each process
    home = next((p.device for p in gated.model.parameters()), torch.device("cpu"))
    identity = {
        "config": settings.to_json(),
        **goal.record(),
        "n_samples": goal.n_samples,
        "steps_per_epoch": steps_per_epoch,
        "n_processes": runtime.n_processes,
        "dense_weights": weights_digest(gated.model),
    }
    try:
        with runtime.own_randomness():
            trainer = _trainer(
                gated,
                train_batches,
                task=task,
                goal=goal,
                settings=settings,
                teacher=teacher,
                evaluate=evaluate,
                directory=directory,
                phases=phases,
                runtime=runtime,
                identity=identity,
                progress=progress,
                rehearse=not continuing,
            )
            if continuing and directory is not None:
                checkpoint = load_checkpoint(directory / "checkpoint")
                with reading(directory, "run with a checkpoint", error=CheckpointError, remedy=AGAIN, folder=True):
                    require_same_run(checkpoint.trainer["identity"], identity)
                    trainer.restore(checkpoint)
                progress.message(f"resumed after step {trainer.step} of {phases.total}")
            trainer.run()
            return trainer.finish(home=home)
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(_how_to_continue(directory)) from interrupt
    finally:
        progress.finish()
        gated.to(home, memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def _trainer(
    gated: GatedModel,
    batches: Batches,
    *,
    task: Task,
    goal: Goal,
    settings: Settings,
    teacher: nn.Module | Literal[False] | None,
    evaluate: Evaluate | None,
    directory: Path | None,
    phases: Phases,
    runtime: Runtime,
    identity: dict[str, Any],
    progress: Progress,
    rehearse: bool,
) -> Trainer:
    """Everything on its device and tried once; nothing is trained or written yet."""
    inputs, targets = first_rows(batches, task)
    gated.to(runtime.device)
    is_taught = teacher is not False and settings.distillation > 0
    channels_last, task = try_batch(
        gated, inputs, targets, task, runtime, channels_last=settings.channels_last, taught=is_taught
    )
    if rehearse and gated.n_gates:
        gated.to("cpu")
        rehearse_cut(gated, inputs, targets, task)
        gated.to(runtime.device)
    order = torch.channels_last if channels_last else torch.contiguous_format
    taught_by = None
    if is_taught:
        taught_by = frozen_copy(teacher if isinstance(teacher, nn.Module) else gated.model)
        taught_by.to(runtime.device, memory_format=order)  # type: ignore[call-overload]
    optimizer = GateOptimizerConfig(lr=settings.gate_lr)
    gated.set_goal(goal, phases.gate, gate_optimizer=optimizer)
    runtime.broadcast_(gated)
    gated.to(memory_format=order)  # type: ignore[call-overload]
    home = directory if runtime.is_main else None
    journal = Journal(
        gated,
        goal,
        config=settings,
        phases=phases,
        runtime=runtime,
        evaluate=evaluate,
        metrics=None if home is None else home / "metrics.jsonl",
        progress=progress,
    )
    return Trainer(
        gated.train(),
        batches,
        task=task,
        teacher=taught_by,
        teaches_features=teacher is None and taught_by is not None and settings.feature_distillation > 0,
        goal=goal,
        config=settings,
        phases=phases,
        runtime=runtime,
        channels_last=channels_last,
        checkpoint=None if home is None else home / "checkpoint",
        identity=identity,
        journal=journal,
    )


def _one_task(loss: Loss | None, task: Task | str | None) -> Task:
    """What the network is trained for."""
    if (loss is None) == (task is None):
        found = "both a loss and a task are given" if task is not None else "nothing says what the network is for"
        raise ConfigError(f"{found}: give a loss such as F.cross_entropy, or a task such as 'classification'")
    if isinstance(task, str):
        return load_task(task)
    return task if task is not None else LossTask(loss)  # type: ignore[arg-type]


def _require_free(directory: Path | None, *, resume: bool) -> None:
    """A run that is not resumed must not mix with the traces of another one."""
    if directory is None:
        if resume:
            raise RunDirectoryError("resume needs `out`, the directory of the run to continue")
        return
    if directory.exists() and not directory.is_dir():
        raise RunDirectoryError(f"{directory} is a file: name a directory for the run")
    traces = checkpoint_exists(directory / "checkpoint") or (directory / "metrics.jsonl").exists()
    if traces and not resume:
        raise RunDirectoryError(
            f"{directory} already holds a run: pass resume=True to continue it, or name another directory"
        )


def _how_to_continue(directory: Path | None) -> str:
    if directory is None or not checkpoint_exists(directory / "checkpoint"):
        return "stopped before the first checkpoint; start the run again"
    return f"the last epoch's checkpoint is in {directory / 'checkpoint'}; resume the run to continue from it"
