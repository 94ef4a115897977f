"""Fine-tuning under a budget or a penalty: `finetune` checks everything, then trains, freezes, cuts and recovers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from l0prune.errors import CheckpointError, ConfigError, RunDirectoryError
from l0prune.finetuning.checkpoints import Store, checkpoint_exists, recorded_settings, weights_digest
from l0prune.finetuning.config import OPTIMIZERS, FinetuneConfig
from l0prune.finetuning.counted import counted, require_repeatable
from l0prune.finetuning.journal import Journal, Progress, SilentProgress
from l0prune.finetuning.passes import first_rows
from l0prune.finetuning.preflight import RunPlan, preflight, try_out
from l0prune.finetuning.results import Evaluate, FinetuneResult
from l0prune.finetuning.runtime import Runtime, send_home
from l0prune.finetuning.settings import continued
from l0prune.finetuning.trainer import Teacher, Trainer
from l0prune.flow.trace import trace
from l0prune.gated.model import GatedModel, inject
from l0prune.gates.optimizer import GateOptimizerConfig
from l0prune.goals.budget import Budget, one_goal
from l0prune.goals.penalty import Penalty
from l0prune.model_call import plain_mappings
from l0prune.reading import reading
from l0prune.tasks.of_loss import Loss, LossTask
from l0prune.tasks.registry import load_task
from l0prune.tasks.task import Task
from l0prune.tasks.teaching import frozen_copy

__all__ = ["FinetuneConfig", "FinetuneResult", "finetune", "train"]

AGAIN = "start the run again"
_FAST = 10
"""Times the usual rate from which on a rate is likely meant for another optimizer."""


def finetune(
    gated: nn.Module,
    train_batches: Iterable[Any],
    *,
    loss: Loss | None = None,
    task: Task | str | None = None,
    budget: Budget | Sequence[Budget] | None = None,
    penalty: Penalty | None = None,
    config: FinetuneConfig | None = None,
    teacher: nn.Module | Literal[False] | None = None,
    evaluate: Evaluate | Iterable[Any] | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> FinetuneResult:
    """Train gates and weights, cut the closed units out, and let the rest recover.

    The run has up to four parts: a warm-up with all gates open, the gate phase, the freeze (the best set of gates whose
    exact cost is within the budget; with a penalty, those that training left open), and the recovery of the compact
    network. The result is written back into `gated`, so that `gated` and the compact network compute the same. Under
    `accelerate launch` the processes share every batch.

    Args:
        gated: From `inject`; its gates must not be frozen. Its model is trained in place. A model without gates gets them, traced
            with the first rows of the first batch.
        train_batches: Such as a DataLoader: can be iterated repeatedly, and yields `(inputs, targets)`, or dicts with `labels`;
            inputs are a tensor, a tuple of positional tensors or a dict of keyword tensors. Where it has no length, the batches
            of a pass are counted. `Batches` says what a resumed run expects of it.
        loss: `(outputs, targets)` to a scalar, the mean over the batch. An output of which it takes a softmax is taught by
            softened classes, any other by its numbers; which of the two applies is found out by trying.
        task: What the network is for, given instead of a loss: a `Task`, or the name of one, such as "pixels".
        budget: What the compact network may cost, as one or several bounds; give either this or `penalty`.
        penalty: A fixed price of open gates instead, in the L0 paper's units (`Penalty`): nothing is promised about the
            cost, and exactly the gates that training closed are cut.
        config: Lengths, optimizer, distillation ...; None takes the defaults. A run that goes on has what it began with where
            an option is None, or all are.
        teacher: Network with the same outputs, which teaches by them; None uses a copy of the dense network as it is
            now, False trains without a teacher.
        evaluate: Called with a network in evaluation mode (on the training device) at the end of each epoch, after the
            freeze and at the end; returns a number or figures by name, which go to the log and the result. Or batches, such as a
            DataLoader of test data, on which the task's score is taken.
        out: Directory for metrics.jsonl and checkpoint/; None writes nothing.
        resume: Continue from the checkpoint in `out`, with the same result as without the interruption; `gated` must be
            freshly injected into the dense model. If there is no checkpoint, the run starts from the beginning.
        progress: Is told how far the run has got; None is silent.

    Returns:
        The compact network, the gated one, and the figures; `budget_met` says whether the budget holds.

    Raises:
        BudgetInfeasibleError: even closing every gate does not meet the budget; nothing was trained.
        ConfigError: both budget and penalty, or neither; both loss and task, or neither; an option or the gated model's
            state is unusable; a branch that runs only in training mode does not fit the cut network.
        DataError: the batches are empty, or do not fit the model or the loss.
        CheckpointError: weights are not finite, or the checkpoint is damaged or belongs to another run.
        RunDirectoryError: `out` holds a checkpoint and `resume` is False.
        TrainingError: the loss is not finite; the last checkpoint is kept.
        KeyboardInterrupt: with a message that says how to continue; the last checkpoint is kept.
    """
    chosen = _one_task(loss, task)
    began = recorded_settings(Path(out)) if resume and out is not None else None
    if began is not None:
        config = continued(config, began)
    config = FinetuneConfig() if config is None else config
    goal = one_goal(budget, penalty)
    batches = counted(train_batches, config.batches_per_epoch)
    if not isinstance(gated, GatedModel):
        inputs, _ = first_rows(batches, chosen)
        gated = inject(gated, trace(gated, inputs), seed=config.seed)
    plan = preflight(gated, batches, task=chosen, goal=goal, config=config)
    return train(plan, teacher=teacher, evaluate=evaluate, out=out, resume=resume, progress=progress)


def train(
    plan: RunPlan,
    *,
    teacher: nn.Module | Literal[False] | None = None,
    evaluate: Evaluate | Iterable[Any] | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> FinetuneResult:
    """`finetune` where the run has been looked over already.

    Args:
        plan: From `preflight`.
        teacher: As `finetune` takes it.
        evaluate: As `finetune` takes it.
        out: As `finetune` takes it.
        resume: As `finetune` takes it.
        progress: As `finetune` takes it.
    """
    progress = SilentProgress() if progress is None else progress
    directory = None if out is None else Path(out)
    _require_free(directory, resume=resume)
    if not plan.trains_weights:
        progress.message(
            "no weight takes a gradient: only the gates are trained, and nothing is recovered after the cut"
        )
    gated, runtime = plan.gated, Runtime(plan.settings.mixed_precision)
    align = runtime.from_main(plan.settings.align)  # "auto" is measured by each process
    plan = replace(plan, settings=replace(plan.settings, align=align))
    store = Store(directory, _identity(plan, runtime), writes=runtime.is_main)
    continuing = resume and directory is not None and checkpoint_exists(directory / "checkpoint")
    home = next((p.device for p in gated.model.parameters()), torch.device("cpu"))
    try:
        with runtime.own_randomness():
            is_taught = teacher is not False and plan.settings.distillation > 0
            task = try_out(plan, runtime, is_taught=is_taught, rehearse=not continuing)
            plan = replace(plan, task=task)
            taught_by = _teacher(plan, teacher, runtime) if is_taught else None
            moved = GateOptimizerConfig(lr=plan.settings.gate_lr, by_evidence=plan.settings.gate_training == "evidence")
            gated.set_goal(plan.goal, max(1, plan.phases.gate), gate_optimizer=moved)
            runtime.broadcast_(gated)
            runtime.take_(gated.train())
            metrics = directory / "metrics.jsonl" if directory is not None and runtime.is_main else None
            trainer = Trainer(
                plan,
                runtime=runtime,
                journal=Journal(plan, metrics=metrics, progress=progress),
                store=store,
                teacher=taught_by,
                evaluate=_judge(evaluate, plan, runtime),
            )
            if continuing and directory is not None:
                with reading(directory, "run with a checkpoint", error=CheckpointError, remedy=AGAIN, folder=True):
                    trainer.restore(store.load())
                progress.message(f"resumed after step {trainer.step} of {plan.phases.total}")
            else:
                progress.message(how_weights_move(plan))
            trainer.run()
            return trainer.finish(home=home)
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(_how_to_continue(directory)) from interrupt
    finally:
        progress.finish()
        send_home(gated, home)


def how_weights_move(plan: RunPlan) -> str:
    """Optimizer and rate of the weights, and what the network has to do with them."""
    settings, suited = plan.settings, plan.suited
    said = f"{settings.optimizer} moves the weights, at a peak rate of {settings.lr:g}"
    usual = OPTIMIZERS[settings.optimizer]["lr"]
    if settings.lr > _FAST * usual:
        said += f" (CAREFUL: many times its usual {usual:g})"
    if settings.optimizer == suited.name:
        return f"{said}: {suited.because}"
    return f"{said}; by itself the network would get {suited.name}: {suited.because}"


def _identity(plan: RunPlan, runtime: Runtime) -> dict[str, Any]:
    """What a resume must agree with."""
    return {
        "config": plan.settings.to_json(),
        **plan.goal.record(),
        "n_samples": plan.goal.n_samples,
        "steps_per_epoch": plan.phases.steps_per_epoch,
        "n_processes": runtime.n_processes,
        "dense_weights": weights_digest(plan.gated.model),
    }


def _teacher(plan: RunPlan, given: nn.Module | Literal[False] | None, runtime: Runtime) -> Teacher:
    """The network that is given, or the dense one as it is now."""
    model = frozen_copy(given if isinstance(given, nn.Module) else plan.gated.model)
    runtime.take_(model)
    return Teacher(model, by_features=given is None and plan.settings.feature_distillation > 0, is_dense=given is None)


def _judge(evaluate: Evaluate | Iterable[Any] | None, plan: RunPlan, runtime: Runtime) -> Evaluate | None:
    """What judges a network: the task's score, where batches are given."""
    if evaluate is None or callable(evaluate):
        return evaluate
    task, batches, name = plan.task, evaluate, plan.task.metric.name
    require_repeatable(batches, "evaluate")
    dense = frozen_copy(plan.gated.model) if task.compares else None
    if dense is not None:
        runtime.take_(dense)

    def placed() -> Iterator[Any]:
        for batch in batches:
            yield runtime.place(plain_mappings(batch), None)[0]

    return lambda model: {name: task.evaluate(model, placed(), dense=dense)}


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
    return f"the last checkpoint is in {directory / 'checkpoint'}; resume the run to continue from it"
