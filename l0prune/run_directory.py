"""A run on disk: where its files are, what started it, how it ended."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from l0prune.errors import FileFormatError
from l0prune.files import clear_abandoned, remove, write_whole
from l0prune.plain_data import FileKind
from l0prune.recorded_directory import STATUSES, RecordedDirectory, installed_versions, require_status

__all__ = ["RunDirectory", "RunRecord"]

KIND = FileKind("l0prune.run", 1, "the description of a run", "start the run again, or use the version that wrote it")


@dataclass(frozen=True)
class RunRecord:
    """Contents of run.json.

    Attributes:
        argv: The command line.
        config: The resolved configuration, plain JSON values.
        seed: Seed of the run.
        model: Model specification, plain JSON values.
        data: Data specification, plain JSON values.
        versions: Package -> version.
        status: "running", "interrupted", "failed" or "finished".
        result: Figures of a finished run, plain JSON values.
    """

    argv: tuple[str, ...]
    config: dict[str, Any]
    seed: int
    model: dict[str, Any]
    data: dict[str, Any]
    versions: dict[str, str] = field(default_factory=dict)
    status: str = "running"
    result: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON object with format and version."""
        return KIND.stamped({**asdict(self), "argv": list(self.argv)})

    @classmethod
    def from_json(cls, data: Any, *, source: str = "run.json") -> RunRecord:
        """The record that `to_json` wrote.

        Raises:
            FileFormatError: another format or version, or keys that are missing or unknown.
        """
        record = KIND.read(cls, data, source)
        if record.status not in STATUSES:
            raise FileFormatError(f"{source}: status {record.status!r} is none of {', '.join(STATUSES)}")
        return record


@dataclass(frozen=True)
class RunDirectory(RecordedDirectory[RunRecord]):
    """Paths of a run.

    Args:
        path: The directory.
    """

    noun = "run"
    made_by = "a finetune"
    record_type = RunRecord

    @property
    def metrics(self) -> Path:
        """metrics.jsonl."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoint(self) -> Path:
        """Folder of the last checkpoint."""
        return self.path / "checkpoint"

    @property
    def tries(self) -> Path:
        """Folder of the runs of a search, each named after its budget."""
        return self.path / "tries"

    @property
    def compact(self) -> Path:
        """Folder of the compact model."""
        return self.path / "compact"

    @property
    def onnx(self) -> Path:
        """Folder of the ONNX files."""
        return self.path / "onnx"

    @property
    def bench(self) -> Path:
        """bench.json."""
        return self.path / "bench.json"

    @property
    def latency(self) -> Path:
        """latency.json: what a profile says of the layers."""
        return self.path / "latency.json"

    @property
    def report(self) -> Path:
        """report.html."""
        return self.path / "report.html"

    @property
    def own_files(self) -> tuple[Path, ...]:
        """Everything a run writes; run.json last, without which the rest is no run."""
        aside = [self.path / f"checkpoint.{suffix}" for suffix in ("partial", "previous")]
        return (
            *(self.metrics, self.checkpoint, *aside, self.tries),
            *(self.compact, self.onnx, self.latency, self.bench, self.report, self.record_path),
        )

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        argv: Sequence[str],
        config: Mapping[str, Any],
        seed: int,
        model: Mapping[str, Any],
        data: Mapping[str, Any],
        overwrite: bool = False,
    ) -> RunDirectory:
        """Begin a run: the directory with its run.json.

        Args:
            path: Must not exist, or be a directory that is empty but for what a run that never began left there; with
                `overwrite` it may hold a run, whose files are removed. A link to a directory is followed.
            argv: The command line.
            config: The resolved configuration, JSON values.
            seed: Seed of the run.
            model: Model specification, JSON values.
            data: Data specification, JSON values.
            overwrite: Replace an existing run.

        Raises:
            RunDirectoryError: the path is taken; nothing was changed.
        """
        run = cls(path)
        run.require_free(overwrite=overwrite)
        record = RunRecord(
            argv=tuple(argv),
            config=dict(config),
            seed=seed,
            model=dict(model),
            data=dict(data),
            versions=installed_versions(),
        )
        text = run.text_of(record)
        for existing in run.own_files:
            remove(existing)
        path.mkdir(parents=True, exist_ok=True)
        write_whole(run.record_path, text)
        return run

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """An existing run.

        Raises:
            RunDirectoryError: if there is none at `path`.
            FileFormatError: if its run.json cannot be understood.
        """
        run = cls(path)
        run.read()
        return run

    def _traces(self) -> set[Path]:
        """What is left of a run that was stopped before it had anything to keep, and while it was cleared away."""
        if any(map(os.path.lexists, (self.record_path, self.compact, self.onnx, self.bench, self.report))):
            return set()
        kept = (self.checkpoint, self.path / "checkpoint.previous")
        return set() if any(map(os.path.lexists, kept)) else {self.metrics, self.path / "checkpoint.partial"}

    def set_status(
        self, status: str, *, result: Mapping[str, Any] | None = None, config: Mapping[str, Any] | None = None
    ) -> RunRecord:
        """Write how the run stands.

        Args:
            status: One of `STATUSES`.
            result: Figures to keep, JSON values; None leaves those that are there.
            config: The configuration, as far as it is other than it was; JSON values.

        Returns:
            The new record.

        Raises:
            RunDirectoryError: unknown status, or no run here.
        """
        require_status(status, self.noun)
        record = self.read()
        result = record.result if result is None else dict(result)
        return self.write(replace(record, status=status, result=result, config={**record.config, **(config or {})}))

    def discard(self) -> None:
        """Remove what a run that failed before its first checkpoint has left; other files and a used run stay."""
        if any(path.exists() for path in (self.checkpoint, self.path / "checkpoint.previous", self.compact)):
            return
        if self.tries.exists():
            return
        for own in self.own_files:
            remove(own)
        clear_abandoned(self.path)
        if self.path.is_dir() and not self.path.is_symlink() and not any(self.path.iterdir()):
            self.path.rmdir()
