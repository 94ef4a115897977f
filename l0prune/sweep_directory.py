"""A sweep on disk: several budgets from one checkpoint, each with a run of its own, and what came out of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from l0prune.errors import FileFormatError
from l0prune.files import remove, write_whole
from l0prune.plain_data import FileKind
from l0prune.recorded_directory import STATUSES, RecordedDirectory, installed_versions, require_status
from l0prune.run_directory import RunDirectory

__all__ = ["Interval", "SweepDirectory", "SweepPoint", "SweepRecord", "SweepResult"]

REMEDY = "start the sweep again"
KIND = FileKind("l0prune.sweep", 1, "the description of a sweep", REMEDY)


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


@dataclass(frozen=True)
class SweepRecord:
    """Contents of sweep.json.

    Attributes:
        argv: The command line.
        budgets: One for each run, in order.
        config: What all runs have in common, plain JSON values.
        seed: Of all runs.
        model: Model specification, plain JSON values.
        data: Data specification, plain JSON values.
        versions: Package -> version.
        status: "running", "interrupted", "failed" or "finished".
        result: Of a finished sweep.
    """

    argv: tuple[str, ...]
    budgets: tuple[str, ...]
    config: dict[str, Any]
    seed: int
    model: dict[str, Any]
    data: dict[str, Any]
    versions: dict[str, str] = field(default_factory=dict)
    status: str = "running"
    result: SweepResult | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON object with format and version."""
        result = None if self.result is None else self.result.to_json()
        return KIND.stamped({**asdict(self), "argv": list(self.argv), "budgets": list(self.budgets), "result": result})

    @classmethod
    def from_json(cls, data: Any, *, source: str = "sweep.json") -> SweepRecord:
        """The record that `to_json` wrote.

        Raises:
            FileFormatError: another format or version, or keys that are missing or unknown.
        """
        record = KIND.read(cls, data, source)
        if record.status not in STATUSES:
            raise FileFormatError(f"{source}: status {record.status!r} is none of {', '.join(STATUSES)}")
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

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        argv: Sequence[str],
        budgets: Sequence[str],
        config: Mapping[str, Any],
        seed: int,
        model: Mapping[str, Any],
        data: Mapping[str, Any],
        overwrite: bool = False,
    ) -> SweepDirectory:
        """Begin a sweep: the directory with its sweep.json.

        Args:
            path: Must not exist or be an empty directory; with `overwrite` it may hold a sweep, whose files are removed.
            argv: The command line.
            budgets: One for each run.
            config: What the runs have in common, JSON values.
            seed: Of all runs.
            model: Model specification, JSON values.
            data: Data specification, JSON values.
            overwrite: Replace an existing sweep.

        Raises:
            RunDirectoryError: the path is taken; nothing was changed.
        """
        sweep = cls(path)
        sweep.require_free(overwrite=overwrite)
        record = SweepRecord(
            argv=tuple(argv),
            budgets=tuple(budgets),
            config=dict(config),
            seed=seed,
            model=dict(model),
            data=dict(data),
            versions=installed_versions(),
        )
        text = sweep.text_of(record)
        if sweep.record_path.exists():
            for budget in sweep.read().budgets:
                remove(sweep.run(budget).path)
        for existing in (sweep.bench, sweep.picture, sweep.record_path):
            remove(existing)
        path.mkdir(parents=True, exist_ok=True)
        write_whole(sweep.record_path, text)
        return sweep

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
