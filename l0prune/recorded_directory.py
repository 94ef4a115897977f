"""A directory that says itself what it holds: a record beside the files, which begins it, and says how it stands."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from l0prune.errors import FileFormatError, RunDirectoryError
from l0prune.files import clear_abandoned, remove, write_whole
from l0prune.plain_data import FileKind
from l0prune.reading import is_there, read_json, reading

__all__ = ["STATUSES", "Record", "RecordedDirectory", "installed_versions", "require_status"]

STATUSES = ("running", "interrupted", "failed", "finished")
RECORDED_PACKAGES = ("l0prune", "torch", "torch-pruning", "onnx", "onnxruntime", "accelerate", "numpy")


AnyRecord = TypeVar("AnyRecord", bound="Record")
Directory = TypeVar("Directory", bound="RecordedDirectory[Any]")


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a directory says of itself.

    Attributes:
        argv: The command line.
        config: The resolved configuration, plain JSON values.
        seed: Of everything random.
        model: Model specification, plain JSON values.
        data: Data specification, plain JSON values.
        versions: Package -> version.
        status: "running", "interrupted", "failed" or "finished".
    """

    kind: ClassVar[FileKind]
    argv: tuple[str, ...]
    config: dict[str, Any]
    seed: int
    model: dict[str, Any]
    data: dict[str, Any]
    versions: dict[str, str] = field(default_factory=dict)
    status: str = "running"

    def to_json(self) -> dict[str, Any]:
        """A JSON object with format and version."""
        return self.kind.stamped({**asdict(self), "argv": list(self.argv)})

    @classmethod
    def from_json(cls: type[AnyRecord], data: Any, *, source: str) -> AnyRecord:
        """The record that `to_json` wrote.

        Raises:
            FileFormatError: another format or version, or keys that are missing or unknown.
        """
        record = cls.kind.read(cls, data, source)
        if record.status not in STATUSES:
            raise FileFormatError(f"{source}: status {record.status!r} is none of {', '.join(STATUSES)}")
        return record


@dataclass(frozen=True)
class RecordedDirectory(Generic[AnyRecord]):
    """Paths of a run or a sweep.

    Args:
        path: The directory.

    Attributes:
        noun: What the directory holds; its record is named after it.
        made_by: The command that makes one.
        record_type: Class of the record, which reads it back (`from_json`).
    """

    noun: ClassVar[str]
    made_by: ClassVar[str]
    record_type: ClassVar[Any]
    path: Path

    @property
    def record_path(self) -> Path:
        """The record, such as run.json."""
        return self.path / f"{self.noun}.json"

    @property
    def own_files(self) -> tuple[Path, ...]:
        """Everything that is written here; the record last, without which the rest is nothing.

        Raises:
            FileFormatError: the record does not say what belongs to it.
        """
        return (self.record_path,)

    @classmethod
    def create(
        cls: type[Directory], path: Path, *, argv: Sequence[str], overwrite: bool = False, **asked: Any
    ) -> Directory:
        """Begin one: the directory with its record.

        Args:
            path: Must not exist, or be a directory that is empty but for what one that never began left there; with
                `overwrite` it may hold one, whose files are removed. A link to a directory is followed.
            argv: The command line.
            overwrite: Replace an existing one.
            asked: All else that the record says at the beginning, JSON values.

        Raises:
            RunDirectoryError: the path is taken, or what is asked is not plain JSON; nothing was changed.
        """
        directory = cls(path)
        directory.require_free(overwrite=overwrite)
        text = directory.text_of(cls.record_type(argv=tuple(argv), versions=installed_versions(), **asked))
        for existing in directory.own_files:
            remove(existing)
        path.mkdir(parents=True, exist_ok=True)
        write_whole(directory.record_path, text)
        return directory

    @classmethod
    def open(cls: type[Directory], path: Path) -> Directory:
        """An existing one.

        Raises:
            RunDirectoryError: if there is none at `path`.
            FileFormatError: if its record cannot be understood.
        """
        directory = cls(path)
        directory.read()
        return directory

    def require_free(self, *, overwrite: bool = False) -> None:
        """See that one may begin here.

        Raises:
            RunDirectoryError: the path is a file, holds one already (unless `overwrite`), or holds something else.
        """
        if not os.path.lexists(self.path):
            return
        if not self.path.is_dir():
            what = "is a file" if self.path.exists() else "is a broken link"
            raise RunDirectoryError(f"{self.path} {what}: name a directory for the {self.noun}")
        clear_abandoned(self.path)
        if not set(self.path.iterdir()) - self._traces():
            return
        if not self.record_path.exists():
            raise RunDirectoryError(f"{self.path} is not empty and holds no {self.noun}: name another directory")
        if not overwrite:
            raise RunDirectoryError(
                f"{self.path} already holds a {self.noun}: continue it with --resume, replace it with --overwrite, or name"
                " another directory"
            )

    def _traces(self) -> set[Path]:
        """What is left of one that was stopped before it had anything to keep."""
        return set()

    def read(self) -> AnyRecord:
        """What the record says.

        Raises:
            RunDirectoryError: if there is none.
            FileFormatError: if it cannot be understood.
        """
        path = self.record_path
        if not is_there(path):
            raise RunDirectoryError(
                f"{self.path} holds no {self.noun} (no {path.name}): name the --out directory of {self.made_by}"
            )
        kind, remedy = f"description of a {self.noun}", f"start the {self.noun} again"
        with reading(path, kind, remedy=remedy):
            record: AnyRecord = self.record_type.from_json(read_json(path, kind, remedy=remedy), source=str(path))
            return record

    def text_of(self, record: AnyRecord) -> str:
        """The record as it is written.

        Raises:
            RunDirectoryError: it is not plain JSON.
        """
        try:
            return json.dumps(record.to_json(), indent=2, allow_nan=False) + "\n"
        except (TypeError, ValueError) as error:
            raise RunDirectoryError(
                f"the description of the {self.noun} is not plain JSON ({error}): give numbers and text"
            ) from error

    def write(self, record: AnyRecord) -> AnyRecord:
        """Put a record in the place of the one that is there.

        Raises:
            RunDirectoryError: it is not plain JSON.
        """
        write_whole(self.record_path, self.text_of(record))
        return record

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


def require_status(status: str, noun: str) -> None:
    """See that a status is one of `STATUSES`.

    Raises:
        RunDirectoryError: it is not.
    """
    if status not in STATUSES:
        raise RunDirectoryError(f"a {noun} cannot be {status!r}: choose one of {', '.join(STATUSES)}")


def installed_versions() -> dict[str, str]:
    """Versions of the packages a result depends on; what is not installed is left out."""
    found = {name: next(iter(metadata.distributions(name=name)), None) for name in RECORDED_PACKAGES}
    return {name: distribution.version for name, distribution in found.items() if distribution is not None}
