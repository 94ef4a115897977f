"""A run on disk: where its files are, what started it, how it ended."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from l0prune.errors import FileFormatError, RunDirectoryError
from l0prune.files import clear_abandoned, remove, write_whole
from l0prune.plain_data import FileKind
from l0prune.reading import is_there, read_json, reading

__all__ = ["STATUSES", "RunDirectory", "RunRecord", "installed_versions"]

KIND = FileKind("l0prune.run", 1, "the description of a run", "start the run again, or use the version that wrote it")
STATUSES = ("running", "interrupted", "failed", "finished")
RECORDED_PACKAGES = ("l0prune", "torch", "torch-pruning", "onnx", "onnxruntime", "accelerate", "numpy")


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
class RunDirectory:
    """Paths of a run.

    Args:
        path: The directory.
    """

    path: Path

    @property
    def record_path(self) -> Path:
        """run.json."""
        return self.path / "run.json"

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
        text = _dump(record)
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

    @contextmanager
    def locked(self) -> Iterator[None]:
        """No other process trains in this directory meanwhile; the lock ends with the process, however it ends.

        Raises:
            RunDirectoryError: another process does.
        """
        try:
            import fcntl
        except ImportError:  # Windows has no lock for directories
            yield
            return
        handle = os.open(self.path, os.O_RDONLY)
        try:
            with suppress(OSError):  # a file system without locks
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise RunDirectoryError(
                        f"another process is training in {self.path}: wait for it to end, or name another directory"
                    ) from error
            yield
        finally:
            os.close(handle)

    def require_free(self, *, overwrite: bool = False) -> None:
        """See that a run may begin here.

        Raises:
            RunDirectoryError: the path is a file, holds a run (unless `overwrite`), or holds something else.
        """
        if not os.path.lexists(self.path):
            return
        if not self.path.is_dir():
            what = "is a file" if self.path.exists() else "is a broken link"
            raise RunDirectoryError(f"{self.path} {what}: name a directory for the run")
        clear_abandoned(self.path)
        if not set(self.path.iterdir()) - self._traces():
            return
        if not self.record_path.exists():
            raise RunDirectoryError(f"{self.path} is not empty and holds no run: name another directory")
        if not overwrite:
            raise RunDirectoryError(
                f"{self.path} already holds a run: continue it with --resume, replace it with --overwrite, or name"
                " another directory"
            )

    def _traces(self) -> set[Path]:
        """What is left of a run that was stopped before it had anything to keep, and while it was cleared away."""
        if any(map(os.path.lexists, (self.record_path, self.compact, self.onnx, self.bench, self.report))):
            return set()
        kept = (self.checkpoint, self.path / "checkpoint.previous")
        return set() if any(map(os.path.lexists, kept)) else {self.metrics, self.path / "checkpoint.partial"}

    def read(self) -> RunRecord:
        """What run.json says.

        Raises:
            RunDirectoryError: if there is no run.json.
            FileFormatError: if it cannot be understood.
        """
        if not is_there(self.record_path):
            raise RunDirectoryError(f"{self.path} holds no run (no run.json): name the --out directory of a finetune")
        kind, remedy = "description of a run", "start the run again"
        with reading(self.record_path, kind, remedy=remedy):
            return RunRecord.from_json(read_json(self.record_path, kind, remedy=remedy), source=str(self.record_path))

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
        if status not in STATUSES:
            raise RunDirectoryError(f"a run cannot be {status!r}: choose one of {', '.join(STATUSES)}")
        record = self.read()
        result = record.result if result is None else dict(result)
        record = replace(record, status=status, result=result, config={**record.config, **(config or {})})
        write_whole(self.record_path, _dump(record))
        return record

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


def installed_versions() -> dict[str, str]:
    """Versions of the packages a result depends on; what is not installed is left out."""
    found = {name: next(iter(metadata.distributions(name=name)), None) for name in RECORDED_PACKAGES}
    return {name: distribution.version for name, distribution in found.items() if distribution is not None}


def _dump(record: RunRecord) -> str:
    try:
        return json.dumps(record.to_json(), indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise RunDirectoryError(
            f"the description of the run is not plain JSON ({error}): give numbers and text"
        ) from error
