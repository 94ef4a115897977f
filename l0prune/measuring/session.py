"""How onnxruntime is opened here: for checks, for measurements, on equal terms."""

from pathlib import Path

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from l0prune.errors import ConfigError, ExportError, FileFormatError, first_line
from l0prune.machine import require_threads
from l0prune.reading import is_file, reading

__all__ = ["open_session"]

_UNREADABLE = (ort_errors.InvalidProtobuf, ort_errors.InvalidGraph, ort_errors.NoSuchFile, ort_errors.NoModel)
_UNSUPPORTED = (ort_errors.NotImplemented, ort_errors.Fail, ort_errors.RuntimeException)


def open_session(
    model: Path | bytes, *, threads: int = 1, flush_denormals: bool = False
) -> onnxruntime.InferenceSession:
    """A CPU session with every graph optimisation, sequential, on a fixed number of threads.

    Args:
        model: An ONNX file, or its bytes.
        threads: Threads within one operator, from 1 to as many as this machine has processors, or 64. They stop spinning
            when a run ends, so that sessions measured in turn do not steal each other's cores.
        flush_denormals: Set onnxruntime's option for it: its own threads take numbers below the normal range for zero, and the
            calling thread too if this is the first session of the process.

    Raises:
        ConfigError: if the file does not exist or `threads` is out of range.
        FileFormatError: if it is not an ONNX model.
        ExportError: if onnxruntime has no kernel for one of its operators.
    """
    require_threads(threads)
    name = "the ONNX model" if isinstance(model, bytes) else str(model)
    if isinstance(model, Path) and not is_file(model):
        raise ConfigError(f"{name}: no such file. Give the path of an ONNX model.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4  # fatal only: what goes wrong is raised
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if flush_denormals:
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
    source = model if isinstance(model, bytes) else str(model)
    if isinstance(model, Path):
        with reading(model, "ONNX model"):
            return _session(source, name, options)
    return _session(source, name, options)


def _session(source: str | bytes, name: str, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except _UNREADABLE as error:
        raise FileFormatError(f"{name}: not an ONNX model that onnxruntime can read ({first_line(error)}).") from error
    except _UNSUPPORTED as error:
        raise ExportError(f"{name}: onnxruntime cannot run it on this CPU ({first_line(error)}).") from error
