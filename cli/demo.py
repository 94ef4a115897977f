"""`l0prune demo`."""

import click

from l0prune.cli.options import common_options


@click.command("demo")
@common_options
def demo_command(as_json: bool) -> None:
    """Do it."""
