"""A sweep on disk: several budgets from one checkpoint, each with a run of its own, and what came out of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from l0prune.errors import FileFormatError
from l0prune.plain_data import FileKind
from l0prune.recorded_directory import Record, RecordedDirectory, require_status
from l0prune.run_directory import RunDirectory

__all__ = ["Interval", "SweepDirectory", "SweepPoint", "SweepRecord", "SweepResult"]

REMEDY = "start the sweep again"


@dataclass(frozen=True)
class Interval:
    """A ratio with its 95 % interval.

    Attributes:
        ratio: The ratio.
        low: Lower end.
        high: Upper end.
    """

    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class SweepPoint:
    """A network of the picture.

    Attributes:
        name: Its budget, as in "macs=0.5", or "dense".
        score: What it scores.
        amounts: Metric -> what it costs.
        shares: Metric -> this as a share of the dense cost.
        budget_met: Whether it costs no more than asked for.
        latency_ms: Median milliseconds of a run of its ONNX file; None where that was not measured.
        speedup: Over the dense network; None for that itself, and where it was not measured.
    """

    name: str
    score: float
    amounts: dict[str, float]
    shares: dict[str, float]
    budget_met: bool = True
    latency_ms: float | None = None
    speedup: Interval | None = None


@dataclass(frozen=True)
class SweepResult:
    """What a finished sweep has found.

    Attributes:
        model: Specification of the model.
        metric: What the scores are.
        unit: Theirs; may be empty.
        higher_is_better: Their direction.
        doubts: What speaks against the dense network's score, or None.
        dense: The network all began with.
        points: One for each budget, in the order asked for.
        measured_on: Processor, threads and batch size of the latencies; empty where they were not measured.
    """

    model: str
    metric: str
    unit: str
    higher_is_better: bool
    doubts: str | None
    dense: SweepPoint
    points: tuple[SweepPoint, ...]
    measured_on: str = ""

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {**asdict(self), "points": [asdict(point) for point in self.points]}


@dataclass(frozen=True, kw_only=True)
class SweepRecord(Record):
    """Contents of sweep.json; the configuration is what all runs have in common.

    Attributes:
        budgets: One for each run, in order.
        result: Of a finished sweep.
    """

    kind = FileKind("l0prune.sweep", 1, "the description of a sweep", REMEDY)
    budgets: tuple[str, ...]
    result: SweepResult | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON object with format and version."""
        result = None if self.result is None else self.result.to_json()
        return {**super().to_json(), "budgets": list(self.budgets), "result": result}

    @classmethod
    def from_json(cls, data: Any, *, source: str) -> SweepRecord:
        """The record that `to_json` wrote.

        Raises:
            FileFormatError: another format or version, or keys that are missing or unknown.
        """
        record = super().from_json(data, source=source)
        if not all(map(_is_name, record.budgets)):
            raise FileFormatError(f"{source}: budgets {record.budgets!r} are no names of folders; {REMEDY}")
        return record


@dataclass(frozen=True)
class SweepDirectory(RecordedDirectory[SweepRecord]):
    """Paths of a sweep.

    Args:
        path: The directory.
    """

    noun = "sweep"
    made_by = "`l0prune sweep`"
    record_type = SweepRecord

    @property
    def bench(self) -> Path:
        """bench.json."""
        return self.path / "bench.json"

    @property
    def picture(self) -> Path:
        """sweep.svg."""
        return self.path / "sweep.svg"

    def run(self, budget: str) -> RunDirectory:
        """The run of one budget."""
        return RunDirectory(self.path / budget)

    @property
    def own_files(self) -> tuple[Path, ...]:
        """Everything a sweep writes, its runs included; sweep.json last.

        Raises:
            FileFormatError: the record does not say what belongs to it.
        """
        budgets = self.read().budgets if self.record_path.exists() else ()
        return (*(self.run(budget).path for budget in budgets), self.bench, self.picture, self.record_path)

    def require_free(self, *, overwrite: bool = False) -> None:
        """As for a run.

        Raises:
            RunDirectoryError: as for a run.
            FileFormatError: the sweep to be replaced does not say what belongs to it.
        """
        super().require_free(overwrite=overwrite)
        if self.record_path.exists():
            self.read()

    def set_status(self, status: str, *, result: SweepResult | None = None) -> SweepRecord:
        """Write how the sweep stands.

        Args:
            status: One of `STATUSES`.
            result: What to keep; None leaves what is there.

        Raises:
            RunDirectoryError: unknown status, or no sweep here.
        """
        require_status(status, self.noun)
        record = self.read()
        return self.write(replace(record, status=status, result=record.result if result is None else result))


def _is_name(text: str) -> bool:
    """Whether a text names a folder in a folder."""
    return text == Path(text).name and text not in ("", ".", "..")
