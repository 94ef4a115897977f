"""A sweep on disk: several budgets from one checkpoint, each with a run of its own, and what came out of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from l0prune.errors import FileFormatError, RunDirectoryError
from l0prune.files import clear_abandoned, remove, write_json
from l0prune.plain_data import FileKind
from l0prune.reading import is_there, read_json, reading
from l0prune.run_directory import STATUSES, RunDirectory, installed_versions

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
class SweepDirectory:
    """Paths of a sweep.

    Args:
        path: The directory.
    """

    path: Path

    @property
    def record_path(self) -> Path:
        """sweep.json."""
        return self.path / "sweep.json"

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
        if sweep.record_path.exists():
            for budget in sweep.read().budgets:
                remove(sweep.run(budget).path)
        for existing in (sweep.bench, sweep.picture, sweep.record_path):
            remove(existing)
        path.mkdir(parents=True, exist_ok=True)
        write_json(sweep.record_path, record.to_json())
        return sweep

    def require_free(self, *, overwrite: bool = False) -> None:
        """See that a sweep may begin here.

        Raises:
            RunDirectoryError: the path is a file, holds a sweep (unless `overwrite`), or holds something else.
            FileFormatError: the sweep to be replaced does not say what belongs to it.
        """
        if not os.path.lexists(self.path):
            return
        if not self.path.is_dir():
            what = "is a file" if self.path.exists() else "is a broken link"
            raise RunDirectoryError(f"{self.path} {what}: name a directory for the sweep")
        clear_abandoned(self.path)
        if not any(self.path.iterdir()):
            return
        if not self.record_path.exists():
            raise RunDirectoryError(f"{self.path} is not empty and holds no sweep: name another directory")
        if not overwrite:
            raise RunDirectoryError(
                f"{self.path} already holds a sweep: continue it with --resume, replace it with --overwrite, or name"
                " another directory"
            )
        self.read()

    def read(self) -> SweepRecord:
        """What sweep.json says.

        Raises:
            RunDirectoryError: if there is no sweep.json.
            FileFormatError: if it cannot be understood.
        """
        if not is_there(self.record_path):
            raise RunDirectoryError(
                f"{self.path} holds no sweep (no sweep.json): name the --out directory of `l0prune sweep`"
            )
        kind = "description of a sweep"
        with reading(self.record_path, kind, remedy=REMEDY):
            return SweepRecord.from_json(read_json(self.record_path, kind, remedy=REMEDY), source=str(self.record_path))

    def set_status(self, status: str, *, result: SweepResult | None = None) -> SweepRecord:
        """Write how the sweep stands.

        Args:
            status: One of `STATUSES`.
            result: What to keep; None leaves what is there.
        """
        record = self.read()
        record = replace(record, status=status, result=record.result if result is None else result)
        write_json(self.record_path, record.to_json())
        return record

    @contextmanager
    def locked(self) -> Iterator[None]:
        """No other process trains in this directory meanwhile; the lock ends with the process, however it ends.

        Raises:
            RunDirectoryError: another process does.
        """
        with RunDirectory(self.path).locked():
            yield


def _is_name(text: str) -> bool:
    """Whether a text names a folder in a folder."""
    return text == Path(text).name and text not in ("", ".", "..")
