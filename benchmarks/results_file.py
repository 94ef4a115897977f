"""Results of a benchmark as lines of JSON, one a run."""

import json
from pathlib import Path
from typing import Any

__all__ = ["read"]


def read(file: Path) -> list[dict[str, Any]]:
    """All results so far; a line that a killed run left half written is dropped."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return [json.loads(text) for text in lines if text.startswith("{") and text.endswith("}")]
