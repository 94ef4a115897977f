"""Benchmark of ONNX files in onnxruntime on the CPU: in turn, on equal terms, with an interval on the speedup."""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors
from torch import Tensor

from l0prune.bench.report import BenchReport, Latency, ModelTiming, Speedup, bench_table
from l0prune.errors import ConfigError, L0PruneWarning
from l0prune.machine import memory_bytes, require_threads
from l0prune.measuring.hardware import Environment
from l0prune.measuring.session import open_session
from l0prune.measuring.timing import PairedTimes, interleave, median_ratio
from l0prune.onnx.onnx_model import EXAMPLE_KEY, LARGEST_KEY
from l0prune.reading import reading

__all__ = [
    "BLOCK_S",
    "BenchReport",
    "Facts",
    "Latency",
    "ModelTiming",
    "Speedup",
    "bench_table",
    "benchmark",
    "report_of",
    "require_counts",
]

Arrays = Tensor | np.ndarray
BLOCK_S = 0.01
_FLOAT_TYPES = {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


def benchmark(
    models: Mapping[str, Path | str],
    inputs: Arrays | tuple[Arrays, ...] | Mapping[str, Arrays] | None = None,
    *,
    threads: int = 1,
    batch_size: int | None = None,
    warmup_s: float = 0.3,
    min_samples: int = 100,
    min_seconds: float = 2.0,
    max_seconds: float = 60.0,
    seed: int = 0,
) -> BenchReport:
    """Time ONNX files against each other in onnxruntime on the CPU.

    All graph optimisations are on, execution is sequential, and inputs are bound once. After all have warmed up, the
    models run in blocks of about 10 ms each, in random order, over and over. The speedup of a model over the first one
    is the median over the blocks of (median run of the first / median run of the model), so that whatever slows the whole
    machine cancels. On one thread, times are the thread's own processor time, so that a busy machine gives the latency of
    an idle one.

    Args:
        models: Name -> ONNX file; the first is the baseline.
        inputs: One array, a tuple in the order of the model's inputs, or a dict by input name; the same for all models.
            None makes them at random from each model's own input shapes and types: normal values, ids from 1 to 9 or the
            example's largest, masks of ones. Free sizes other than the batch are those of the example given to `export_onnx`.
        threads: Threads within one operator, from 1 to as many as this machine has processors, or 64.
        batch_size: Rows of the inputs made at random, default 1; must match `inputs` if those are given.
        warmup_s: Seconds of untimed runs of each model, at least three runs.
        min_samples: Minimum number of timed runs of each model.
        min_seconds: Minimum seconds of timing in total.
        max_seconds: The timing ends after this, with at least three blocks.
        seed: Seed of the inputs, the order, and the bootstrap of the interval.

    Returns:
        Latencies, sizes, speedups with their 95 % intervals, and what they were measured on. `warnings` names models that
        are smaller than the first but nevertheless slower; a warning is issued for these as well (`L0PruneWarning`).

    Raises:
        ConfigError: if a file is missing, there is no model, a model refuses the batch size or the inputs, or a number
            is out of range.
        FileFormatError: if a file is not an ONNX model.
        ExportError: if onnxruntime cannot run one of its operators.
    """
    require_counts(models, "ONNX file", threads=threads, batch_size=batch_size, min_samples=min_samples)
    sessions = {name: open_session(Path(path), threads=threads) for name, path in models.items()}
    given_rows = _rows(inputs)
    rows = given_rows or batch_size or 1
    if batch_size is not None and rows != batch_size:
        raise ConfigError(f"batch_size={batch_size}: the inputs given have {rows} rows. Leave out one of the two.")
    runs = []
    for name, session in sessions.items():
        if inputs is None:
            with reading(models[name], "ONNX model"):
                feeds = _random_feeds(name, session, rows, seed)
        else:
            feeds = _given_feeds(name, session, inputs)
        runs.append(_bound_run(name, session, feeds))
    times = interleave(
        runs,
        one_thread=threads == 1,
        warmup_s=warmup_s,
        min_samples=min_samples,
        min_seconds=min_seconds,
        max_seconds=max_seconds,
        block_s=BLOCK_S,
        seed=seed,
    )
    facts = {name: _file_facts(Path(path)) for name, path in models.items()}
    return report_of(times, facts, Environment.here(threads=threads, batch_size=rows), seed=seed)


@dataclass(frozen=True)
class Facts:
    """Size of a model.

    Attributes:
        n_bytes: Of its file with the weights' own, or of its tensors where it has no file.
        n_parameters: Floating-point values in it.
        odd_widths: As in `ModelTiming`.
    """

    n_bytes: int
    n_parameters: int
    odd_widths: tuple[int, ...] = ()


def report_of(
    times: PairedTimes, facts: Mapping[str, Facts], environment: Environment, *, seed: int, runtime: str | None = None
) -> BenchReport:
    """What was measured, as a report; a model that is smaller than the first and slower all the same is warned about.

    Args:
        times: Of the models in the order of `facts`; the first is the baseline.
        facts: Name -> size.
        environment: Where it was measured.
        seed: Of the bootstrap.
        runtime: What ran the models; None is onnxruntime.
    """
    rows, names = environment.batch_size, list(facts)
    report = BenchReport(
        models=tuple(_timing(name, times.seconds[i], rows, facts[name]) for i, name in enumerate(names)),
        baseline=names[0],
        speedup=_speedups(names, times, seed),
        clock=times.clock,
        busy=times.busy,
        environment=environment,
        runtime=runtime or f"onnxruntime {environment.onnxruntime}",
    )
    for warning in report.warnings:
        warnings.warn(warning, L0PruneWarning, stacklevel=3)
    return report


def require_counts(models: Mapping[str, Any], kind: str, **counts: int | None) -> None:
    """See that there is something to measure, that counts that are given are positive, and threads no more than can be meant.

    Raises:
        ConfigError: no models, or names the first count that is not.
    """
    if not models:
        raise ConfigError(f"benchmark: no models given; expected name -> {kind}.")
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ConfigError(f"{name}={value}: expected 1 or more.")
    require_threads(counts.get("threads") or 1)


def _timing(name: str, seconds: np.ndarray, rows: int, facts: Facts) -> ModelTiming:
    ms = seconds.ravel() * 1e3
    quantiles = tuple(float(value) for value in np.quantile(ms, np.linspace(0, 1, 21)))
    p50, p90 = quantiles[10], quantiles[18]
    return ModelTiming(
        name=name,
        latency_ms=Latency(p50=p50, p90=p90, mean=float(ms.mean()), quantiles=quantiles),
        samples=ms.size,
        throughput_per_s=rows * 1e3 / p50,
        file_bytes=facts.n_bytes,
        n_parameters=facts.n_parameters,
        odd_widths=facts.odd_widths,
    )


def _speedups(names: list[str], times: PairedTimes, seed: int) -> dict[str, Speedup]:
    baseline, *others = times.block_medians
    return {
        name: Speedup(*median_ratio(baseline, other, seed=seed)) for name, other in zip(names[1:], others, strict=True)
    }


def _file_facts(path: Path) -> Facts:
    """Size of the file and of the weight files it names, and the number of floating-point values in it."""
    with reading(path, "ONNX model"):
        model = onnx.load(str(path), load_external_data=False)
        files = {path}
        for tensor in model.graph.initializer:
            files |= {path.parent / entry.value for entry in tensor.external_data if entry.key == "location"}
        floats = [tensor for tensor in model.graph.initializer if tensor.data_type in _FLOAT_TYPES]
        return Facts(
            n_bytes=sum(file.stat().st_size for file in files),
            n_parameters=sum(int(np.prod(tensor.dims, dtype=np.int64)) for tensor in floats),
            odd_widths=_odd_widths(model.graph),
        )


def _odd_widths(graph: onnx.GraphProto) -> tuple[int, ...]:
    """Input channels of convolutions, each number once, from 16 on and no multiples of 4."""
    shapes = {tensor.name: tensor.dims for tensor in graph.initializer}
    found = set()
    for node in graph.node:
        shape = list(shapes.get(node.input[1], [])) if node.op_type in ("Conv", "ConvTranspose") else []
        if len(shape) > 2:
            groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
            found.add(int(shape[1] * groups if node.op_type == "Conv" else shape[0]))
    return tuple(sorted(width for width in found if width >= 16 and width % 4))


def _rows(inputs: Any) -> int | None:
    """Batch size of the inputs given; None where there are none."""
    if inputs is None:
        return None
    arrays = (
        inputs.values() if isinstance(inputs, Mapping) else inputs if isinstance(inputs, tuple | list) else (inputs,)
    )
    return next((int(array.shape[0]) for array in arrays if array.ndim), None)


def _given_feeds(name: str, session: onnxruntime.InferenceSession, inputs: Any) -> dict[str, np.ndarray]:
    """The inputs given, by the model's names."""
    wanted = [node.name for node in session.get_inputs()]
    if isinstance(inputs, Mapping):
        feeds = dict(inputs)
    else:
        arrays = inputs if isinstance(inputs, tuple | list) else (inputs,)
        feeds = dict(zip(wanted, arrays, strict=False)) if len(arrays) == len(wanted) else {}
    if set(feeds) != set(wanted):
        found = ", ".join(feeds) if isinstance(inputs, Mapping) else f"{len(arrays)} arrays"
        raise ConfigError(f"model {name!r}: expected the inputs {', '.join(wanted)}, found {found}.")
    return {key: _array(value) for key, value in feeds.items()}


def _array(value: Arrays) -> np.ndarray:
    array: np.ndarray = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    return array


def _random_feeds(name: str, session: onnxruntime.InferenceSession, rows: int, seed: int) -> dict[str, np.ndarray]:
    """Inputs of the model's own shapes and types; equal for equal models."""
    rng = np.random.default_rng(seed)
    feeds = {}
    known = session.get_modelmeta().custom_metadata_map
    _require_batch(name, session, rows)
    for node in session.get_inputs():
        shape = [int(known.get(f"{EXAMPLE_KEY}{size}", 0)) or size for size in node.shape]
        if shape and isinstance(shape[0], str):
            shape[0] = rows
        unknown = [size for size in shape if not isinstance(size, int)]
        if unknown:
            raise ConfigError(
                f"model {name!r}: input {node.name!r} has the free dimension {unknown[0]!r}. Pass inputs."
            )
        _require_room(name, node.name, shape)
        largest = int(known.get(f"{LARGEST_KEY}{node.name}", 9))
        feeds[node.name] = _random_array(name, node, shape, rng, largest=largest)
    return feeds


def _require_batch(name: str, session: onnxruntime.InferenceSession, rows: int) -> None:
    """See that a model takes so many rows; one that names a first dimension takes any."""
    first = {node.name: node.shape[0] for node in session.get_inputs() if node.shape}
    if first and rows not in first.values() and not any(isinstance(size, str) for size in first.values()):
        key, size = next(iter(first.items()))
        raise ConfigError(
            f"model {name!r}: input {key!r} has a fixed batch of {size}, found batch_size={rows}. "
            f"Benchmark with batch_size={size}, or export with dynamic_batch=True."
        )


def _require_room(name: str, input_name: str, shape: list[int]) -> None:
    """See that an input can be made here, with a copy of it.

    Raises:
        ConfigError: it takes more than half of the memory.
    """
    n_bytes, memory = 2 * 8 * math.prod(shape), memory_bytes()
    if memory is not None and n_bytes > memory / 2:
        raise ConfigError(
            f"model {name!r}: input {input_name!r} of shape {shape} takes {n_bytes / 1e9:.3g} GB of this machine's"
            f" {memory / 1e9:.3g} GB. Choose a smaller batch_size."
        )


def _random_array(name: str, node: Any, shape: list[int], rng: np.random.Generator, *, largest: int) -> np.ndarray:
    dtype = _DTYPES.get(node.type)
    if dtype is None:
        raise ConfigError(f"model {name!r}: input {node.name!r} is a {node.type}; pass inputs for it.")
    if "mask" in node.name or dtype is np.bool_:
        return np.ones(shape, dtype=dtype)
    if np.issubdtype(dtype, np.integer):
        if "type" in node.name or largest < 1:
            return np.zeros(shape, dtype=dtype)
        return rng.integers(1, min(largest, 9) + 1, size=shape).astype(dtype)
    return rng.normal(size=shape).astype(dtype)


def _bound_run(
    name: str, session: onnxruntime.InferenceSession, feeds: Mapping[str, np.ndarray]
) -> Callable[[], object]:
    """One run with inputs and outputs bound once; tried before it is returned."""
    binding = session.io_binding()
    for key, value in feeds.items():
        binding.bind_ortvalue_input(key, onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value)))
    for node in session.get_outputs():
        binding.bind_output(node.name, "cpu")

    def run() -> None:
        session.run_with_iobinding(binding)

    try:
        run()
    except (ort_errors.InvalidArgument, ort_errors.Fail, ort_errors.RuntimeException, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"model {name!r}: does not run on these inputs ({reason}).") from error
    return run
