"""Files that others wrote: only files are opened, what they claim is bounded, and what goes wrong in reading one is one line."""

from __future__ import annotations

import json
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from l0prune.errors import FileFormatError, L0PruneError, first_line
from l0prune.machine import memory_bytes

__all__ = ["bounded_archive", "is_file", "is_there", "read_json", "reading", "require_bounded", "shortened"]

LONGEST = 280
"""Characters of a message about a file, its path not counted."""
ALWAYS_FINE = 1 << 30
LARGEST_RATIO = 200
"""A file may unfold to 1 GiB, or to 200 times its own size, whichever is more."""
LARGEST_JSON = 1 << 28


@contextmanager
def reading(
    path: str | Path,
    kind: str,
    *,
    error: type[L0PruneError] = FileFormatError,
    remedy: str = "copy or download it again",
    folder: bool = False,
) -> Iterator[Path]:
    """Read a file here: whatever goes wrong inside becomes one short line that names the file.

    Parsers of damaged files fail in every way there is, so every exception counts, but for those that are ours already: they
    pass, shortened where the file's own names made them long. What is no file (a pipe, a device, a folder) is not opened.

    Args:
        path: The file.
        kind: What it should be, as in "npz file".
        error: What to raise.
        remedy: What to do about a damaged file.
        folder: Expect a folder instead.

    Yields:
        The path.

    Raises:
        L0PruneError: `error`, or what was raised inside of our own.
    """
    path = Path(path)
    try:
        _require_kind(path, kind, error, folder=folder)
        yield path
    except L0PruneError as ours:
        named = str(ours) if str(path) in str(ours) else f"{path}: {ours}"
        text = shortened(named, LONGEST + len(str(path)))
        if text == str(ours):
            raise
        raise type(ours)(text) from ours
    except MemoryError as cause:
        raise error(f"{path} needs more memory than this process may have; {remedy}.") from cause
    except Exception as cause:
        if isinstance(cause, OSError) and cause.strerror:
            raise error(f"{path} cannot be read ({cause.strerror}); expected {_a(kind)} there.") from cause
        reason = first_line(cause, named=not str(cause) or isinstance(cause, LookupError)).replace(
            repr(str(path)), "it"
        )
        raise error(f"{path} is damaged or is not {_a(kind)} ({shortened(reason, 120)}); {remedy}.") from cause


def shortened(text: str, longest: int = LONGEST) -> str:
    """A text as one line of at most so many characters: the middle goes, and what cannot be printed."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if len(line) <= longest:
        return line
    tail = longest // 3
    return f"{line[: longest - tail - 5]} ... {line[-tail:]}"


def require_bounded(
    n_bytes: int, stored: int, path: str | Path, *, error: type[L0PruneError] = FileFormatError
) -> None:
    """See that what a file claims to hold stands in some relation to what it has.

    Args:
        n_bytes: What it would take in memory.
        stored: What it takes on disk.
        path: The file.
        error: What to raise.

    Raises:
        L0PruneError: `error`, if it is out of proportion, or more than the memory of this machine.
    """
    if n_bytes > max(ALWAYS_FINE, LARGEST_RATIO * stored):
        raise error(
            f"{path} claims {_size(n_bytes)} of content in {_size(stored)} of file, and was not read; copy or download it again."
        )
    there_is = memory_bytes()
    if there_is is not None and n_bytes > there_is:
        raise error(
            f"{path} holds {_size(n_bytes)}, this machine has {_size(there_is)} of memory; use a machine with more."
        )


def bounded_archive(
    file: Path | IO[bytes], stored: int, path: Path, *, error: type[L0PruneError] = FileFormatError
) -> zipfile.ZipFile:
    """Open a zip archive that does not unfold out of proportion.

    Args:
        file: The file, or what stands in its place.
        stored: Its size.
        path: Of the file, for the message.
        error: What to raise where it does.

    Raises:
        L0PruneError: `error`, as `require_bounded`.
        zipfile.BadZipFile: it is no zip archive.
    """
    archive = zipfile.ZipFile(file)
    try:
        require_bounded(sum(info.file_size for info in archive.infolist()), stored, path, error=error)
    except L0PruneError:
        archive.close()
        raise
    return archive


def read_json(
    path: str | Path,
    kind: str,
    *,
    error: type[L0PruneError] = FileFormatError,
    remedy: str = "copy or download it again",
) -> Any:
    """A JSON file, as plain data.

    Raises:
        L0PruneError: `error`, if it is missing, too large, not UTF-8, or no JSON; NaN and infinity are none.
    """
    with reading(path, kind, error=error, remedy=remedy) as file:
        size = file.stat().st_size
        if size > LARGEST_JSON:
            raise error(f"{file} is {_size(size)}, which is too large for {_a(kind)}; {remedy}.")
        return json.loads(file.read_text(encoding="utf-8"), parse_constant=_no_number)


def is_file(path: Path) -> bool:
    """Whether there is a file to be read; no for names that no file can have, and for folders and pipes."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def is_there(path: Path) -> bool:
    """Whether there is anything at a path; no for names that nothing can have."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _require_kind(path: Path, kind: str, error: type[L0PruneError], *, folder: bool) -> None:
    """See that a path leads to a file, or to a folder; nothing is opened."""
    try:
        mode, size = path.stat().st_mode, path.stat().st_size
    except (FileNotFoundError, NotADirectoryError) as cause:
        raise error(f"{path}: no such {'folder' if folder else 'file'}; expected {_a(kind)} there.") from cause
    except ValueError as cause:  # a null byte
        raise error(f"{str(path)!r} cannot be the name of a file; expected {_a(kind)}.") from cause
    if folder and not stat.S_ISDIR(mode):
        raise error(f"{path} is not a folder; expected {_a(kind)}.")
    if not folder and stat.S_ISDIR(mode):
        raise error(f"{path} is a folder; expected {_a(kind)}.")
    if not folder and not stat.S_ISREG(mode):
        raise error(f"{path} is a pipe, device or socket; expected {_a(kind)}.")
    if not folder:
        require_bounded(size, size, path, error=error)


def _a(kind: str) -> str:
    return f"{'an' if kind[0].lower() in 'aeio' or kind.startswith('npz') else 'a'} {kind}"


def _size(n_bytes: int) -> str:
    """A size for people."""
    units = ("bytes", "KB", "MB", "GB", "TB")
    step = min(len(units) - 1, max(0, (len(str(n_bytes)) - 1) // 3))
    return f"{min(n_bytes, 1 << 90) / 1000**step:.4g} {units[step]}"
