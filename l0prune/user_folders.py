"""Folders of the user in which things are kept between commands."""

import errno
import os
import sys
from pathlib import Path

__all__ = ["cache_directory", "state_directory"]


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
