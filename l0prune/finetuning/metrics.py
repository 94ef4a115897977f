"""metrics.jsonl: what the losses, the cost and the gates did, a line every few steps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import Tensor

from l0prune.criteria.registry import GATES
from l0prune.errors import FileFormatError
from l0prune.files import write_whole
from l0prune.plain_data import from_plain
from l0prune.reading import reading

__all__ = ["LayerHistograms", "MetricsLog", "MetricsRecord", "histogram", "read_metrics"]

HISTOGRAM_BINS = 20
BY_METRIC = ("expected_", "hard_", "target_", "multiplier_")
"""What the keys of `by_metric` begin with; the name of the metric follows."""
KIND, REMEDY = "metrics file", "resume the run or delete the line"


@dataclass(frozen=True)
class MetricsRecord:
    """One line: means over the steps since the last one, and the state after the last of them.

    Args:
        step: Optimizer steps done.
        epoch: Passes over the data done.
        phase: "warmup", "gate", "settle" or "recovery".
        method: What chooses the units: "gates", or the name of a criterion.
        loss: What was minimised: task and distillation by their weights, plus the gates' penalty.
        task_loss: The task's part before weighting.
        distillation_loss: The teacher's part before weighting, or None without a teacher.
        expected_cost: Under the gate distributions, fraction of dense, in the first budget's metric; MACs under a penalty.
        hard_cost: The same of the units open at test time.
        target: Where the first budget wants the expected cost to be; None under a penalty.
        multiplier: What it charges for the cost; None under a penalty.
        lr: Learning rate of the last step.
        by_metric: A key of its own in the file for each: `expected_M` and `hard_M` as fractions of dense for every metric M,
            whatever the run is held to; `target_M` and `multiplier_M` for each budget.
        seconds_per_step: Wall-clock time of a step, its batch included, evaluations and checkpoints left out; the only
            figure that two equal runs do not share.
        feature_loss: What its features add before weighting, or None where it teaches by its logits alone.
        open_histogram: Now and then: number of gates in each of 20 equal bins of the open probability.
        layer_histograms: With it: the same for each layer, by the name of the dimension its gates live in.
        sample_histogram: With it: number of gates in each of 20 equal bins of a drawn value, exact 0 and 1 in the outer ones.
        layer_sample_histograms: With it: the same for each layer.
        evaluation: At the end of an epoch: what the caller's `evaluate` returned.
    """

    step: int
    epoch: float
    phase: str
    loss: float
    task_loss: float
    distillation_loss: float | None
    expected_cost: float
    hard_cost: float
    target: float | None
    multiplier: float | None
    lr: float
    by_metric: dict[str, float]
    seconds_per_step: float
    method: str = GATES
    feature_loss: float | None = None
    open_histogram: tuple[int, ...] | None = None
    layer_histograms: dict[str, tuple[int, ...]] | None = None
    sample_histogram: tuple[int, ...] | None = None
    layer_sample_histograms: dict[str, tuple[int, ...]] | None = None
    evaluation: dict[str, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON object; the occasional fields are absent where they are None."""
        histograms = ("open_histogram", "layer_histograms", "sample_histogram", "layer_sample_histograms")
        occasional = ("feature_loss", "evaluation", *histograms)
        named = {key: value for key, value in asdict(self).items() if value is not None or key not in occasional}
        return {key: value for key, value in named.items() if key != "by_metric"} | self.by_metric

    @property
    def figures(self) -> dict[str, float]:
        """The numbers a progress display shows: the task's own loss, without penalty and teacher, where it has one."""
        loss = {"task_loss": self.task_loss} if self.task_loss else {"loss": self.loss}
        shown = {**loss, "expected_cost": self.expected_cost, "hard_cost": self.hard_cost, "lr": self.lr}
        return shown | (self.evaluation or {})


def histogram(values: Tensor) -> tuple[int, ...]:
    """Number of gates in each of 20 equal bins of [0, 1].

    Args:
        values: Shape `(n_gates,)`, in [0, 1].
    """
    counts = torch.histc(values.detach().float().cpu(), bins=HISTOGRAM_BINS, min=0.0, max=1.0)
    return tuple(int(count) for count in counts)


class LayerHistograms:
    """`histogram` layer by layer.

    Args:
        names: Where each gate lives, `(n_gates,)` names; gates of one name are counted together.
    """

    def __init__(self, names: Sequence[str]) -> None:
        places = {name: place for place, name in enumerate(dict.fromkeys(names))}
        self.names = tuple(places)
        self._first_bin = HISTOGRAM_BINS * torch.tensor([places[name] for name in names], dtype=torch.int64)

    def __call__(self, values: Tensor) -> dict[str, tuple[int, ...]]:
        """Name -> number of its gates in each of 20 equal bins of [0, 1], of values of shape `(n_gates,)`."""
        scaled = values.detach().float().cpu() * HISTOGRAM_BINS
        bins = self._first_bin + scaled.long().clamp(0, HISTOGRAM_BINS - 1)
        counts = torch.bincount(bins, minlength=HISTOGRAM_BINS * len(self.names)).view(-1, HISTOGRAM_BINS)
        return {name: tuple(row) for name, row in zip(self.names, counts.tolist(), strict=True)}


class MetricsLog:
    """Appends lines to a file, each written whole.

    Args:
        path: The file; its folder is created with the first line. None writes nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def write(self, record: MetricsRecord) -> None:
        """Append one line."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record.to_json()) + "\n")

    def truncate_after(self, step: int) -> None:
        """Drop the lines of later steps, and a last line that was cut off; what stays is unchanged."""
        if self.path is None or not self.path.exists():
            return
        kept = []
        with reading(self.path, KIND, remedy=REMEDY):
            for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
                entry = _parsed(line)
                found = None if entry is None else entry.get("step")
                if isinstance(found, int) and found <= step:
                    kept.append(line + "\n")
        write_whole(self.path, "".join(kept))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All lines of a metrics file.

    Raises:
        FileFormatError: if a line is not a JSON object, says not which step it is of, or has a value of another kind.
    """
    entries = []
    with reading(path, KIND, remedy=REMEDY):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            entry = _parsed(line)
            wrong = "is not a JSON object" if entry is None else _what_is_wrong(entry)
            if entry is None or wrong:
                raise FileFormatError(f"{path}: line {number} {wrong}; {REMEDY}")
            entries.append(dict(entry))
    return entries


def _what_is_wrong(entry: Mapping[str, Any]) -> str:
    """What keeps a line from being one of `MetricsRecord`; empty where nothing does."""
    by_metric = {name: float for name in entry if name.startswith(BY_METRIC)}
    hints = by_metric | get_type_hints(MetricsRecord)
    for name in ("step", "epoch", "phase"):
        if name not in entry:
            return f"has no {name!r}"
    for name in hints.keys() & entry.keys():
        try:
            value = from_plain(hints[name], entry[name], name, finite=name in ("step", "epoch"))
        except FileFormatError as error:
            return f"is wrong: {error}"
        histograms = value.values() if name.startswith("layer") and value else [value] if "histogram" in name else []
        if any(row is not None and not _is_histogram(row) for row in histograms):
            return f"is wrong: {name} has no counts in {HISTOGRAM_BINS} bins"
    return ""


def _is_histogram(counts: Sequence[int]) -> bool:
    return len(counts) == HISTOGRAM_BINS and min(counts) >= 0 and sum(counts) > 0


def _parsed(line: str) -> Mapping[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None
