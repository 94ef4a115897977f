"""What this machine has, as far as it bounds what can be asked of it."""

import os
import sys

from l0prune.errors import ConfigError

__all__ = ["memory_bytes", "most_threads", "require_threads", "usable_cores"]

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
