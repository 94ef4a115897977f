"""The `l0prune` command: collects the subcommands and turns every failure into one line and an exit code."""

import sys

import click

from l0prune import __version__
from l0prune.cli.bench import bench_command
from l0prune.cli.demo import demo_command
from l0prune.cli.evaluate import eval_command
from l0prune.cli.finetune import finetune_command
from l0prune.cli.inspect import inspect_command
from l0prune.cli.process import EXIT_ERROR, describe, exit_with_one_line, make_streams_last
from l0prune.cli.profile import profile_command
from l0prune.cli.report import plot_command, report_command
from l0prune.cli.shrink import shrink_command
from l0prune.cli.study import study_command
from l0prune.cli.sweep import sweep_command
from l0prune.cli.verify import verify_command
from l0prune.cli.vocabulary import vocabulary_command

__all__ = ["cli", "main"]


class CommandLine(click.Group):
    """A command group that lists commands in the order of use and never shows a traceback unasked."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Command names in the order in which they are used."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> object:
        """Run the subcommand; any exception ends in one line on stderr."""
        with exit_with_one_line(ctx):
            return super().invoke(ctx)


@click.group(cls=CommandLine, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="l0prune")
def cli() -> None:
    """Make a trained network physically smaller: learn what to cut, cut it, check it, measure it.

    \b
    l0prune finetune MODEL --weights W --data D --budget macs=0.5 --out RUN
    l0prune shrink RUN
    l0prune bench RUN

    Exit codes: 0 done; 1 error; 2 usage; 3 finished, but the budget was missed; 130 interrupted.
    """  # noqa: D301 - click wants the character, not the backslash


for command in (
    inspect_command,
    verify_command,
    profile_command,
    vocabulary_command,
    finetune_command,
    sweep_command,
    shrink_command,
    bench_command,
    eval_command,
    report_command,
    plot_command,
    study_command,
    demo_command,
):
    cli.add_command(command)


def main() -> None:
    """Entry point of the installed `l0prune` script."""
    make_streams_last()
    try:
        cli(prog_name="l0prune")
    except OSError as error:  # of help that cannot be written; what commands raise is seen to already
        click.echo(f"error: {describe(error)}", err=True)
        sys.exit(EXIT_ERROR)


if __name__ == "__main__":
    main()
