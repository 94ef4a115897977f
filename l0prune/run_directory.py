"""A run on disk: where its files are, what started it, how it ended."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from l0prune.files import clear_abandoned, remove
from l0prune.plain_data import FileKind
from l0prune.recorded_directory import Record, RecordedDirectory, require_status

__all__ = ["RunDirectory", "RunRecord"]


@dataclass(frozen=True, kw_only=True)
class RunRecord(Record):
    """Contents of run.json.

    Attributes:
        result: Figures of a finished run, plain JSON values.
    """

    kind = FileKind(
        "l0prune.run", 1, "the description of a run", "start the run again, or use the version that wrote it"
    )
    result: dict[str, Any] | None = None


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
