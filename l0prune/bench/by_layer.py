"""The time of each layer of the models in a benchmark, and its table, heaviest layers first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from l0prune.bench.report import BenchReport
from l0prune.measuring.session import open_session
from l0prune.onnx.feeds import random_feeds
from l0prune.profiling.layers import shares_by_layer

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["layer_table", "with_layers"]

SHOWN = 12


def with_layers(report: BenchReport, files: Mapping[str, Path], *, seed: int = 0) -> BenchReport:
    """The same report with the time of each layer.

    Onnxruntime's profiler says what share of a run each layer has; so its times add up to the median that was measured without
    the profiler.

    Args:
        report: Of these files, among others.
        files: Name -> ONNX file; those whose layers are timed, in turn.
        seed: Of the inputs.

    Raises:
        FileFormatError: a file is no ONNX model.
        ExportError: onnxruntime's profiler names no kernels.
    """
    terms = report.environment
    feeds = {
        name: random_feeds(name, open_session(path, threads=terms.threads), terms.batch_size, report.sizes, seed=seed)
        for name, path in files.items()
    }
    shares = shares_by_layer(files, feeds, threads=terms.threads)
    layers = {
        name: {layer: share * report[name].latency_ms.p50 for layer, share in found.items()}
        for name, found in shares.items()
    }
    return replace(report, layers=layers)


def layer_table(report: BenchReport, predicted: Mapping[str, Mapping[str, float]] | None = None) -> Table:
    """The layers on which the first model spends most, heaviest first, and the others together; for people.

    Args:
        report: With layers.
        predicted: Name -> layer -> milliseconds that a profile says; in brackets beside what was measured.
    """
    from rich import box
    from rich.table import Table

    names = list(report.layers)
    every = list(dict.fromkeys(layer for name in names for layer in report.layers[name]))
    every.sort(key=lambda layer: -max(report.layers[name].get(layer, 0.0) for name in names))
    shown, others = every[:SHOWN], every[SHOWN:]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, title_justify="left")
    table.add_column("ms by layer", overflow="fold")
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    if len(names) > 1:
        table.add_column("saved", justify="right")

    def add(title: str, layers: Sequence[str]) -> None:
        times = [sum(report.layers[name].get(layer, 0.0) for layer in layers) for name in names]
        is_there = [any(layer in report.layers[name] for layer in layers) for name in names]
        said = [
            sum((predicted or {}).get(name, {})[layer] for layer in layers)
            if layers and all(layer in (predicted or {}).get(name, {}) for layer in layers)
            else None
            for name in names
        ]
        cells = [
            (f"{ms:.3f}" if there else "-") + ("" if guess is None else f" ({guess:.3f})")
            for ms, there, guess in zip(times, is_there, said, strict=True)
        ]
        table.add_row(title, *cells, *([f"{times[0] - times[-1]:.3f}"] if len(names) > 1 else []))

    for layer in shown:
        add(layer, [layer])
    if others:
        add(f"{len(others)} others", others)
    return table
