"""A fine-tuning run from request to result: check everything, begin on disk, train, note how it ended."""

import os
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from l0prune.cli.case import Case
from l0prune.cli.flags import chosen
from l0prune.cli.loading import gated_model_of, load, load_case, require_from_scratch, require_weights
from l0prune.cli.output import note, progress_for_stderr
from l0prune.cli.process import Interrupted
from l0prune.cli.request import FinetuneRequest, ModelOptions, RunOptions
from l0prune.cli.trust import FactoryCall, data_call, model_call, remember, require_typed, task_call
from l0prune.errors import ConfigError, RunDirectoryError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from l0prune.finetuning.preflight import RunPlan
    from l0prune.finetuning.results import FinetuneResult
    from l0prune.goals.goal import Goal
    from l0prune.run_directory import RunDirectory

__all__ = ["begin", "resume_run"]


@dataclass(frozen=True, eq=False)
class Prepared:
    """A run whose every part has been looked at.

    Args:
        request: With all defaults written out.
        case: Model, data and task.
        plan: What the library is asked for, looked over.
        dense_score: Score of the dense model on the test data.
        doubts: What speaks against that score, or None.
    """

    request: FinetuneRequest
    case: Case
    plan: "RunPlan"
    dense_score: float
    doubts: str | None


def begin(out: Path, request: FinetuneRequest, *, argv: Sequence[str], overwrite: bool) -> dict[str, Any] | None:
    """Start a run.

    Args:
        out: Directory of the run.
        request: What to do.
        argv: The command line, for the record.
        overwrite: Replace a run that is there.

    Returns:
        The figures of the finished run as plain data; None in a process that is not the main one.

    Raises:
        L0PruneError: nothing was written.
        Interrupted: Ctrl-C; the message says how to continue.
    """
    from l0prune.run_directory import RunDirectory

    if is_main_process():
        RunDirectory(out).require_free(overwrite=overwrite)
    prepared = prepare(request)
    for call in calls_of(request.model, request.run):
        remember(call)
    if is_main_process():
        out.mkdir(parents=True, exist_ok=True)
        with RunDirectory(out).locked():
            run = RunDirectory.create(
                out, argv=argv, **prepared.request.to_record(), seed=prepared.request.training.seed, overwrite=overwrite
            )
            return train(run, prepared, resume=False)
    return train(RunDirectory(out), prepared, resume=False)


def resume_run(out: Path, typed: Mapping[str, Any], *, trust: bool = False) -> dict[str, Any] | None:
    """Continue a run to the same result it would have had.

    Args:
        out: Directory of the run.
        typed: Options of the command line by name, which may repeat what the run began with.
        trust: Whether factories may run that only its run.json names.

    Returns:
        As `begin`.

    Raises:
        RunDirectoryError: if there is no run, or it has finished.
        UntrustedCodeError: if it takes code that the user has not typed.
        ConfigError: if something typed differs from what the run began with.
    """
    from l0prune.run_directory import RunDirectory

    run = RunDirectory.open(out)
    record = run.read()
    request = FinetuneRequest.from_record(record)
    request.require_same(typed)
    if record.status == "finished":
        raise RunDirectoryError(f"{out}: the run has finished; go on with `l0prune shrink {out}`")
    named = calls_of(request.model, request.run)
    now = calls_of(chosen(ModelOptions, dict(typed)), chosen(RunOptions, dict(typed)))
    for call, typed_call in zip(named, now, strict=True):
        if call == typed_call:
            remember(call)
    require_typed(named, run.record_path, trust=trust)
    prepared = prepare(request)
    if is_main_process():
        with run.locked():
            run.set_status("running")
            return train(run, prepared, resume=True)
    return train(run, prepared, resume=True)


def calls_of(model: ModelOptions, run: RunOptions) -> tuple[FactoryCall | None, ...]:
    """The factories that model, data and task come from; None for what is no code of a user."""
    return model_call(model), data_call(run.data), task_call(run.task, run.task_args)


def prepare(request: FinetuneRequest) -> Prepared:
    """Load, trace and check everything a run needs; writes nothing.

    Raises:
        L0PruneError: names what cannot work and what to do.
    """
    from l0prune.finetuning.preflight import preflight
    from l0prune.gates.registry import gate_distribution
    from l0prune.goals.by_layer import read_by_layer

    run, settings = request.run, request.settings  # whose numbers are checked before anything is loaded
    goal = goal_of(run)
    droprate = read_by_layer(run.droprate_init) if run.droprate_init else None
    gate_distribution(run.gate, **run.gate_args)
    if run.from_scratch:
        require_from_scratch(request.model)
        if settings.distillation:
            raise ConfigError(
                "--from-scratch starts with an untrained network, which has nothing to teach: no distillation"
            )
    else:
        require_weights(request.model)
    choose_device(run.device)
    loaded = load(request.model, seed=request.initial_seed)
    case = load_case(loaded, request.model, run.data, task=run.task, task_args=run.task_args)
    request = request.resolved(augment=case.augments, task=case.task_spec)
    batches = case.train_batches(batch_size=run.batch_size, augment=bool(request.run.augment), seed=settings.seed)
    gated = gated_model_of(loaded, request, droprate=droprate)
    goal = goal.over_samples(lambda: len(case.data.y_train))
    plan = preflight(gated, batches, task=case.task, goal=goal, config=request.training)
    dense_score = case.score(loaded.model)
    note(f"{request.model.spec}: {gated.n_gates} gates; dense {case.task.metric.name} {dense_score:.4g}")
    doubts = None if run.from_scratch else case.doubts(dense_score)
    if doubts:
        note(doubts)
    return Prepared(request, case, plan, dense_score, doubts)


def train(run: "RunDirectory", prepared: Prepared, *, resume: bool) -> dict[str, Any] | None:
    """Train in a directory that has its run.json; note there how it ended."""
    from l0prune.finetuning.loop import train as finetune

    with noting_the_end(run):
        result = finetune(
            prepared.plan,
            evaluate=prepared.case.evaluate,
            out=run.path,
            resume=resume,
            progress=progress_for_stderr() if is_main_process() else None,
        )
    if not is_main_process():
        return None
    figures = figures_of(prepared, result)
    run.set_status("finished", result=figures)
    return {"run": str(run.path), "model": prepared.request.model.spec, **figures}


def goal_of(options: RunOptions) -> "Goal":
    """What is asked for.

    Raises:
        ConfigError: if it is not exactly one of budget and penalty, or cannot be read.
    """
    import l0prune
    from l0prune.goals.budget import Budgets, one_goal

    budget = Budgets.parse(options.budget) if options.budget else None
    return one_goal(budget, l0prune.Penalty.parse(options.penalty) if options.penalty else None)


@contextmanager
def noting_the_end(run: "RunDirectory") -> "Iterator[None]":
    """Keep run.json true when training ends early; a run without a checkpoint leaves nothing behind."""
    from l0prune.finetuning.checkpoints import checkpoint_exists

    try:
        yield
    except KeyboardInterrupt as interrupt:
        if not is_main_process():
            raise
        if not checkpoint_exists(run.checkpoint):
            run.discard()
            raise Interrupted("before the first epoch ended, so nothing is kept; start the run again") from interrupt
        run.set_status("interrupted")
        raise Interrupted(f"continue with `l0prune finetune --out {quote(str(run.path))} --resume`") from interrupt
    except Exception:  # whatever ends the run is written down, and raised again
        if is_main_process():
            run.discard()
            if run.record_path.exists():
                run.set_status("failed")
        raise


def figures_of(prepared: Prepared, result: "FinetuneResult") -> dict[str, Any]:
    """What a finished run is remembered by, plain JSON values."""
    from l0prune.surgery.record import surgery_of

    costs = prepared.plan.gated.costs
    before, after = costs.amounts(), costs.amounts(prepared.plan.gated.hard_cost)
    record = surgery_of(result.compact)
    about = prepared.case.described()
    return {
        **result.to_json(),
        "from_scratch": prepared.request.run.from_scratch,
        **about,
        "dense": prepared.dense_score,
        "doubts": prepared.doubts,
        "final": result.evaluation[about["metric"]],
        **{f"{metric}_before": amount for metric, amount in before.items()},
        **{f"{metric}_after": amount for metric, amount in after.items()},
        "params_before": sum(parameter.numel() for parameter in prepared.plan.gated.model.parameters()),
        "params_after": sum(parameter.numel() for parameter in result.compact.parameters()),
        "form": record.form,
        "not_in_place_because": record.not_in_place_because,
        "integers_left": record.integers_left,
    }


def choose_device(device: str) -> None:
    """Tell accelerate where to compute.

    Raises:
        ConfigError: if a GPU is asked for and there is none.
    """
    if device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ConfigError("--device cuda: this machine has no GPU that torch can use; choose cpu or auto")


def is_main_process() -> bool:
    """Whether this is the process that writes and prints, of those `accelerate launch` has started."""
    return int(os.environ.get("RANK", "0")) == 0
