"""A sweep from request to result: look over every budget, train one after another, cut, measure and draw them together."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from l0prune.cli.bench import BenchOptions, bench_runs
from l0prune.cli.finetune_run import (
    noting_how_the_whole_ends,
    require_one_process,
    require_typed_calls,
    train_or_resume,
)
from l0prune.cli.output import note
from l0prune.cli.prepared import DenseWeights, Prepared, Shared, calls_of, share
from l0prune.cli.request import FinetuneRequest
from l0prune.cli.shrink_run import shrink_run
from l0prune.cli.trust import remember
from l0prune.errors import ConfigError, RunDirectoryError
from l0prune.reading import reading

if TYPE_CHECKING:
    from l0prune.bench.report import BenchReport
    from l0prune.sweep_directory import SweepDirectory, SweepPoint, SweepResult

__all__ = ["begin_sweep", "points_of", "resume_sweep"]


def begin_sweep(
    out: Path, request: FinetuneRequest, budgets: Sequence[str], *, argv: Sequence[str], overwrite: bool, bench: bool
) -> "SweepResult":
    """Start a sweep.

    Args:
        out: Directory of the sweep.
        request: What all runs have in common.
        budgets: One for each run.
        argv: The command line, for the record.
        overwrite: Replace a sweep that is there.
        bench: Measure latencies at the end.

    Returns:
        What came out.

    Raises:
        L0PruneError: nothing was written, or the sweep can be resumed.
        Interrupted: Ctrl-C; the message says how to continue.
    """
    from l0prune.sweep_directory import SweepDirectory

    require_one_process("a sweep")
    SweepDirectory(out).require_free(overwrite=overwrite)
    points = points_of(request, budgets)
    shared, prepared = look_over(points)
    for call in calls_of(request.model, request.run):
        remember(call)
    out.mkdir(parents=True, exist_ok=True)
    with SweepDirectory(out).locked():
        common = next(iter(prepared.values())).request
        common = replace(common, run=replace(common.run, budget=""))
        sweep = SweepDirectory.create(
            out,
            argv=argv,
            budgets=tuple(points),
            overwrite=overwrite,
            **common.to_record(),
        )
        return run_points(sweep, shared, prepared, bench=bench)


def resume_sweep(
    out: Path, typed: Mapping[str, Any], budgets: Sequence[str], *, trust: bool = False, bench: bool
) -> "SweepResult":
    """Continue a sweep to the same result it would have had.

    Args:
        out: Directory of the sweep.
        typed: Options of the command line by name, which may repeat what the sweep began with.
        budgets: Those that were typed, which may repeat the sweep's own.
        trust: Whether factories may run that only its sweep.json names.
        bench: Measure latencies at the end.

    Returns:
        As `begin_sweep`.

    Raises:
        RunDirectoryError: if there is no sweep, or it has finished.
        UntrustedCodeError: if it takes code that the user has not typed.
        ConfigError: if something typed differs from what the sweep began with.
    """
    from l0prune.sweep_directory import SweepDirectory

    require_one_process("a sweep")
    sweep = SweepDirectory(out)
    record = sweep.read()
    request = FinetuneRequest.from_record(record)
    request.require_same(typed)
    if budgets and tuple(points_of(request, budgets)) != record.budgets:
        raise ConfigError(
            f"the budgets were {', '.join(record.budgets)} when the sweep began; leave --budget out to resume, or begin"
            " another sweep with --out or --overwrite"
        )
    if record.status == "finished":
        raise RunDirectoryError(
            f"{out}: the sweep has finished; pick a point, such as {sweep.run(record.budgets[0]).path}"
        )
    require_typed_calls(request, typed, sweep.record_path, trust=trust)
    shared, prepared = look_over(points_of(request, record.budgets))
    with sweep.locked():
        sweep.set_status("running")
        return run_points(sweep, shared, prepared, bench=bench, trust=trust)


def points_of(request: FinetuneRequest, budgets: Sequence[str]) -> dict[str, FinetuneRequest]:
    """The runs of a sweep by the names of their budgets.

    Raises:
        ConfigError: a budget cannot be read, or is there twice.
    """
    from l0prune.goals.budget import Budgets

    points: dict[str, FinetuneRequest] = {}
    for text in budgets:
        name = str(Budgets.parse(text))
        if name in points:
            raise ConfigError(f"--budget {text} is there twice: each is a run of its own")
        points[name] = replace(request, run=replace(request.run, budget=name))
    return points


def look_over(points: Mapping[str, FinetuneRequest]) -> tuple[Shared, dict[str, Prepared]]:
    """Load once, and see that every run can be made, before the first of them changes anything.

    Raises:
        L0PruneError: names what cannot work and what to do.
    """
    shared = share(next(iter(points.values())))
    return shared, {name: shared.prepare(request) for name, request in points.items()}


def run_points(
    sweep: "SweepDirectory", shared: Shared, points: Mapping[str, Prepared], *, bench: bool, trust: bool = False
) -> "SweepResult":
    """Train what is not trained yet, cut what is not cut yet, measure, and write down what came out."""
    again = f"l0prune sweep --out {quote(str(sweep.path))} --resume"
    weights = DenseWeights.of(shared.case.loaded.model)
    argv = sweep.read().argv
    figures = {}
    with noting_how_the_whole_ends(sweep, again):
        for place, (name, looked_over) in enumerate(points.items(), start=1):
            note(f"{name} ({place} of {len(points)})")
            weights.restore_(shared.case.loaded.model)
            prepared = shared.prepare(
                looked_over.request
            )  # gates that nothing has trained, on weights that nothing has
            figures[name] = train_or_resume(sweep.run(name), prepared, argv=argv, part_of=again)
        for name in points:
            if not sweep.run(name).compact.exists():
                shrink_run(sweep.run(name).path, trust=trust)
        report = bench_points(sweep, tuple(points), trust=trust) if bench else None
        with reading(sweep.path, "sweep with finished runs", remedy="start the sweep again", folder=True):
            result = result_of(shared, figures, report)
        draw(sweep, result)
        sweep.set_status("finished", result=result)
    return result


def bench_points(sweep: "SweepDirectory", names: Sequence[str], *, trust: bool) -> "BenchReport":
    """Measure the dense network and all others in turn, and write bench.json."""
    from l0prune.files import write_json

    seconds = BenchOptions().min_seconds * (1 + len(names)) / 2
    options = replace(BenchOptions(), min_seconds=seconds)
    (report,) = bench_runs({name: sweep.run(name).path for name in names}, options, trust=trust)
    write_json(sweep.bench, report.to_json())
    return report


def result_of(shared: Shared, figures: Mapping[str, Mapping[str, Any]], report: "BenchReport | None") -> "SweepResult":
    """The figures of the runs beside each other."""
    from l0prune.sweep_directory import SweepResult

    about = shared.case.described()
    first = next(iter(figures.values()))
    environment = None if report is None else report.environment
    on = (
        ""
        if environment is None
        else f"{environment.cpu}, {environment.threads} thread(s), batch {environment.batch_size}"
    )
    return SweepResult(
        model=shared.request.model.spec,
        **about,
        doubts=first["doubts"],
        dense=point_of("dense", first["dense"], first, "before", report),
        points=tuple(point_of(name, found["final"], found, "after", report) for name, found in figures.items()),
        measured_on=on,
    )


def point_of(
    name: str, score: float, figures: Mapping[str, Any], when: str, report: "BenchReport | None"
) -> "SweepPoint":
    """A network of the picture.

    Args:
        name: What it is called.
        score: Of the network.
        figures: Of a run.
        when: "before" its cut, or "after" it.
        report: Latencies, or None.
    """
    from l0prune.cost.kinds import metric_names
    from l0prune.sweep_directory import Interval, SweepPoint

    speedup = None if report is None else report.speedup.get(name)
    amounts = {metric: float(figures[f"{metric}_{when}"]) for metric in metric_names() if f"{metric}_{when}" in figures}
    return SweepPoint(
        name=name,
        score=score,
        amounts=amounts,
        shares={metric: amount / figures[f"{metric}_before"] for metric, amount in amounts.items()},
        budget_met=when == "before" or figures["budget_met"],
        latency_ms=None if report is None else report[name].latency_ms.p50,
        speedup=None if speedup is None else Interval(speedup.ratio, speedup.low, speedup.high),
    )


def draw(sweep: "SweepDirectory", result: "SweepResult") -> None:
    """Write sweep.svg where pictures can be drawn."""
    from l0prune.pictures import save_picture
    from l0prune.report.sweep_plot import draw_sweep

    try:
        save_picture(draw_sweep(result), sweep.picture)
    except ConfigError as error:
        note(f"no picture yet: {error}; then `l0prune plot sweep {quote(str(sweep.path))}`")
