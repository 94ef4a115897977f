"""`l0prune report` and `l0prune plot`: one self-contained page about a run, and pictures from its metrics."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from l0prune.cli.flags import Decorator, FilePath, common_options
from l0prune.cli.output import note, say, show, working

if TYPE_CHECKING:
    from l0prune.report.histories import CostHistory

__all__ = [
    "cost_command",
    "gates_command",
    "plot_command",
    "plot_costs",
    "plot_gates",
    "plot_sweep",
    "report_command",
    "report_run",
    "sweep_plot_command",
]


@click.command("report")
@click.argument("path", metavar="RUN", type=FilePath())
@common_options
def report_command(path: Path, as_json: bool) -> None:
    """Write one self-contained page about a run, with pictures."""
    with working():
        page = report_run(path)
    show({"run": str(path), "report": str(page)}, as_json, lambda: say(str(page)))


def report_run(path: Path) -> Path:
    """Write the page of a finished run.

    Returns:
        Its path.

    Raises:
        ConfigError: if the `report` extra is not installed.
        L0PruneError: if the run's files cannot be understood.
    """
    from l0prune.report.page import write_report

    return write_report(path)


@click.group("plot")
def plot_command() -> None:
    """Draw how the gates and the costs of a run developed."""


def picture_option(default: str) -> Decorator:
    """Add `--out FILE`."""
    return click.option(
        "--out",
        type=FilePath(dir_okay=False),
        default=Path(default),
        show_default=True,
        help="Picture to write: .png, .svg or .pdf.",
    )


@plot_command.command("gates")
@click.argument("path", metavar="RUN", type=FilePath())
@picture_option("gates.svg")
@click.option("--samples", is_flag=True, help="Count sampled values of the gates instead of their open probabilities.")
@common_options
def gates_command(path: Path, out: Path, samples: bool, as_json: bool) -> None:
    """Histograms of the gates' open probability over the epochs, all together and by layer.

    RUN may still be training. The histograms are read from its metrics.jsonl.
    """
    with working():
        result = plot_gates(path, out, of="samples" if samples else "probability")
    show(result, as_json, lambda: say(result["picture"]))


@plot_command.command("cost")
@click.argument("paths", metavar="RUN...", type=FilePath(), nargs=-1, required=True)
@picture_option("cost.svg")
@common_options
def cost_command(paths: tuple[Path, ...], out: Path, as_json: bool) -> None:
    """Expected and hard cost over the steps, beside the measured time of a step.

    Several runs are drawn into one picture. They may still be training.
    """
    with working():
        result = plot_costs(paths, out)
    show(result, as_json, lambda: say(result["picture"]))


@plot_command.command("sweep")
@click.argument("path", metavar="SWEEP", type=FilePath())
@picture_option("sweep.svg")
@common_options
def sweep_plot_command(path: Path, out: Path, as_json: bool) -> None:
    """Score over cost and time, for the networks of a finished sweep."""
    with working():
        result = plot_sweep(path, out)
    show(result, as_json, lambda: say(result["picture"]))


def plot_sweep(path: Path, out: Path) -> dict[str, Any]:
    """Draw the networks of a sweep; plain data.

    Raises:
        RunDirectoryError: no sweep, or it has not finished.
        ConfigError: `out` names no picture, or matplotlib is not installed.
    """
    from l0prune.errors import RunDirectoryError
    from l0prune.pictures import require_picture_name, save_picture
    from l0prune.report.sweep_plot import draw_sweep
    from l0prune.sweep_directory import SweepDirectory

    require_picture_name(out)
    record = SweepDirectory(path).read()
    if record.result is None:
        raise RunDirectoryError(
            f"{path}: the sweep is {record.status}, not finished; continue it with `l0prune sweep --out {path} --resume`"
        )
    save_picture(draw_sweep(record.result), out)
    return {"sweep": str(path), "picture": str(out), "points": [point.name for point in record.result.points]}


def plot_gates(path: Path, out: Path, *, of: str = "probability") -> dict[str, Any]:
    """Draw the gates of a run, their probabilities of being open or "samples"; plain data.

    Raises:
        RunDirectoryError: no run, or it has no histograms yet.
        ConfigError: `out` names no picture, or matplotlib is not installed.
    """
    from l0prune.pictures import require_picture_name, save_picture
    from l0prune.report.gate_plot import draw_gates
    from l0prune.report.histories import gate_history, run_lines

    require_picture_name(out)
    history = gate_history(str(path), run_lines(path), of=of)
    if not history.layers:
        note(f"{path}: metrics.jsonl counts all gates together only, not by layer: it was written by an older version")
    save_picture(draw_gates(history), out)
    return {
        "run": str(path),
        "picture": str(out),
        "of": history.of,
        "n_gates": history.total.n_gates,
        "n_histograms": len(history.total.epochs),
        "open_share": history.total.open_share[-1],
        "layers": {name: layer.open_share[-1] for name, layer in history.layers.items()},
    }


def plot_costs(paths: Sequence[Path], out: Path) -> dict[str, Any]:
    """Draw the costs of runs; plain data.

    Raises:
        RunDirectoryError: no run, or it has no lines yet.
        ConfigError: `out` names no picture, or matplotlib is not installed.
    """
    from l0prune.pictures import require_picture_name, save_picture
    from l0prune.report.cost_plot import draw_costs

    require_picture_name(out)
    histories = [history_of(path) for path in paths]
    for history in histories:
        if history.missing:
            note(f"{history.name}: metrics.jsonl has no {', '.join(history.missing)}: left out of the picture")
    save_picture(draw_costs(histories), out)
    return {
        "runs": [history.name for history in histories],
        "picture": str(out),
        "missing": {history.name: list(history.missing) for history in histories},
    }


def history_of(path: Path) -> "CostHistory":
    """The costs of a run."""
    from l0prune.report.histories import cost_history, run_lines
    from l0prune.run_directory import RunDirectory

    lines = run_lines(path)
    return cost_history(str(path), lines, metric_of(RunDirectory.open(path).read().config))


def metric_of(config: dict[str, Any]) -> str:
    """What a run's cost counts: the metric of its first budget."""
    return str(config.get("budget") or "macs").partition("=")[0]
