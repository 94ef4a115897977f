"""`l0prune study`: measurements of the gates themselves, without a network."""

from pathlib import Path
from typing import Any

import click

from l0prune.cli.flags import FilePath, common_options, threads_option, whole
from l0prune.cli.output import console, note, print_table, show, working

__all__ = ["gradients_command", "study_command"]


@click.group("study")
def study_command() -> None:
    """Measure the gates themselves, without a network."""


@study_command.command("gradients")
@click.option("--samples", type=whole("[2, inf)"), default=1_000_000, show_default=True, help="Samples per point.")
@click.option("--seed", type=whole("[0, inf)"), default=0, show_default=True, help="Seed of the samples.")
@click.option("--out", type=FilePath(file_okay=False), help="Directory to write gradients.json and pictures to.")
@threads_option
@common_options
def gradients_command(samples: int, seed: int, out: Path | None, as_json: bool) -> None:
    """Gradient variance against the distance from a binary gate.

    For the concrete gate and the three mixtures at q = 1/2, over the published betas. With --out also as pictures: the
    trade-off, and density, quantile and gradient of each family.
    """
    with working():
        result = study_gradients(samples=samples, seed=seed, out=out)
    show(result, as_json, lambda: print_points(result))


def study_gradients(*, samples: int, seed: int, out: Path | None) -> dict[str, Any]:
    """Measure all points, and write them where `out` says; plain data."""
    from l0prune.files import write_json
    from l0prune.study.figures import draw_families, draw_trade_off
    from l0prune.study.gradients import gradient_points

    points = list(gradient_points(samples, seed=seed))
    result = {
        "format": "l0prune.gradients",
        "version": 1,
        "samples": samples,
        "seed": seed,
        "points": [point.to_json() for point in points],
    }
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        draw_trade_off(points, out / "trade-off.svg")
        draw_families(out / "families.svg")
        write_json(out / "gradients.json", result)
        note(f"written to {out}: gradients.json, trade-off.svg, families.svg")
    return result


def print_points(result: dict[str, Any]) -> None:
    """One row a point."""
    rows = [
        (
            point["family"],
            f"{point['beta']:g}",
            f"{point['variance']:.4f}",
            f"{point['mean']:.4f}",
            f"{point['distance']:.6f}",
        )
        for point in result["points"]
    ]
    columns = ("gate", "beta", "variance of dz/dq", "mean of dz/dq", "mean |z - round z|")
    print_table(console(), f"{result['samples']} samples per point, q = 1/2", columns, rows)
