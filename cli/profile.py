"""`l0prune profile`: what a network takes in onnxruntime at any widths, here or on another machine."""

from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from l0prune.cli.flags import FilePath, GroupedCommand, chosen, common_options, flags_of, given
from l0prune.cli.loading import load
from l0prune.cli.model_options import ModelOptions
from l0prune.cli.output import console, print_table, say, show, working
from l0prune.cli.progress import share_bar
from l0prune.cli.trust import model_call, remember
from l0prune.machine import most_threads
from l0prune.options import Options, documented, option

if TYPE_CHECKING:
    from l0prune.latency.profile import Profile

__all__ = ["profile_command"]

SHOWN = 12


@documented
@dataclass(frozen=True)
class ProfileFlags(Options):
    """On what terms a network is measured."""

    threads: int = option(1, "Threads per operator in onnxruntime.", within=f"[1, {most_threads()}]")
    batch_size: int = option(1, "Inputs per run.", within="[1, inf)")
    length: int | None = option(
        None, "Length of sequences, where the network takes any.", within="[1, inf)", shown="the example's"
    )
    seconds: float = option(
        90.0, "Seconds to spend on timing, about; on a busy machine up to twice that.", within="[1, inf)"
    )
    seed: int = option(0, "Seed of the widths that are timed.", within="[0, inf)")


@click.command("profile", cls=GroupedCommand)
@click.argument("spec", metavar="[MODEL]", required=False)
@flags_of(ModelOptions)
@click.option("--out", type=FilePath(), help="File of the profile.")
@flags_of(ProfileFlags)
@click.option("--fresh", is_flag=True, help="Measure again what was measured before on the same terms.")
@click.option(
    "--kit", type=FilePath(), metavar="DIR", help="Write graphs and a script that times them on another machine."
)
@click.option(
    "--from-kit", type=FilePath(), metavar="RESULTS", help="Make the profile of what the script of a kit has written."
)
@common_options
def profile_command(
    spec: str | None,
    out: Path | None,
    fresh: bool,
    kit: Path | None,
    from_kit: Path | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Measure how long a model takes at any widths, for budgets such as latency=0.5.

    The profile belongs to the network, the processor, the version of onnxruntime, and the number of threads. With --kit it
    is measured on another machine, which needs numpy and onnxruntime alone: copy the folder, run its run.py, and give the
    results to --from-kit.
    """
    said = given({"spec": spec, "out": out, "kit": kit, "from_kit": from_kit})
    require_outcome(said)
    terms, model = chosen(ProfileFlags, values), chosen(ModelOptions, values | ({"spec": spec} if spec else {}))
    with working():
        if kit is not None:
            script = make_kit(model, terms, kit)
            result: dict[str, Any] = {"kit": str(kit), "script": str(script)}
        else:
            assert out is not None
            profile = read_kit(from_kit) if from_kit is not None else measure(model, terms, fresh=fresh)
            profile.save(out)
            result = {"profile": str(out), **figures(profile)}
    if kit is not None:
        show(result, as_json, lambda: say(f"Next, on the other machine: python {result['script']}"))
    else:
        show(result, as_json, lambda: print_profile(result, profile))


def require_outcome(said: dict[str, Any]) -> None:
    """See that what was typed goes together.

    Raises:
        click.UsageError: names what does not.
    """
    if "kit" in said and "from_kit" in said:
        raise click.UsageError("--kit and --from-kit are two steps: give one of them")
    if "kit" in said and "out" in said:
        raise click.UsageError("--kit writes graphs to time elsewhere, and no profile: leave out --out")
    if "from_kit" in said and "spec" in said:
        raise click.UsageError("--from-kit knows the network that was measured: leave out MODEL")
    if "from_kit" not in said and "spec" not in said:
        raise click.UsageError("MODEL is missing")
    if "kit" not in said and "out" not in said:
        raise click.UsageError("--out is missing")


def measure(model: ModelOptions, terms: ProfileFlags, *, fresh: bool) -> "Profile":
    """Measure a model here."""
    import l0prune
    from l0prune.profiling.measure import ProfileOptions, profile_network

    loaded = load(model)
    remember(model_call(model))
    flow = l0prune.trace(loaded.model, loaded.example_inputs)
    with share_bar() as progress:
        return profile_network(
            loaded.model,
            loaded.example_inputs,
            flow=flow,
            name=model.spec,
            options=ProfileOptions(**vars(terms)),
            fresh=fresh,
            progress=progress,
        )


def make_kit(model: ModelOptions, terms: ProfileFlags, folder: Path) -> Path:
    """Write a kit; returns its script."""
    import l0prune
    from l0prune.profiling.kit import write_kit
    from l0prune.profiling.measure import ProfileOptions

    loaded = load(model)
    remember(model_call(model))
    flow = l0prune.trace(loaded.model, loaded.example_inputs)
    options = ProfileOptions(**vars(terms))
    with share_bar() as progress:
        return write_kit(
            loaded.model, loaded.example_inputs, folder, flow=flow, name=model.spec, options=options, progress=progress
        )


def read_kit(results: Path) -> "Profile":
    """The profile of what a kit has measured."""
    from l0prune.profiling.kit import profile_from_kit

    return profile_from_kit(results)


def figures(profile: "Profile") -> dict[str, Any]:
    """What a profile says in short, as plain data."""
    errors = [abs(check.predicted_ms / check.measured_ms - 1) for check in profile.checks]
    return {
        "model": profile.model,
        "dense_ms": profile.dense_ms,
        "dense_interval_ms": list(profile.dense_interval_ms),
        "processor": profile.processor,
        "onnxruntime": profile.environment.onnxruntime,
        "threads": profile.threads,
        "batch_size": profile.environment.batch_size,
        "checks": len(errors),
        "within_5_percent": sum(error <= 0.05 for error in errors) / max(len(errors), 1),
        "within_10_percent": sum(error <= 0.10 for error in errors) / max(len(errors), 1),
        "seconds": profile.seconds,
    }


def print_profile(result: dict[str, Any], profile: "Profile") -> None:
    """What was measured, how well it predicts, and what to do with it."""
    low, high = profile.dense_interval_ms
    rows = [
        ("dense", f"{profile.dense_ms:.3f} ms", f"{low:.3f} - {high:.3f}"),
        *(
            (f"check {number + 1}", f"{check.measured_ms:.3f} ms", f"{check.predicted_ms / check.measured_ms:.3f}")
            for number, check in enumerate(profile.checks[:SHOWN])
        ),
    ]
    title = f"{profile.model}, onnxruntime {profile.environment.onnxruntime}, {profile.threads} threads, {profile.processor}"
    print_table(console(), title, ("", "measured", "predicted / measured, or interval"), rows)
    say(
        f"Of {result['checks']} networks that took no part, {result['within_5_percent']:.0%} are predicted within 5 %,"
        f" {result['within_10_percent']:.0%} within 10 %. Next: l0prune"
        f" finetune {profile.model or 'MODEL'} --budget latency=0.5 --profile {quote(result['profile'])}"
    )
