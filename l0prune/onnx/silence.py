"""Diagnostics that other libraries write past Python, straight to the output of the process."""

import ctypes
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path

__all__ = ["silenced"]

_OUTPUTS = (1, 2)


@contextmanager
def silenced() -> Iterator[None]:
    """Nothing that is written meanwhile to standard output and standard error gets there, by Python or past it.

    For code in C++ that prints whole graphs before it raises. Other threads of the process are silenced too.
    """
    _flush()
    kept: dict[int, int] = {}
    with suppress(OSError):  # a process may have been started without outputs
        kept |= {output: os.dup(output) for output in _OUTPUTS}
    try:
        with Path(os.devnull).open("wb") as nowhere:
            for output in kept:
                os.dup2(nowhere.fileno(), output)
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        _flush()
        for output, copy in kept.items():
            os.dup2(copy, output)
            os.close(copy)


def _flush() -> None:
    """What has been written so far goes where it is to go now."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    if os.name == "posix":
        ctypes.CDLL(None).fflush(None)
