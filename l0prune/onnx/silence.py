"""Messages of other libraries: their warnings and log lines, and what they write past Python to the output of the process."""

import ctypes
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path

__all__ = ["silenced", "without_messages"]

_OUTPUTS = (1, 2)
_NOISY_LOGGERS = ("torch.onnx", "torch.export", "torch._export", "torch._dynamo", "torch.fx", "onnxscript", "onnx_ir")


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


@contextmanager
def without_messages() -> Iterator[None]:
    """No warnings and no log lines from the exporters; both as before afterwards."""
    loggers = [logging.getLogger(name) for name in _NOISY_LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
