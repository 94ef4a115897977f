"""What each layer of an ONNX file takes in onnxruntime, by its profiler: of several files in turn."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from l0prune.measuring.denormals import flushed_denormals
from l0prune.profiling import runner
from l0prune.profiling.measure import sample_from
from l0prune.profiling.names import layer_names
from l0prune.profiling.outline import CONTRACTIONS
from l0prune.profiling.parts import times_of_parts
from l0prune.reading import reading

__all__ = ["shares_by_layer"]

ROUNDS = 5


def shares_by_layer(
    files: Mapping[str, Path], feeds: Mapping[str, Mapping[str, Any]], *, threads: int = 1, seconds: float = 0.2
) -> dict[str, dict[str, float]]:
    """The share of each layer in the time of a run.

    A layer is a convolution or a product with what follows until the next one, as in a profile. Every file is timed in five
    sessions, in turn with the others; of each layer the median counts.

    Args:
        files: Name -> ONNX file.
        feeds: Name -> inputs of the file.
        threads: Of onnxruntime.
        seconds: For each session, about.

    Returns:
        Name -> layer -> its share, in the order of the file; they add up to 1.

    Raises:
        FileFormatError: a file is no ONNX model.
        ExportError: onnxruntime's profiler names no kernels.
    """
    timed: dict[str, list[dict[str, float]]] = {name: [] for name in files}
    known: dict[str, tuple[list[onnx.NodeProto], dict[str, str], dict[str, str]]] = {}
    with tempfile.TemporaryDirectory() as folder, flushed_denormals():
        paths = {name: _with_names(path, Path(folder) / f"{at}.onnx") for at, (name, path) in enumerate(files.items())}
        for name, path in paths.items():
            graph = onnx.load(str(path), load_external_data=False).graph
            nodes, weights = list(graph.node), {tensor.name for tensor in graph.initializer}
            known[name] = nodes, _readers(nodes, weights), layer_names(nodes, weights)
        for _ in range(ROUNDS):
            for name, path in paths.items():
                nodes, readers, _ = known[name]
                sample = sample_from(runner.measure(path, dict(feeds[name]), threads, seconds), str(path))
                timed[name].append(times_of_parts(nodes, readers, sample).us)
    return {name: _shares(rounds, known[name][2]) for name, rounds in timed.items()}


def _with_names(path: Path, copy: Path) -> Path:
    """The file, or a copy in which every node has a name: the profiler makes up one for others, which nothing leads back from."""
    with reading(path, "ONNX model"):
        if all(node.name for node in onnx.load(str(path), load_external_data=False).graph.node):
            return path
        model = onnx.load(str(path))
        for at, node in enumerate(model.graph.node):
            node.name = node.name or f"{next(iter(node.output), '')} at {at}"
        onnx.save(model, str(copy), save_as_external_data=True, location=f"{copy.name}.data")
        return copy


def _readers(nodes: list[onnx.NodeProto], weights: set[str]) -> dict[str, str]:
    """Weight -> the contraction that alone reads it, by its output."""
    readers: dict[str, set[str]] = {}
    for node in nodes:
        for name in weights.intersection(node.input):
            readers.setdefault(name, set()).add(node.output[0] if node.op_type in CONTRACTIONS else "")
    return {name: next(iter(found)) for name, found in readers.items() if len(found) == 1 and "" not in found}


def _shares(rounds: list[dict[str, float]], names: Mapping[str, str]) -> dict[str, float]:
    medians = {
        title: max(float(np.median([us.get(part, 0.0) for us in rounds])), 0.0)
        for part, title in names.items()
        if any(part in us for us in rounds)
    }
    total = sum(medians.values())
    return {title: us / total for title, us in medians.items()}
