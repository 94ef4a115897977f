"""`l0prune sweep`: several budgets from one checkpoint, in one table and one picture."""

import sys
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from l0prune.cli.finetune import RULES, read_flags, run_flags
from l0prune.cli.flags import GroupedCommand, GroupedOption, flags_of
from l0prune.cli.model_options import ModelOptions
from l0prune.cli.output import console, metric_text, print_table, say, score_text, show, working
from l0prune.cli.process import EXIT_BUDGET_MISSED
from l0prune.cli.request import FinetuneRequest, RunOptions
from l0prune.cli.sweep_run import begin_sweep, resume_sweep
from l0prune.finetuning.config import FinetuneConfig
from l0prune.options import MOST_USED, RUN, Rule, options_of

if TYPE_CHECKING:
    from l0prune.sweep_directory import SweepPoint, SweepResult

__all__ = ["sweep_command"]

OF_ONE_RUN = ("budget", "penalty", "quality", "quality_runs")
SWEEP_RULES = (
    *(rule for rule in RULES if not any(f"{{{name}}}" in rule.sentence for name in OF_ONE_RUN)),
    Rule("budget", "{budget} is missing", unless=("budget", "resume")),
)


@click.command("sweep", cls=GroupedCommand)
@click.argument("spec", metavar="[MODEL]", required=False)
@flags_of(ModelOptions)
@flags_of(RunOptions, only=tuple(name for name in options_of(RunOptions) if name not in OF_ONE_RUN))
@flags_of(FinetuneConfig)
@click.option(
    "--budget",
    "budgets",
    multiple=True,
    cls=GroupedOption,
    group=MOST_USED,
    metavar="METRIC=KEEP",
    help="Cost that one of the networks may keep, as in macs=0.5, or in macs=0.5,params=0.4, both of which hold; repeat it"
    " for each network.",
)
@click.option(
    "--bench/--no-bench",
    default=True,
    cls=GroupedOption,
    group=RUN,
    help="Measure all networks in turn at the end.  [default: on]",
)
@run_flags("sweep")
@click.pass_context
def sweep_command(
    ctx: click.Context,
    /,
    budgets: tuple[str, ...],
    bench: bool,
    out: Path,
    resume: bool,
    overwrite: bool,
    teach: bool | None,
    trust: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train the same network for several budgets; compare accuracy, cost and time.

    Each --budget becomes a run of its own, --out/BUDGET, as `l0prune finetune` writes it; all start from the same
    checkpoint. --out also gets sweep.json, bench.json and, where matplotlib is installed, sweep.svg.
    """
    typed = read_flags(
        {**options, "budget": budgets}, SWEEP_RULES, resume=resume, overwrite=overwrite, teach=teach, trust=trust
    )
    typed.pop("budget", None)
    with working():
        if resume:
            result = resume_sweep(out, typed, budgets, trust=trust, bench=bench)
        else:
            request = FinetuneRequest.asked(typed)
            result = begin_sweep(out, request, budgets, argv=sys.argv, overwrite=overwrite, bench=bench)
    show({"sweep": str(out), **result.to_json()}, as_json, lambda: print_sweep(out, result))
    missed = [point.name for point in result.points if not point.budget_met]
    if missed:
        click.echo(f"budget missed: {', '.join(missed)}", err=True)
        ctx.exit(EXIT_BUDGET_MISSED)


def print_sweep(out: Path, result: "SweepResult") -> None:
    """One line a network."""
    from l0prune.cost.kinds import metric_named, metric_names

    metrics = [metric_named(name) for name in metric_names() if name in result.dense.amounts]
    titles = [title for metric in metrics for title in (metric.title, "kept")]
    header = ("", metric_text(result.to_json()), *titles, "p50 ms", "speedup", "95 % interval")
    print_table(console(), result.model, header, [row_of(point, result) for point in (result.dense, *result.points)])
    if result.measured_on:
        say(f"{result.measured_on}; latencies as `l0prune bench` measures them")
    if result.doubts:
        say(result.doubts)
    say(f"Pick a point: its folder is a run, as in `l0prune report {quote(str(out / result.points[-1].name))}`")


def row_of(point: "SweepPoint", result: "SweepResult") -> tuple[str, ...]:
    """A network's line."""
    from l0prune.cost.kinds import metric_named, metric_names

    costs: list[str] = []
    for name in filter(result.dense.amounts.__contains__, metric_names()):
        costs += (metric_named(name).short_text(point.amounts[name]), f"{point.shares[name]:.3f}")
    speedup = point.speedup
    return (
        point.name,
        score_text(point.score, result.to_json()),
        *costs,
        "-" if point.latency_ms is None else f"{point.latency_ms:.3f}",
        f"{speedup.ratio:.2f}x" if speedup else "",
        f"{speedup.low:.2f} - {speedup.high:.2f}" if speedup else "",
    )
