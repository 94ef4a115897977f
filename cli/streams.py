"""Standard streams that outlast their readers: what a command does matters more than who watches it."""

import errno
import io
import os
import sys
from typing import Any, TextIO

__all__ = ["LastingStream", "make_streams_last"]


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
