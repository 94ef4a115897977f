"""How the process of a command ends: a failure is one line and an exit code, and streams outlast their readers."""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import click

from l0prune.errors import L0PruneError

__all__ = [
    "EXIT_BUDGET_MISSED",
    "EXIT_ERROR",
    "EXIT_INTERRUPTED",
    "Interrupted",
    "LastingStream",
    "describe",
    "exit_with_one_line",
    "make_streams_last",
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


class LastingStream:
    """A text stream that goes quiet where nobody reads it any more.

    Args:
        stream: The stream; anything but writing is left to it.
        forgiving: Whether every failure to write is taken that way, not only a reader that is gone. What a command says
            about its work may be lost; a result may not.
    """

    def __init__(self, stream: TextIO, *, forgiving: bool) -> None:
        self._stream = stream
        self._forgiving = forgiving

    def write(self, text: str) -> int:
        """Write text; nothing where there is no reader."""
        if text == "":  # click asks in this way what a stream takes
            return 0
        try:
            return self._stream.write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        """Pass on what has been written; nothing where there is no reader."""
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def __getattr__(self, name: str) -> Any:
        """Everything else is the stream's own."""
        return getattr(self._stream, name)

    def _give_up(self, error: OSError) -> None:
        """Let what comes, and what still waits, go nowhere.

        Raises:
            OSError: the error, where it means that a result is lost.
        """
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
        if not self._forgiving and error.errno != errno.EPIPE:
            raise OSError(error.errno, error.strerror, "standard output") from error


def make_streams_last() -> None:
    """Prepare this process's streams for a command that must not end with whoever reads them.

    A stream that was closed from the start goes nowhere; names of files that are no text of the locale are written as the
    bytes they are.
    """
    for descriptor in (0, 1, 2):
        if not _is_open(descriptor):
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, which is this one
    sys.stdout = _lasting(sys.stdout, 1, forgiving=False)  # type: ignore[assignment]
    sys.stderr = _lasting(sys.stderr, 2, forgiving=True)  # type: ignore[assignment]


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _lasting(stream: TextIO | None, descriptor: int, *, forgiving: bool) -> LastingStream:
    if stream is None:
        stream = os.fdopen(descriptor, "w", encoding="utf-8", closefd=False)
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="surrogateescape")
    return LastingStream(stream, forgiving=forgiving)
