"""What metrics.jsonl tells about the gates and the costs of a run, in columns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l0prune.cost.kinds import metric_named, metric_names
from l0prune.errors import RunDirectoryError
from l0prune.finetuning.metrics import read_metrics
from l0prune.finetuning.schedule import GATE, WARMUP
from l0prune.run_directory import RunDirectory

__all__ = ["CostHistory", "GateHistory", "Histograms", "cost_columns", "cost_history", "gate_history", "run_lines"]

Lines = Sequence[Mapping[str, Any]]
_OLDER = {"expected": "expected_cost", "hard": "hard_cost", "target": "target", "multiplier": "multiplier"}
"""What a metric has a column of -> the column of the run's first metric, which is all that older versions wrote."""


def cost_columns() -> tuple[str, ...]:
    """What metrics.jsonl says of costs, whatever a run is held to: the expected and the hard one of what can be counted."""
    counted = [name for name in metric_names() if metric_named(name).cost is not None]
    return tuple(f"{kind}_{metric}" for metric in counted for kind in ("expected", "hard"))


@dataclass(frozen=True)
class Histograms:
    """How the open probabilities of some gates, or values drawn of them, spread, moment by moment.

    Attributes:
        epochs: Passes over the data done, ascending.
        counts: At each of them the number of gates in equal bins of [0, 1].
    """

    epochs: tuple[float, ...]
    counts: tuple[tuple[int, ...], ...]

    @property
    def n_gates(self) -> int:
        """How many gates are counted."""
        return sum(self.counts[-1])

    @property
    def open_share(self) -> tuple[float, ...]:
        """Share of the gates in the upper half, at each moment: more likely open than closed, or drawn above 1/2."""
        return tuple(sum(row[len(row) // 2 :]) / sum(row) for row in self.counts)


@dataclass(frozen=True)
class GateHistory:
    """The gates of a run.

    Attributes:
        name: Of the run.
        total: All gates together.
        layers: The same by layer; empty in runs that did not count by layer.
        of: What is counted, a key of `COUNTED`.
    """

    name: str
    total: Histograms
    layers: dict[str, Histograms]
    of: str = "probability"


@dataclass(frozen=True)
class CostHistory:
    """The costs of a run and the time they took, a value a line of metrics.jsonl.

    Attributes:
        name: Of the run.
        steps: Optimizer steps done, ascending.
        costs: Column -> value at each of `steps`, NaN where a line does not say it: `expected_M`, `hard_M` and `target_M` as
            fractions of dense and `multiplier_M`, for a metric M. Columns that the whole run lacks are absent.
        ms_per_step: Measured wall-clock time of a step, NaN where a line does not say it; None if none does.
        decided_at: Step after which the gates were decided, or None while they are learned.
    """

    name: str
    steps: tuple[int, ...]
    costs: dict[str, tuple[float, ...]]
    ms_per_step: tuple[float, ...] | None
    decided_at: int | None

    @property
    def missing(self) -> tuple[str, ...]:
        """What this run has not recorded, as metrics.jsonl calls it."""
        time = () if self.ms_per_step is not None else ("seconds_per_step",)
        return (*(name for name in cost_columns() if name not in self.costs), *time)


def run_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, also of one that still goes on.

    Raises:
        RunDirectoryError: if there is no run at `path`, or it has no lines yet.
        FileFormatError: if its files cannot be understood.
    """
    run = RunDirectory.open(path)
    lines = read_metrics(run.metrics) if run.metrics.exists() else []
    if not lines:
        raise RunDirectoryError(
            f"{run.metrics} has no lines: training has not begun, or the file is gone; run it again"
        )
    return lines


COUNTED = {
    "probability": ("open_histogram", "layer_histograms"),
    "samples": ("sample_histogram", "layer_sample_histograms"),
}
"""What a `GateHistory` can count -> where metrics.jsonl has it, all gates together and by layer."""


def gate_history(name: str, lines: Lines, *, of: str = "probability") -> GateHistory:
    """The gates of a run.

    Args:
        name: Of the run.
        lines: Of its metrics.jsonl.
        of: "probability", of being open, or "samples", a value drawn of each gate.

    Raises:
        RunDirectoryError: if no line has such a histogram.
    """
    column, layer_column = COUNTED[of]
    rows = [line for line in lines if line.get(column)]
    if not rows:
        raise RunDirectoryError(
            f"{name}: metrics.jsonl has no histogram of the gates' {of}; they are written while gates are learned, "
            "every `histogram_every` lines"
        )
    by_layer = [line for line in rows if line.get(layer_column)]
    total = _histograms([(line["epoch"], line[column]) for line in rows])
    layers = {
        layer: _histograms(
            [(line["epoch"], line[layer_column][layer]) for line in by_layer if layer in line[layer_column]]
        )
        for layer in (by_layer[-1][layer_column] if by_layer else ())
    }
    return GateHistory(name, total, layers, of)


def _histograms(moments: Sequence[tuple[float, Sequence[int]]]) -> Histograms:
    return Histograms(tuple(epoch for epoch, _ in moments), tuple(tuple(counts) for _, counts in moments))


def cost_history(name: str, lines: Lines, metric: str) -> CostHistory:
    """The costs of a run.

    Args:
        name: Of the run.
        lines: Of its metrics.jsonl, at least one.
        metric: What the run's `expected_cost` and `hard_cost` count.
    """
    costs = {}
    for counted in metric_names():
        for kind, older in _OLDER.items():
            column = f"{kind}_{counted}"
            found = [line.get(column, line.get(older) if counted == metric else None) for line in lines]
            values = tuple(math.nan if value is None else value for value in found)
            if not all(map(math.isnan, values)):
                costs[column] = values
    times = tuple(1000 * line.get("seconds_per_step", math.nan) for line in lines)
    decided = any(line["phase"] not in (WARMUP, GATE) for line in lines)
    return CostHistory(
        name,
        tuple(line["step"] for line in lines),
        costs,
        None if all(map(math.isnan, times)) else times,
        max((line["step"] for line in lines if line["phase"] in (WARMUP, GATE)), default=0) if decided else None,
    )
