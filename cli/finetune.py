"""`l0prune finetune`: learn what to cut under a budget or at a price, cut it, recover; checked before anything is written."""

import sys
from pathlib import Path
from shlex import quote
from typing import Any

import click
from click.core import ParameterSource

from l0prune.cli.failures import EXIT_BUDGET_MISSED
from l0prune.cli.finetune_run import begin, resume_run
from l0prune.cli.options import (
    FilePath,
    KeyValue,
    ModelOptions,
    Number,
    Whole,
    align_option,
    common_options,
    data_option,
    flag,
    ignore_option,
    model_options,
    task_options,
    threads_option,
)
from l0prune.cli.output import console, first_few, metric_text, print_table, ratio, score_text, show, size, working
from l0prune.cli.request import FinetuneOptions, FinetuneRequest
from l0prune.cli.trust import trust_option
from l0prune.finetuning.config import BUDGET_GATE_FRACTION, OPTIMIZERS, PENALTY_GATE_FRACTION, FinetuneConfig
from l0prune.gates.registry import gate_names

__all__ = ["finetune_command"]

POSITIVE = Number(min=0, min_open=True)
DEFAULTS = FinetuneConfig()
WARMUP_EPOCHS, *_ = DEFAULTS.phase_epochs


def with_default(text: str, value: object) -> str:
    """Help text with the default the library has, as click writes it."""
    return f"{text}  [default: {value:g}]" if isinstance(value, float) else f"{text}  [default: {value}]"


def by_optimizer(text: str, name: str) -> str:
    """Help text with the default of each optimizer."""
    return with_default(
        text, ", ".join(f"{getattr(rates, name):g} {optimizer}" for optimizer, rates in OPTIMIZERS.items())
    )


@click.command("finetune")
@model_options(metavar="[MODEL]", required=False)
@data_option(required=False)
@task_options
@click.option("--budget", metavar="METRIC=KEEP", help="Share of the dense cost to keep, as in macs=0.5 or params=0.3.")
@click.option(
    "--penalty",
    metavar="NAME=NUMBER",
    multiple=True,
    help="Instead of a budget, the L0 paper's lambda, as in lambda=0.1; or of the inputs of a layer, as in fc1=10; repeatable.",
)
@click.option("--from-scratch", is_flag=True, help="Start with random weights, by --seed, without a teacher.")
@click.option("--out", type=FilePath(), required=True, help="Directory of the run.")
@click.option("--resume", is_flag=True, help="Continue the run in --out; needs no other option.")
@click.option("--overwrite", is_flag=True, help="Replace the run in --out.")
@click.option(
    "--epochs", type=POSITIVE, help=with_default("Passes over the training data, recovery included.", DEFAULTS.epochs)
)
@click.option("--warmup-epochs", type=Number(min=0), help=with_default("Of these, with all gates open.", WARMUP_EPOCHS))
@click.option(
    "--gate-epochs",
    type=POSITIVE,
    help=with_default(
        "Of these, learning the gates.",
        f"{BUDGET_GATE_FRACTION:g} of them, {PENALTY_GATE_FRACTION:g} with --penalty",
    ),
)
@click.option(
    "--settle-epochs",
    type=Number(min=0),
    help=with_default("Of these, closing one after another what the cut takes.", f"{DEFAULTS.settle_fraction:g}"),
)
@click.option("--batch-size", type=Whole(1), default=128, show_default=True, help="Inputs a step.")
@click.option(
    "--optimizer", type=click.Choice(list(OPTIMIZERS)), help=with_default("Of the weights.", DEFAULTS.optimizer)
)
@click.option("--lr", type=POSITIVE, help=by_optimizer("Peak learning rate while gates are learned.", "lr"))
@click.option(
    "--gate-lr-end",
    type=Number(0, 1),
    help=with_default(
        "Share of --lr left when the gates are learned; 1 keeps it constant.", f"{DEFAULTS.gate_lr_end:g}"
    ),
)
@click.option(
    "--lr-drops",
    metavar="EPOCH,...",
    default="",
    help="Multiply --lr at these epochs, constant between them.  [default: a ramp and a cosine]",
)
@click.option(
    "--lr-drop-factor",
    type=Number(0, 1, min_open=True, max_open=True),
    help=with_default("By this.", DEFAULTS.lr_drop_factor),
)
@click.option("--recovery-lr", type=POSITIVE, help=by_optimizer("Peak learning rate of the recovery.", "recovery_lr"))
@click.option("--weight-decay", type=Number(min=0), help=by_optimizer("Decay of matrices.", "weight_decay"))
@click.option(
    "--gated-weight-decay", is_flag=True, help="Weight the decay of gated matrices by P(open), as in the L0 paper."
)
@click.option(
    "--grad-clip",
    type=Number(min=0),
    help=with_default("Largest norm of the gradient, 0 for no limit.", f"{DEFAULTS.grad_clip:g}"),
)
@click.option(
    "--grad-spike",
    type=Number(min=0),
    help=with_default(
        "Largest norm of the gradient as a multiple of what was usual lately, 0 for no limit.",
        f"{DEFAULTS.grad_spike:g}",
    ),
)
@click.option("--augment/--no-augment", default=None, help="Crop and mirror images.  [default: those in colour]")
@click.option(
    "--distillation/--no-distillation",
    "teach",
    default=None,
    help="Let the dense network teach by its outputs.  [default: on; off from scratch]",
)
@click.option(
    "--distillation-weight",
    type=Number(0, 1),
    help=with_default("Share of its teaching in the loss.", DEFAULTS.distillation),
)
@click.option(
    "--distillation-temperature", type=POSITIVE, help=with_default("Of its outputs.", DEFAULTS.distillation_temperature)
)
@click.option(
    "--feature-distillation",
    type=Number(min=0),
    metavar="WEIGHT",
    help=with_default("Of its teaching by the features of each block.", f"{DEFAULTS.feature_distillation:g}"),
)
@click.option(
    "--gate",
    default="hard-concrete",
    show_default=True,
    metavar="NAME",
    help=f"Distribution of the gates: {', '.join(gate_names())}.",
)
@click.option(
    "--gate-arg",
    "gate_args",
    type=KeyValue(),
    multiple=True,
    help="Parameter of this distribution, as in temperature=0.5; repeatable.",
)
@ignore_option
@click.option("--gate-lr", type=POSITIVE, help="Learning rate of the gates.  [default: by the number of steps]")
@click.option(
    "--droprate-init",
    metavar="RATE|NAME=RATE",
    multiple=True,
    help="Start gates at log((1 - RATE) / RATE), also by layer, as in fc1=0.2; repeatable.  [default: nearly open]",
)
@click.option(
    "--ema-decay",
    type=Number(0, 1, min_open=True, max_open=True),
    help="Evaluate and cut a moving average of weights and gates.",
)
@click.option(
    "--recalibration-batches",
    type=Whole(0),
    help=with_default("For BatchNorm after the cut.", DEFAULTS.recalibration_batches),
)
@align_option(None, shown="auto; 1 with --penalty")
@click.option(
    "--precision", type=click.Choice(["no", "bf16", "fp16"]), default="no", show_default=True, help="Mixed precision."
)
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Where to train."
)
@click.option("--seed", type=Whole(0), default=0, show_default=True, help="Seed of everything random.")
@click.option(
    "--log-every",
    type=Whole(1),
    help=with_default("Steps between lines of metrics.jsonl.", DEFAULTS.log_every),
)
@trust_option
@threads_option
@common_options
@click.pass_context
def finetune_command(
    ctx: click.Context,
    /,
    model: ModelOptions,
    data_spec: str | None,
    budget: str | None,
    penalty: tuple[str, ...],
    droprate_init: tuple[str, ...],
    out: Path,
    resume: bool,
    overwrite: bool,
    teach: bool | None,
    distillation_weight: float | None,
    trust: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Learn what to cut under a budget or at a price, cut it, and let the rest recover.

    MODEL is a name such as resnet20, timm:NAME, torchvision:NAME, hf:DIR, package.module:factory or FILE.pt2. The run is
    written to --out; an existing one is refused unless --resume or --overwrite.
    """
    if resume and overwrite:
        raise click.UsageError("--resume continues the run, --overwrite replaces it: give one of them")
    if trust and not resume:
        raise click.UsageError("--trust is for --resume: what you type runs without it")
    if not resume:
        require_effective(explicit_parameters(ctx), teach=teach)
    weight = 0.0 if teach is False else distillation_weight
    if teach and options["from_scratch"]:
        raise click.UsageError("--from-scratch starts with an untrained network: there is nothing for --distillation")
    options |= {name: dict(options[name]) for name in ("gate_args", "task_args")}
    options |= {"penalty": ",".join(penalty), "droprate_init": ",".join(droprate_init), "distillation": weight}
    asked = FinetuneOptions(budget or "", **options)
    request = FinetuneRequest(model, data_spec or "", asked)
    with working():
        if resume:
            implied = set() if teach is None else {"distillation_weight"}
            result = resume_run(out, request, explicit_parameters(ctx) | implied, trust=trust)
        else:
            goal = (budget or penalty, "--budget or --penalty")
            for value, name in ((model.spec, "MODEL"), (data_spec, "--data"), goal):
                if not value:
                    raise click.UsageError(f"{name} is missing")
            if budget and penalty:
                raise click.UsageError("--budget finds the price of open gates, --penalty fixes it: give one of them")
            result = begin(out, request, argv=sys.argv, overwrite=overwrite)
    if result is None:  # another process of the same run prints
        return
    show(result, as_json, lambda: print_result(result))
    if not result["budget_met"]:
        click.echo(f"budget missed: the compact network costs {result['hard_cost']:.4f} of the dense one", err=True)
        ctx.exit(EXIT_BUDGET_MISSED)


NEEDS_TEACHER = ("distillation_weight", "distillation_temperature", "feature_distillation")


def require_effective(typed: set[str], *, teach: bool | None) -> None:
    """See that nothing is typed that something else makes pointless.

    Raises:
        click.UsageError: names both.
    """
    if teach is False:
        for name in NEEDS_TEACHER:
            if name in typed:
                raise click.UsageError(f"--no-distillation leaves nothing for {flag(name)} to do: give one of them")
    if "lr_drops" not in typed and "lr_drop_factor" in typed:
        raise click.UsageError("--lr-drop-factor says how far the learning rate falls at --lr-drops, which is missing")
    if "lr_drops" in typed and "gate_lr_end" in typed:
        raise click.UsageError(
            "--gate-lr-end is the end of the ramp and cosine that --lr-drops replaces: give one of them"
        )


def explicit_parameters(ctx: click.Context) -> set[str]:
    """Names of the parameters that were typed."""
    return {name for name in ctx.params if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE}


def print_result(result: dict[str, Any]) -> None:
    """Dense against final, in one small table."""
    rows = [
        (metric_text(result), score_text(result["dense"], result), score_text(result["final"], result), ""),
        *(
            (
                name,
                size(result[f"{name.lower()}_before"]),
                size(result[f"{name.lower()}_after"]),
                ratio_of(result, name),
            )
            for name in ("MACs", "params")
        ),
    ]
    goal = result["budget"] or result["penalty"]
    before = "untrained" if result["from_scratch"] else "dense"
    print_table(console(), f"{result['model']}, {goal}", ("", before, "final", "ratio"), rows)
    if result["doubts"]:
        console().print(result["doubts"], markup=False, soft_wrap=True)
    if result["not_in_place_because"]:
        console().print(f"Its class was not kept: {result['not_in_place_because']}", markup=False, soft_wrap=True)
    if result["integers_left"]:
        console().print(
            f"Integers left as they were: {first_few(result['integers_left'])}", markup=False, soft_wrap=True
        )
    console().print(f"Next: l0prune shrink {quote(result['run'])}", markup=False, soft_wrap=True)


def ratio_of(result: dict[str, Any], name: str) -> str:
    """How much of a cost is left."""
    return ratio(result[f"{name.lower()}_after"], result[f"{name.lower()}_before"])
