"""Files that are whole or not there."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["write_json", "write_whole"]


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object for people to read as well, as `write_whole` does.

    Raises:
        ValueError: a number is not finite.
        OSError: as `write_whole`.
    """
    write_whole(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file under a temporary name, then rename it: a reader sees the old file or the new one, never half of it.

    Args:
        path: The file; its folder exists.
        content: Bytes, or text that becomes UTF-8.

    Raises:
        OSError: it cannot be written; the old file, if there is one, stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
