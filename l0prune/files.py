"""Files and folders that are whole or not there, and what killed commands have left of them."""

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = ["clear_abandoned", "draft_folder", "remove", "replaced_folder", "write_json", "write_whole"]

TEMPORARY = ".l0prune-draft-"
"""How every temporary name begins. Its owner keeps a lock on it, which ends with the process, however that ends."""


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object for people to read as well, as `write_whole` does.

    Raises:
        ValueError: a number is not finite.
        OSError: as `write_whole`.
    """
    write_whole(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file under a temporary name, then rename it: a reader sees the old file or the new one, never half of it.

    A link in its place is replaced; what it points at stays as it is.

    Args:
        path: The file; its folder exists.
        content: Bytes, or text that becomes UTF-8.

    Raises:
        OSError: it cannot be written; the old file, if there is one, stays.
    """
    with _temporary(path.parent, folder=False) as temporary:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


@contextmanager
def draft_folder(beside: Path) -> Iterator[Path]:
    """A new folder next to a path, to move finished files out of; it is gone afterwards.

    Args:
        beside: Where the files are to go; its folder exists.

    Raises:
        OSError: the folder cannot be made.
    """
    with _temporary(beside.parent, folder=True) as draft:
        yield draft


@contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """A new folder to write into, which takes the place of `target` when the block ends; an error leaves the old one there.

    Args:
        target: Its own folder is made where there is none.

    Raises:
        OSError: it cannot be written, or take that place.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with draft_folder(target) as folder:
        draft, old = folder / "new", folder / "old"
        draft.mkdir()
        yield draft
        if os.path.lexists(target):
            target.replace(old)
        try:
            draft.replace(target)
        except OSError:
            if os.path.lexists(old):
                old.replace(target)
            raise


def clear_abandoned(folder: Path) -> None:
    """Remove the drafts in a folder whose owners live no more. Where the file system has no locks they stay."""
    try:
        names = [name for name in os.listdir(folder) if name.startswith(TEMPORARY)]  # noqa: PTH208 - quick in large ones
    except OSError:
        return
    for name in names:
        draft = folder / name
        with suppress(OSError):
            handle = os.open(draft, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
            try:
                if _locked(handle, wait=False):
                    remove(draft)
            finally:
                os.close(handle)


def remove(path: Path) -> None:
    """Remove a file, a folder with all that is in it, or a link, whose target stays.

    Raises:
        OSError: it cannot be removed; that there is nothing is none.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _temporary(parent: Path, *, folder: bool) -> Iterator[Path]:
    """A new file or folder with a temporary name and a lock on it; removed at the end if it is still there."""
    clear_abandoned(parent)
    path, handle = _claimed(parent, folder=folder)
    try:
        yield path
    finally:
        with suppress(OSError):
            remove(path)
        if handle is not None:
            os.close(handle)


def _claimed(parent: Path, *, folder: bool) -> tuple[Path, int | None]:
    """Make it and lock it; once more where another process took it for abandoned in between."""
    while True:
        path = parent / f"{TEMPORARY}{secrets.token_hex(6)}"
        if folder:
            path.mkdir()
        else:
            path.touch(exist_ok=False)
        try:
            handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            continue
        except OSError:  # Windows opens no folders, and locks nothing here
            return path, None
        _locked(handle, wait=True)
        if path.exists():
            return path, handle
        os.close(handle)


def _locked(handle: int, *, wait: bool) -> bool:
    """Take the lock of an open file; whether it could be taken."""
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (ImportError, OSError):  # another process has it, or the system or the file system knows no locks
        return False
    return True
