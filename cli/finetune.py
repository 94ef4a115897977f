"""`l0prune finetune`: learn what to cut under a budget or at a price, cut it, recover; checked before anything is written."""

import sys
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

import click

from l0prune.cli.finetune_run import begin, resume_run
from l0prune.cli.flags import (
    Decorator,
    FilePath,
    GroupedCommand,
    GroupedOption,
    apply,
    common_options,
    flag,
    flags_of,
    given,
    threads_option,
)
from l0prune.cli.model_options import ModelOptions
from l0prune.cli.output import (
    console,
    cost_rows,
    metric_text,
    print_table,
    say,
    say_what_was_lost,
    score_text,
    show,
    working,
)
from l0prune.cli.process import EXIT_BUDGET_MISSED
from l0prune.cli.quality_run import begin_search, is_search, resume_search
from l0prune.cli.request import FinetuneRequest, RunOptions
from l0prune.cli.trust import trust_option
from l0prune.finetuning.config import FinetuneConfig
from l0prune.options import MOST_USED, RUN, TEACHING, Rule, require_kept

__all__ = ["RULES", "finetune_command", "read_flags", "run_flags"]

RULES = (
    Rule("overwrite", "{resume} continues the run, {overwrite} replaces it: give one of them"),
    Rule("trust", "{trust} is for {resume}: what you type runs without it", unless=("resume",)),
    Rule("teach", "{from_scratch} starts with an untrained network, which cannot teach: leave out {teach}"),
    Rule("distillation", "{teach=False} leaves nothing for {distillation} to do: give one of them"),
    Rule("spec", "{spec} is missing", unless=("spec", "resume")),
    Rule("data", "{data} is missing", unless=("data", "resume")),
    Rule("budget", "{budget}, {quality} or {penalty} is missing", unless=("budget", "quality", "penalty", "resume")),
    Rule("quality", "{quality} looks for the smallest {budget}: give one of them"),
    Rule("quality", "{quality} looks for the smallest budget, and {penalty} sets none: give one of them"),
    Rule(
        "quality", "{from_scratch} starts with an untrained network, which has no quality to keep: leave out {quality}"
    ),
    Rule("quality_runs", "{quality_runs} is for a search: give {quality} as well", unless=("quality", "resume")),
    Rule("penalty", "{budget} finds the price of open gates, {penalty} fixes it: give one of them"),
)


def run_flags(what: str) -> Decorator:
    """Add the flags that say where training is written, whether it goes on there, and whether the dense network teaches.

    Args:
        what: Is written: "run" or "sweep".
    """
    most_used: dict[str, Any] = {"cls": GroupedOption, "group": MOST_USED}
    resume = f"Continue the {what} in --out; no other option is needed."
    teach = "Let the dense network teach the gated and the cut one.  [default: on; off from scratch]"
    flags = (
        click.option("--out", type=FilePath(), required=True, help=f"Directory of the {what}.", **most_used),
        click.option("--resume", is_flag=True, help=resume, **most_used),
        click.option("--overwrite", is_flag=True, cls=GroupedOption, group=RUN, help=f"Replace the {what} in --out."),
        click.option(
            "--distillation/--no-distillation", "teach", default=None, cls=GroupedOption, group=TEACHING, help=teach
        ),
        trust_option,
        threads_option,
        common_options,
    )
    return partial(apply, flags)


@click.command("finetune", cls=GroupedCommand)
@click.argument("spec", metavar="[MODEL]", required=False)
@flags_of(ModelOptions)
@flags_of(RunOptions)
@flags_of(FinetuneConfig)
@run_flags("run")
@click.pass_context
def finetune_command(
    ctx: click.Context,
    /,
    out: Path,
    resume: bool,
    overwrite: bool,
    teach: bool | None,
    trust: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Learn what to cut under a budget or penalty, cut, and recover; or find the smallest budget that keeps a quality.

    MODEL is a name such as resnet20, timm:NAME, torchvision:NAME, hf:DIR, package.module:factory or FILE.pt2. The run is
    written to --out; an existing one is refused without --resume or --overwrite.
    """
    typed = read_flags(options, RULES, resume=resume, overwrite=overwrite, teach=teach, trust=trust)
    with working():
        if resume:
            result = (resume_search if is_search(out) else resume_run)(out, typed, trust=trust)
        else:
            start = begin_search if "quality" in typed else begin
            result = start(out, FinetuneRequest.asked(typed), argv=sys.argv, overwrite=overwrite)
    if result is None:  # another process of the same run prints
        return
    show(result, as_json, lambda: print_result(result))
    if not result["budget_met"]:
        cost = ", ".join(f"{metric}={cost:.4f}" for metric, cost in result["hard_costs"].items())
        click.echo(f"budget missed: the compact network costs {cost} of the dense one", err=True)
        ctx.exit(EXIT_BUDGET_MISSED)


def read_flags(
    options: Mapping[str, Any],
    rules: Iterable[Rule],
    *,
    resume: bool,
    overwrite: bool,
    teach: bool | None,
    trust: bool,
) -> dict[str, Any]:
    """The options that were typed, by name, after seeing that they go together.

    Args:
        options: Of the command, by name; what was not typed is None or empty.
        rules: What may not go together.
        resume: Whether something that is there goes on.
        overwrite: Whether it is replaced.
        teach: Whether the dense network teaches, where that was typed.
        trust: Whether factories may run that were not typed.

    Raises:
        click.UsageError: names what does not.
    """
    typed = given(options)
    flags = {"resume": resume, "overwrite": overwrite, "trust": trust}
    said = typed | given({"teach": teach}) | {name: True for name, value in flags.items() if value}
    require_kept(rules, said, flag, click.UsageError)
    off = ""  # what was typed for no distillation, where its weight was not
    if teach is False:
        off, typed["distillation"] = "--no-distillation", 0.0
    elif "from_scratch" in typed and "distillation" not in typed:
        off = "--from-scratch"
    if not resume:
        asked = {"distillation": 0.0, **typed} if off else typed
        require_kept(
            FinetuneConfig.rules, asked, lambda name, value: (value and off) or flag(name, value), click.UsageError
        )
    return typed


def print_result(result: dict[str, Any]) -> None:
    """Dense against final, in one small table."""
    rows = [
        (metric_text(result), score_text(result["dense"], result), score_text(result["final"], result), ""),
        *cost_rows(result),
    ]
    goal = result["budget"] or result["penalty"]
    before = "untrained" if result["from_scratch"] else "dense"
    print_table(console(), f"{result['model']}, {goal}, {result['method']}", ("", before, "final", "ratio"), rows)
    if result["doubts"]:
        say(result["doubts"])
    say_what_was_lost(result)
    if result["held_out"]:
        print_held_out(result)
    say(f"Next: l0prune shrink {quote(result['run'])}")


def print_held_out(result: Mapping[str, Any]) -> None:
    """What was decided on rows held out, and which networks were tried, where there was a search."""
    found = result.get("quality")
    place = {"train": "training", "test": "test"}[result["held_out"]]
    if not found:
        say(f"Scores are of {result['n_scored']} rows held out of the {place} data.")
        return
    rows = [
        (
            tried["budget"],
            f"{tried['hard_cost']:.3f}",
            score_text(tried["score"], result),
            "kept" if tried["kept"] else "not kept",
        )
        for tried in sorted(found["runs"], key=lambda tried: -tried["hard_cost"])
    ]
    title = f"{found['asked']} on {found['n']} rows held out of the {place} data"
    header = ("", "MACs kept", metric_text(result), "")
    print_table(console(), title, header, [("dense", "1.000", score_text(found["dense"], result), ""), *rows])
    error = "" if found["error"] is None else f", with a standard error of {found['error']:.2g}"
    cheaper = f"{found['next_cheaper']} does not" if found["next_cheaper"] else "nothing cheaper was tried"
    where = "between them" if found["next_cheaper"] else "below it"
    limit = f"; more runs (--quality-runs) would look {where}" if found["at_the_limit_of_runs"] else ""
    say(f"{result['budget']} keeps it at {score_text(found['score'], result)}{error}; {cheaper}{limit}.")
    say(f"The first table is of the {result['n_scored']} rows of test data that decided nothing.")
    if found["doubts"]:
        say(found["doubts"])
