"""A fine-tuning run from request to result: check everything, begin on disk, train, note how it ended."""

import os
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from l0prune.cli.flags import chosen
from l0prune.cli.model_options import ModelOptions
from l0prune.cli.prepared import Prepared, calls_of, is_main_process, prepare
from l0prune.cli.process import Interrupted
from l0prune.cli.progress import progress_for_stderr
from l0prune.cli.request import FinetuneRequest, RunOptions
from l0prune.cli.trust import remember, require_typed
from l0prune.errors import ConfigError, RunDirectoryError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from l0prune.finetuning.results import FinetuneResult
    from l0prune.run_directory import RunDirectory
    from l0prune.sweep_directory import SweepDirectory

__all__ = [
    "begin",
    "noting_how_the_whole_ends",
    "require_one_process",
    "require_typed_calls",
    "resume_run",
    "train",
    "train_or_resume",
]


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
            run = RunDirectory.create(out, argv=argv, overwrite=overwrite, **prepared.request.to_record())
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
    require_typed_calls(request, typed, run.record_path, trust=trust)
    prepared = prepare(request)
    if is_main_process():
        with run.locked():
            run.set_status("running")
            return train(run, prepared, resume=True)
    return train(run, prepared, resume=True)


def require_typed_calls(request: FinetuneRequest, typed: Mapping[str, Any], source: Path, *, trust: bool) -> None:
    """See that what is resumed takes no code that the user has not typed, now or before; what is typed now is remembered.

    Args:
        request: What is resumed.
        typed: Options of the command line by name.
        source: The file that names it.
        trust: Whether factories may run that only this file names.

    Raises:
        UntrustedCodeError: it does.
    """
    named = calls_of(request.model, request.run)
    now = calls_of(chosen(ModelOptions, dict(typed)), chosen(RunOptions, dict(typed)))
    for call, typed_call in zip(named, now, strict=True):
        if call == typed_call:
            remember(call)
    require_typed(named, source, trust=trust)


def train_or_resume(run: "RunDirectory", prepared: Prepared, *, argv: Sequence[str], part_of: str) -> dict[str, Any]:
    """Bring a run that is part of something larger to its end, from wherever it stands.

    Args:
        run: Its directory, which may not be there yet.
        prepared: What it is.
        argv: The command line, for the record.
        part_of: The command that continues the whole.

    Returns:
        Its figures; those that were written down where it has ended already.
    """
    from l0prune.run_directory import RunDirectory

    begun = run.record_path.exists()
    if begun:
        record = run.read()
        if record.status == "finished" and record.result is not None:
            return record.result
        run.set_status("running")
    else:
        run = RunDirectory.create(run.path, argv=argv, **prepared.request.to_record())
    train(run, prepared, resume=begun, part_of=part_of)
    return run.read().result or {}


def train(
    run: "RunDirectory", prepared: Prepared, *, resume: bool, part_of: str | None = None
) -> dict[str, Any] | None:
    """Train in a directory that has its run.json; note there how it ended.

    Args:
        run: The directory.
        prepared: What to train.
        resume: Continue from its checkpoint, if there is one.
        part_of: The command that continues what the run is part of; None if it stands alone.
    """
    from l0prune.finetuning.loop import train as finetune

    with noting_the_end(run, part_of):
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


@contextmanager
def noting_how_the_whole_ends(whole: "RunDirectory | SweepDirectory", again: str) -> "Iterator[None]":
    """Keep the record of what has runs of its own true when it ends early.

    Args:
        whole: Its directory.
        again: The command that continues it.
    """
    try:
        yield
    except KeyboardInterrupt as interrupt:
        whole.set_status("interrupted")
        raise Interrupted(f"continue with `{again}`") from interrupt
    except Exception:  # whatever ends it is written down, and raised again
        whole.set_status("failed")
        raise


def require_one_process(what: str) -> None:
    """See that no other process shares the work.

    Raises:
        ConfigError: one does.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            f"{what} runs in one process: leave out `accelerate launch`, or launch `l0prune finetune` for each budget"
        )


@contextmanager
def noting_the_end(run: "RunDirectory", part_of: str | None = None) -> "Iterator[None]":
    """Keep run.json true when training ends early; a run without a checkpoint leaves nothing behind.

    Args:
        run: The directory.
        part_of: As of `train`.
    """
    from l0prune.finetuning.checkpoints import checkpoint_exists

    try:
        yield
    except KeyboardInterrupt as interrupt:
        if not is_main_process():
            raise
        if not checkpoint_exists(run.checkpoint):
            run.discard()
            nothing = "before the first checkpoint, so nothing is kept; start the run again"
            raise Interrupted(f"continue with `{part_of}`" if part_of else nothing) from interrupt
        run.set_status("interrupted")
        command = part_of or f"l0prune finetune --out {quote(str(run.path))} --resume"
        raise Interrupted(f"continue with `{command}`") from interrupt
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
        "held_out": prepared.request.run.held_out,
        "n_scored": prepared.case.n_test,
        "from_scratch": prepared.request.run.from_scratch,
        **about,
        "dense": prepared.dense_score,
        "doubts": "\n".join(filter(None, (prepared.doubts, *result.doubts, fall(prepared, result)))) or None,
        "final": result.evaluation[about["metric"]],
        **{f"{metric}_before": amount for metric, amount in before.items()},
        **{f"{metric}_after": amount for metric, amount in after.items()},
        "params_before": sum(parameter.numel() for parameter in prepared.plan.gated.model.parameters()),
        "params_after": sum(parameter.numel() for parameter in result.compact.parameters()),
        "form": record.form,
        "not_in_place_because": record.not_in_place_because,
        "integers_left": record.integers_left,
    }


def gently(prepared: Prepared) -> str:
    """What to change where steps were too long for the network."""
    suited = prepared.plan.suited.name
    slower = f"lower the learning rate (--lr, now {prepared.plan.settings.lr:g})"
    return (
        slower
        if prepared.plan.settings.optimizer == suited
        else f"{slower}, or leave the optimizer to the network ({suited})"
    )


def fall(prepared: Prepared, result: "FinetuneResult") -> str | None:
    """What it means that a network knows no more than chance in the end, or, where it had known more, before the cut.

    None where it does, and where its dense score has been doubted already.
    """
    if prepared.doubts is not None:
        return None
    untrained = prepared.request.starts_untrained
    metric = prepared.case.task.metric.name
    final = result.evaluation[metric]
    if prepared.case.doubts(final) is not None:
        fell = "" if untrained else f", and was {prepared.dense_score:.4g}"
        return (
            f"CAREFUL: in the end {metric} is {final:.4g}, no better than chance{fell}: train longer (--epochs),"
            f" {gently(prepared)}, or keep more (--budget)"
        )
    if untrained:
        return None
    before = [milestone for milestone in result.history if milestone.when in ("warmup", "gate", "settle")]
    if not before or prepared.case.doubts(before[-1].figures[metric]) is None:
        return None
    last = before[-1]
    return (
        f"CAREFUL: before the cut, at step {last.step}, {metric} was {last.figures[metric]:.4g}, no better than chance:"
        " the gates, or a learning rate that is too high, have cost what the network knew, and what it knows in the end it has"
        f" learned after the cut: give the gates more steps (--gate-epochs), or {gently(prepared)}"
    )
