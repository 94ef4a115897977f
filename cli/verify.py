"""`l0prune verify`: close random units, cut them, export, and compare all three; needs no data."""

from dataclasses import asdict, dataclass
from typing import Any

import click

from l0prune.cli.flags import GroupedCommand, chosen, common_options, flags_of, threads_option
from l0prune.cli.gating import calls_at
from l0prune.cli.loading import load
from l0prune.cli.model_options import ModelOptions, model_options
from l0prune.cli.output import console, first_few, print_table, ratio, show, size, working
from l0prune.cli.process import EXIT_ERROR
from l0prune.cli.trust import model_call, remember
from l0prune.finetuning.config import alignment
from l0prune.options import Options, documented, option

__all__ = ["verify_command"]


@documented
@dataclass(frozen=True)
class VerifyOptions(Options):
    """What is cut, and how it is compared."""

    closed: float = option(0.5, "Share of units to close.", within="[0, 1)")
    seed: int = option(0, "Seed of the choice and of the random inputs.", within="[0, inf)")
    align: int | str | None = alignment(
        "Round kept widths to a multiple of this number; auto picks what suits this CPU."
    )
    gate: str | None = option(
        None,
        "Let gates of this family decide what is closed, at their test-time values.",
        shown="any values",
        metavar="NAME",
    )
    length: tuple[int, ...] = option(
        (), "Lengths of sequences to compare at.", within="[1, inf)", shown="that of the example, and another one"
    )
    double: bool = option(False, "Compute in float64.")
    no_onnx: bool = option(False, "Leave out the ONNX export.")


@click.command("verify", cls=GroupedCommand)
@model_options()
@flags_of(VerifyOptions)
@threads_option
@common_options
@click.pass_context
def verify_command(ctx: click.Context, /, model: ModelOptions, as_json: bool, **values: Any) -> None:
    """Cut random units, export to ONNX, and compare; needs no data.

    Exit code 1 means that the cut is not exact, that no output reacts to it, or that the ONNX file differs or could be written
    for the dense model only. A model that ONNX cannot hold at all is not an error.
    """
    with working():
        result = verify_model(model, chosen(VerifyOptions, values))
    show(result, as_json, lambda: print_verification(result))
    if not result["exact"]:
        click.echo(f"error: {model.spec}: {what_differs(result)}", err=True)
        ctx.exit(EXIT_ERROR)


def verify_model(model: ModelOptions, options: VerifyOptions) -> dict[str, Any]:
    """Load and verify a model; the report as plain data."""
    import l0prune

    loaded = load(model)
    remember(model_call(model))
    given = asdict(options)
    onnx, lengths = not given.pop("no_onnx"), given.pop("length")
    also = calls_at(loaded, lengths) if lengths else []
    report = l0prune.verify(loaded.model, loaded.example_inputs, onnx=onnx, also=also, **given)
    at_lengths = {
        str(length): {"max_rel_diff": at.max_rel_diff, "onnx_max_rel_diff": at.onnx_max_rel_diff}
        for length, at in zip(lengths, report.elsewhere, strict=False)
    }
    return {"model": model.spec, "gate": options.gate, **report.to_json(), "at_lengths": at_lengths}


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
        rows.append(("random numbers", "drawn in evaluation; both networks were given the same ones"))
    for length, at in result["at_lengths"].items():
        in_file = "not compared" if at["onnx_max_rel_diff"] is None else f"{at['onnx_max_rel_diff']:.1e}"
        rows.append(
            (f"at {length} tokens: cut against gated, ONNX against cut", f"{at['max_rel_diff']:.1e}, {in_file}")
        )
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
