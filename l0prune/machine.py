"""What this machine has: memory and cores, as far as they bound what can be asked of it; and the user's folders."""

import errno
import os
import sys
from pathlib import Path

from l0prune.errors import ConfigError

__all__ = [
    "cache_directory",
    "memory_bytes",
    "most_threads",
    "require_threads",
    "state_directory",
    "usable_cores",
]

THREADS_ANYWHERE = 64  # more than a small machine has cores is a waste, but no mistake


def usable_cores() -> int:
    """Processor cores that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def most_threads() -> int:
    """The most threads that can be meant here; tens of thousands end a process without a word."""
    return max(THREADS_ANYWHERE, usable_cores())


def require_threads(threads: int) -> None:
    """See that a number of threads can be meant.

    Raises:
        ConfigError: it cannot.
    """
    if not 1 <= threads <= most_threads():
        raise ConfigError(f"threads={threads}: expected 1 to {most_threads()} on this machine.")


def memory_bytes() -> int | None:
    """Bytes of memory; None where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def cache_directory() -> Path:
    """Of what can be measured again. The environment variable L0PRUNE_CACHE_DIR moves it.

    Raises:
        OSError: the user has no home.
    """
    return _directory("L0PRUNE_CACHE_DIR", "XDG_CACHE_HOME", "~/.cache", mac="~/Library/Caches")


def state_directory() -> Path:
    """Of what cannot. The environment variable L0PRUNE_STATE_DIR moves it.

    Raises:
        OSError: the user has no home.
    """
    return _directory("L0PRUNE_STATE_DIR", "XDG_STATE_HOME", "~/.local/state", mac="~/Library/Application Support")


def _directory(own: str, shared: str, default: str, *, mac: str) -> Path:
    override = os.environ.get(own)
    if override:
        return Path(override)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
    elif sys.platform == "darwin":
        base = mac
    else:
        base = os.environ.get(shared)
    try:
        return Path(base or default).expanduser() / "l0prune"
    except RuntimeError as error:
        raise OSError(errno.ENOENT, "this user has no home folder", default) from error
