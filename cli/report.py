"""`l0prune report`: one self-contained page about a run."""

from pathlib import Path

import click

from l0prune.cli.options import FilePath, common_options
from l0prune.cli.output import console, show, working

__all__ = ["report_command", "report_run"]


@click.command("report")
@click.argument("path", metavar="RUN", type=FilePath())
@common_options
def report_command(path: Path, as_json: bool) -> None:
    """Write one self-contained page about a run, with pictures."""
    with working():
        page = report_run(path)
    show({"run": str(path), "report": str(page)}, as_json, lambda: console().print(str(page), soft_wrap=True))


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
