"""`l0prune shrink`: cut a finished run's network, or a model that is not trained any more; verify, save, export to ONNX."""

import sys
from pathlib import Path
from typing import Any

import click

from l0prune.cli.flags import (
    FilePath,
    GroupedCommand,
    GroupedOption,
    common_options,
    flag,
    flag_of,
    flags_of,
    given,
    threads_option,
    whole,
)
from l0prune.cli.model_options import ModelOptions
from l0prune.cli.output import (
    console,
    cost_rows,
    metric_text,
    print_table,
    ratio,
    say,
    say_what_was_lost,
    score_text,
    show,
    size,
    working,
)
from l0prune.cli.request import RunOptions
from l0prune.cli.shrink_run import shrink_model, shrink_run
from l0prune.cli.trust import trust_option
from l0prune.finetuning.config import FinetuneConfig
from l0prune.options import MOST_USED, RUN, Rule, options_of, require_kept

__all__ = ["shrink_command"]

ONE_PATH = (
    "the ONNX files hold one path through a model with conditions in its code. No input that was tried takes another; one that "
    "does is computed wrongly there."
)


OF_RUN = ("data", "task", "task_args", "budget", "profile", "batch_size", "ignore", "device")
OF_TRAINING = ("method", "calibration_samples", "depth", "uniform", "seed")
"""What can be said of a model that is shrunk at once."""
OF_MODEL = (*(name for name in options_of(ModelOptions) if name != "spec"), *OF_RUN, *OF_TRAINING, "overwrite")
RULES = (
    *(
        Rule(
            name,
            f"{{{name}}} is for a model that is shrunk at once, which {{out}} says: it is missing",
            unless=("out",),
        )
        for name in OF_MODEL
    ),
    Rule("data", "{out} shrinks a model at once, and {data} is missing", unless=("data", "run")),
    Rule("budget", "{out} shrinks a model at once, and {budget} is missing", unless=("budget", "run")),
    Rule("trust", "{trust} is for a run: what you type runs without it", unless=("run",)),
)


@click.command("shrink", cls=GroupedCommand)
@click.argument("spec", metavar="RUN|MODEL")
@flags_of(ModelOptions)
@flags_of(RunOptions, only=OF_RUN)
@flags_of(FinetuneConfig, only=OF_TRAINING)
@click.option(
    "--out",
    type=FilePath(),
    cls=GroupedOption,
    group=MOST_USED,
    help="Shrink a model at once, without training, and write it to this directory.",
)
@click.option("--overwrite", is_flag=True, cls=GroupedOption, group=RUN, help="Replace what is in --out.")
@flag_of(
    FinetuneConfig,
    "align",
    help="Round kept widths again, to a multiple of N; auto picks what suits this CPU.  [default: as trained; auto with --out]",
)
@click.option(
    "--hf",
    "hf_folder",
    type=FilePath(),
    metavar="DIR",
    help="Write a folder of transformers as well, which l0prune.hf.from_pretrained and hf:DIR read.",
)
@click.option("--opset", type=whole("[18, inf)"), help="ONNX operator set.  [default: torch's]")
@click.option("--static", is_flag=True, help="ONNX files take the batch and sizes of the example alone.")
@click.option(
    "--output-names", metavar="NAME,...", help="Names of the outputs in the ONNX files.  [default: the model's]"
)
@trust_option
@threads_option
@common_options
def shrink_command(
    spec: str,
    out: Path | None,
    overwrite: bool,
    align: str | int | None,
    hf_folder: Path | None,
    opset: int | None,
    static: bool,
    output_names: str | None,
    trust: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Cut closed units out of a run's network; verify, save, export.

    With --out, shrink a MODEL without training it: a criterion chooses what fits the --budget, and the layers recover in
    closed form on some hundred inputs of --data, which needs no labels.
    """
    typed = given(options)
    flags = {"overwrite": overwrite, "trust": trust, "run": out is None}
    require_kept(
        RULES,
        typed | given({"out": out}) | {name: True for name, value in flags.items() if value},
        flag,
        click.UsageError,
    )
    onnx = given({"opset": opset, "output_names": output_names.split(",") if output_names else None})
    if static:
        onnx["dynamic_batch"] = False
    with working():
        if out is None:
            result = shrink_run(_run_folder(spec), align=align, hf_folder=hf_folder, trust=trust, onnx=onnx)
        else:
            typed |= given({"spec": spec, "align": align})
            result = shrink_model(out, typed, argv=sys.argv, overwrite=overwrite, hf_folder=hf_folder, onnx=onnx)
    show(result, as_json, lambda: print_shrunk(result))


def _run_folder(spec: str) -> Path:
    path: Path = FilePath().convert(spec, None, None)
    return path


def print_shrunk(result: dict[str, Any]) -> None:
    """Costs before and after, and where the files are."""
    rows = cost_rows(result)
    if "dense" in result:
        dense, final = (score_text(result[when], result) for when in ("dense", "final"))
        rows.insert(0, (metric_text(result), dense, final, ""))
    if result["bytes_before"] is not None:
        before, after = result["bytes_before"], result["bytes_after"]
        rows.append(("ONNX bytes", size(before), size(after), ratio(after, before)))
    title = ", ".join([result["model"], result["budget"], result["method"]]) if "dense" in result else result["run"]
    print_table(console(), title, ("", "dense", "compact", "ratio"), rows)
    say(
        f"Verified: compact and gated outputs differ by at most {result['max_rel_diff']:.1e} of the largest; "
        f"form {result['form']}."
    )
    say_what_was_lost(result)
    if result["draws_random_numbers"]:
        say("The network draws random numbers when it is evaluated; both networks were given the same ones.")
    for where, count in result["not_compared"].items():
        say(f"Not compared, because no output reacts to them: {count} units of {where}")
    if result["no_onnx_because"]:
        say(f"No ONNX file: {result['no_onnx_because']}")
    if result["onnx_holds_one_path"]:
        say(f"Careful: {ONE_PATH}")
    for name, path in result["files"].items():
        say(f"  {name:13} {path}")
