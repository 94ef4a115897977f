"""Runs of ONNX files in this process: what is timed, and what opening one costs in time and memory. Light: no torch, no onnx."""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from l0prune.errors import ConfigError
from l0prune.measuring.session import open_session

__all__ = ["Start", "bound_run", "cold_start"]

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Start:
    """The first use of a model in a process of its own.

    Attributes:
        load_ms: Milliseconds from the file to a session, on the wall.
        first_run_ms: Of the first run.
        peak_bytes: The most memory that the session and three runs took, beyond what the process had before; None where the
            system does not say.
    """

    load_ms: float
    first_run_ms: float
    peak_bytes: int | None


def bound_run(
    name: str, session: onnxruntime.InferenceSession, feeds: Mapping[str, np.ndarray]
) -> Callable[[], object]:
    """One run with inputs and outputs bound once; tried before it is returned."""
    run = _binding(session, feeds)
    try:
        run()
    except (ort_errors.InvalidArgument, ort_errors.Fail, ort_errors.RuntimeException, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"model {name!r}: does not run on these inputs ({reason}).") from error
    return run


def cold_start(path: Path, feeds: Mapping[str, np.ndarray], *, threads: int) -> Start:
    """Open a file that this process has not opened yet, and run it."""
    with suppress(OSError):
        _CLEAR.write_text("5")  # the peak counts from here
    before, start = _memory("VmRSS"), time.perf_counter()
    session = open_session(path, threads=threads, flush_denormals=True)
    opened = time.perf_counter()
    run = _binding(session, feeds)
    run()
    done = time.perf_counter()
    run()
    run()
    peak = _memory("VmHWM")
    return Start(
        load_ms=1e3 * (opened - start),
        first_run_ms=1e3 * (done - opened),
        peak_bytes=None if peak is None or before is None else max(0, peak - before),
    )


def _binding(session: onnxruntime.InferenceSession, feeds: Mapping[str, np.ndarray]) -> Callable[[], object]:
    binding = session.io_binding()
    for key, value in feeds.items():
        binding.bind_ortvalue_input(key, onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value)))
    for node in session.get_outputs():
        binding.bind_output(node.name, "cpu")
    return lambda: session.run_with_iobinding(binding)


def _memory(entry: str) -> int | None:
    """Bytes of an entry of this process's status in Linux; None elsewhere."""
    with suppress(OSError, ValueError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith(f"{entry}:"):
                return 1024 * int(line.split()[1])
    return None
