"""From exceptions to exit codes: a failure is one line on stderr that names the thing and the remedy."""

from collections.abc import Iterator
from contextlib import contextmanager

import click

from l0prune.errors import L0PruneError

__all__ = [
    "EXIT_BUDGET_MISSED",
    "EXIT_ERROR",
    "EXIT_INTERRUPTED",
    "Interrupted",
    "describe",
    "exit_with_one_line",
    "one_line",
]

EXIT_ERROR = 1
EXIT_BUDGET_MISSED = 3
EXIT_INTERRUPTED = 130

DEBUG_KEY = "l0prune.debug"
LONGEST_UNEXPECTED_MESSAGE = 400


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during work that can be continued; the message says how."""


@contextmanager
def exit_with_one_line(ctx: click.Context) -> Iterator[None]:
    """Turn any exception but click's own into a line on stderr and an exit code.

    With `--debug` the traceback is printed above that line.
    """
    try:
        yield
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except KeyboardInterrupt as interrupt:
        click.echo(f"interrupted: {one_line(interrupt) or 'nothing was written'}", err=True)
        ctx.exit(EXIT_INTERRUPTED)
    except Exception as error:  # noqa: BLE001 - every failure ends in a line
        if ctx.meta.get(DEBUG_KEY):
            import traceback

            click.echo(traceback.format_exc(), err=True)
        click.echo(f"error: {describe(error)}", err=True)
        ctx.exit(EXIT_ERROR)


def describe(error: Exception) -> str:
    """One line about an error: its own words if it was meant for the user, else what happened and how to see more."""
    if isinstance(error, L0PruneError):
        return one_line(error)
    if isinstance(error, OSError) and error.strerror:
        where = f" {str(error.filename)!r}" if error.filename is not None else ""
        return f"cannot use{where or ' a file'}: {error.strerror}; check the path, its permissions and free space"
    message = one_line(error)
    if len(message) > LONGEST_UNEXPECTED_MESSAGE:
        message = message[:LONGEST_UNEXPECTED_MESSAGE] + " ..."
    separator = ": " if message else ""
    return f"unexpected {type(error).__name__}{separator}{message} (run again with --debug to see where)"


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks."""
    return " ".join(str(error).split())
