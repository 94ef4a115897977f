"""Benchmark of ONNX files in onnxruntime on the CPU: in turn, on equal terms, with an interval on the speedup."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from torch import Tensor

from l0prune.bench.processes import Sessions, measure_in_processes
from l0prune.bench.report import BenchReport, ColdStart, Latency, ModelTiming, Speedup, bench_table
from l0prune.bench.running import Start, bound_run
from l0prune.errors import ConfigError, L0PruneWarning
from l0prune.machine import require_threads
from l0prune.measuring.denormals import flushed_denormals
from l0prune.measuring.hardware import Environment
from l0prune.measuring.session import open_session
from l0prune.measuring.timing import interleave, median_ratio, ratio_between_sessions
from l0prune.onnx.feeds import given_feeds, random_feeds, rows_of
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

_EIGHT_BITS = {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}


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
    processes: int = 5,
    sizes: Mapping[str, int] | None = None,
    seed: int = 0,
) -> BenchReport:
    """Time ONNX files against each other in onnxruntime on the CPU.

    All graph optimisations are on, execution is sequential, inputs are bound once, and numbers below the normal range count as
    zero. In each of several fresh processes, after all have warmed up, the models run in blocks of about 10 ms each, in random
    order, over and over. The speedup of a model over the first one in a process is the median over the blocks of (median run of
    the first / median run of the model), so that whatever slows the whole machine cancels; its interval is the one that the
    speedup in another process lies in, 19 times of 20. On one thread, times are the thread's own processor time, so that a
    busy machine gives the latency of an idle one. Other processes, three at most for each model, start it cold: they show how
    long loading and the first run take, and how much memory.

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
        max_seconds: The timing ends after this, with at least three blocks in each process.
        processes: Processes to measure in, >= 1. With 1 it is this process, no model is started cold, and the interval is that
            of the median over this process's blocks: another process may well show a speedup outside of it.
        sizes: Name of a free dimension -> its size in inputs made at random, as in {"length": 128}.
        seed: Seed of the inputs, the order, and the bootstrap of the interval in one process.

    Returns:
        Latencies, sizes, speedups with their 95 % intervals, and what they were measured on. `warnings` names models that
        are smaller than the first but no faster; a warning is issued for these as well (`L0PruneWarning`).

    Raises:
        ConfigError: if a file is missing, there is no model, a model refuses the batch size or the inputs, or a number
            is out of range.
        FileFormatError: if a file is not an ONNX model.
        ExportError: if onnxruntime cannot run one of its operators.
    """
    require_counts(
        models, "ONNX file", threads=threads, batch_size=batch_size, min_samples=min_samples, processes=processes
    )
    require_counts(models, "ONNX file", **(sizes or {}))
    given_rows = rows_of(inputs)
    rows = given_rows or batch_size or 1
    if batch_size is not None and rows != batch_size:
        raise ConfigError(f"batch_size={batch_size}: the inputs given have {rows} rows. Leave out one of the two.")
    if inputs is not None and sizes:
        raise ConfigError(f"sizes={dict(sizes)}: the inputs given have their own. Leave out one of the two.")
    how: dict[str, Any] = {
        "warmup_s": warmup_s,
        "min_samples": min_samples,
        "min_seconds": min_seconds,
        "max_seconds": max_seconds,
        "block_s": BLOCK_S,
        "seed": seed,
    }
    with flushed_denormals():
        runs, feeds = [], []
        for name, path in models.items():
            session = open_session(Path(path), threads=threads, flush_denormals=True)
            if inputs is None:
                with reading(path, "ONNX model"):
                    feeds.append(random_feeds(name, session, rows, sizes or {}, seed=seed))
            else:
                feeds.append(given_feeds(name, session, inputs))
            run = bound_run(name, session, feeds[-1])
            if processes == 1:
                runs.append(run)
        if processes == 1:
            found = Sessions((interleave(runs, one_thread=threads == 1, **how),), ())
        else:
            paths = [Path(path) for path in models.values()]
            found = measure_in_processes(paths, feeds, threads=threads, processes=processes, **how)
    facts = {name: _file_facts(Path(path)) for name, path in models.items()}
    environment = Environment.here(threads=threads, batch_size=rows)
    return report_of(found, facts, environment, seed=seed, sizes=sizes or {})


@dataclass(frozen=True)
class Facts:
    """Size of a model.

    Attributes:
        n_bytes: Of its file with the weights' own, or of its tensors where it has no file.
        n_parameters: Values of its weights.
        odd_widths: As in `ModelTiming`.
    """

    n_bytes: int
    n_parameters: int
    odd_widths: tuple[int, ...] = ()


def report_of(
    found: Sessions,
    facts: Mapping[str, Facts],
    environment: Environment,
    *,
    seed: int,
    sizes: Mapping[str, int] | None = None,
    runtime: str | None = None,
) -> BenchReport:
    """What was measured, as a report; a model that is smaller than the first and not faster is warned about.

    Args:
        found: Times of the models in the order of `facts`; the first is the baseline.
        facts: Name -> size.
        environment: Where it was measured.
        seed: Of the bootstrap.
        sizes: Of free dimensions other than the batch.
        runtime: What ran the models; None is onnxruntime.
    """
    rows, names, starts = environment.batch_size, list(facts), found.starts or ((),) * len(facts)
    report = BenchReport(
        models=tuple(_timing(name, _all_runs(found, i), rows, facts[name], starts[i]) for i, name in enumerate(names)),
        baseline=names[0],
        speedup=_speedups(names, found, seed),
        clock=found.times[0].clock,
        busy=float(np.mean([times.busy for times in found.times])),
        environment=environment,
        processes=len(found.times),
        sizes=dict(sizes or {}),
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


def _all_runs(found: Sessions, index: int) -> np.ndarray:
    """Seconds of every run of a model."""
    return np.concatenate([times.seconds[index].ravel() for times in found.times])


def _timing(name: str, seconds: np.ndarray, rows: int, facts: Facts, starts: Sequence[Start]) -> ModelTiming:
    ms = seconds * 1e3
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
        start=_typical(starts),
    )


def _typical(starts: Sequence[Start]) -> ColdStart | None:
    """Medians of times, and the most memory."""
    if not starts:
        return None
    peaks = [start.peak_bytes for start in starts if start.peak_bytes is not None]
    return ColdStart(
        load_ms=float(np.median([start.load_ms for start in starts])),
        first_run_ms=float(np.median([start.first_run_ms for start in starts])),
        peak_bytes=max(peaks) if peaks else None,
    )


def _speedups(names: list[str], found: Sessions, seed: int) -> dict[str, Speedup]:
    baseline, *others = zip(*(times.block_medians for times in found.times), strict=True)
    if len(found.times) == 1:
        ratios = [median_ratio(baseline[0], other[0], seed=seed) for other in others]
    else:
        ratios = [ratio_between_sessions(baseline, other) for other in others]
    return {name: Speedup(*ratio) for name, ratio in zip(names[1:], ratios, strict=True)}


def _file_facts(path: Path) -> Facts:
    """Size of the file and of the weight files it names, and the number of values in its weights."""
    with reading(path, "ONNX model"):
        model = onnx.load(str(path), load_external_data=False)
        files = {path}
        for tensor in model.graph.initializer:
            files |= {path.parent / entry.value for entry in tensor.external_data if entry.key == "location"}
        weights = [tensor for tensor in model.graph.initializer if _is_weight(tensor)]
        return Facts(
            n_bytes=sum(file.stat().st_size for file in files),
            n_parameters=sum(int(np.prod(tensor.dims, dtype=np.int64)) for tensor in weights),
            odd_widths=_odd_widths(model.graph),
        )


def _is_weight(tensor: onnx.TensorProto) -> bool:
    """Whether a tensor holds weights; those in eight bits have dimensions, the zero points beside them do not."""
    return tensor.data_type in _FLOAT_TYPES or (tensor.data_type in _EIGHT_BITS and bool(tensor.dims))


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
