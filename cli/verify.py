"""`l0prune verify`: close random units, cut them, export, and compare all three; needs no data."""

from typing import Any

import click

from l0prune.cli.flags import GroupedCommand, common_options, flag_of, number, threads_option, whole
from l0prune.cli.loading import load
from l0prune.cli.output import console, first_few, print_table, ratio, show, size, working
from l0prune.cli.process import EXIT_ERROR
from l0prune.cli.request import ModelOptions, model_options
from l0prune.cli.trust import model_call, remember
from l0prune.finetuning.config import FinetuneConfig

__all__ = ["verify_command"]


@click.command("verify", cls=GroupedCommand)
@model_options()
@click.option(
    "--closed",
    type=number("[0, 1)"),
    default=0.5,
    show_default=True,
    help="Share of units to close.",
)
@click.option(
    "--seed",
    type=whole("[0, inf)"),
    default=0,
    show_default=True,
    help="Seed of the choice and of the random inputs.",
)
@flag_of(
    FinetuneConfig, "align", group="", help="Round kept widths to a multiple of N; auto takes what suits this CPU."
)
@click.option(
    "--gate",
    metavar="NAME",
    help="Let gates of this family decide, worth their test-time values.  [default: any values]",
)
@click.option("--double", is_flag=True, help="Compute in float64.")
@click.option("--no-onnx", is_flag=True, help="Leave out the ONNX export.")
@threads_option
@common_options
@click.pass_context
def verify_command(
    ctx: click.Context,
    model: ModelOptions,
    closed: float,
    seed: int,
    align: str | int | None,
    gate: str | None,
    double: bool,
    no_onnx: bool,
    as_json: bool,
) -> None:
    """Cut random units out of a model, export it, and compare; needs no data.

    Exit code 1 means that the cut is not exact, that no output reacts to it, or that the ONNX file differs or could be written
    for the dense model only. A model that ONNX cannot hold at all is no error.
    """
    with working():
        result = verify_model(model, closed=closed, seed=seed, align=align, gate=gate, double=double, onnx=not no_onnx)
    show(result, as_json, lambda: print_verification(result))
    if not result["exact"]:
        click.echo(f"error: {model.spec}: {what_differs(result)}", err=True)
        ctx.exit(EXIT_ERROR)


def verify_model(
    model: ModelOptions,
    *,
    closed: float,
    seed: int,
    align: str | int | None,
    gate: str | None,
    double: bool,
    onnx: bool,
) -> dict[str, Any]:
    """Load and verify a model; the report as plain data."""
    import l0prune

    loaded = load(model)
    remember(model_call(model))
    report = l0prune.verify(
        loaded.model, loaded.example_inputs, closed=closed, seed=seed, align=align, onnx=onnx, double=double, gate=gate
    )
    return {"model": model.spec, "gate": gate, **report.to_json()}


def what_differs(result: dict[str, Any]) -> str:
    """Which two networks disagree, and what to do."""
    onnx = result["onnx_max_rel_diff"]
    if result["why_not"]:
        return str(result["why_not"])
    if result["onnx_error"]:
        return (
            f"the cut network cannot be exported to ONNX ({result['onnx_error']}); the cut itself is exact to "
            f"{result['max_rel_diff']:.1e}: try --no-onnx, and report this as a bug"
        )
    if onnx is None:
        return (
            f"the cut network differs from the gated one by {result['max_rel_diff']:.1e} relative to its largest output; run "
            "`l0prune inspect` to see the layers, and report this as a bug"
        )
    return (
        f"the ONNX file differs from the cut network by {onnx:.1e} relative to its largest output; the cut itself is exact to "
        f"{result['max_rel_diff']:.1e}: try --no-onnx, and report this as a bug"
    )


def print_verification(result: dict[str, Any]) -> None:
    """The verdict and its figures."""
    rows = [
        ("equal", verdict(result)),
        ("cut against gated, largest relative difference", f"{result['max_rel_diff']:.1e}"),
        ("ONNX against cut, largest relative difference", onnx_text(result)),
        ("gates", str(result["n_gates"])),
        (
            "parameters",
            f"{size(result['params_before'])} -> {size(result['params_after'])}"
            f" ({ratio(result['params_after'], result['params_before'])})",
        ),
        ("parameters in reach of a gate", f"{result['prunable_fraction']:.1%}"),
        ("form of the cut network", form_text(result)),
        ("seconds", seconds_text(result["seconds"])),
    ]
    if result["draws_random_numbers"]:
        rows.append(("random numbers", "drawn in evaluation; the same were given to both"))
    rows += [
        (f"not compared, no output reacts: {where}", str(count)) for where, count in result["not_compared"].items()
    ]
    if result["integers_left"]:
        rows.append(("integers left as they were", first_few(result["integers_left"])))
    rows += [(f"pinned: {why}", str(count)) for why, count in result["pinned"].items()]
    print_table(console(), result["model"], ("", ""), rows)


def verdict(result: dict[str, Any]) -> str:
    """In a word or two."""
    if not result["conclusive"]:
        return "inconclusive"
    return "yes" if result["exact"] else "NO"


def form_text(result: dict[str, Any]) -> str:
    """Whether the class was kept, and why not."""
    because = result["not_in_place_because"]
    return f"{result['form']}: {because}" if because else str(result["form"])


def onnx_text(result: dict[str, Any]) -> str:
    """The difference of the ONNX file, or why there is none."""
    if result["onnx_error"]:
        return f"none: {result['onnx_error']}"
    value = result["onnx_max_rel_diff"]
    return "not exported" if value is None else f"{value:.1e}"


def seconds_text(value: float | dict[str, float]) -> str:
    """Total seconds, or the seconds of each step."""
    if isinstance(value, dict):
        return ", ".join(f"{step} {seconds:.2g}" for step, seconds in value.items())
    return f"{value:.3g}"
