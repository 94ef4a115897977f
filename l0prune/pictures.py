"""Figures without a window system, and the files they become."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING

from l0prune.errors import ConfigError
from l0prune.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ACCENT", "COMPACT", "DENSE", "GREEN", "data_uri", "new_figure", "require_picture_name", "save_picture"]

DENSE, COMPACT, ACCENT, GREEN = "#9aa5b1", "#2f6f9f", "#c0562f", "#6b8e4e"
SUFFIXES = (".png", ".svg", ".pdf")
_DOTS_PER_INCH = 150


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, inches.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("pictures need matplotlib: pip install 'l0prune[report]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def require_picture_name(path: Path) -> None:
    """See that a file's name says a format that can be drawn.

    Raises:
        ConfigError: it does not.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{path} is not a picture: the name must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")


def save_picture(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the name's suffix, whole or not at all; the folder is created.

    Raises:
        ConfigError: the suffix is none of .png, .svg and .pdf.
    """
    require_picture_name(path)
    content = _rendered(figure, path.suffix.lower().removeprefix("."))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)


def data_uri(figure: Figure) -> str:
    """The figure as an SVG inside a data URI."""
    return "data:image/svg+xml;base64," + base64.b64encode(_rendered(figure, "svg")).decode()


def _rendered(figure: Figure, kind: str) -> bytes:
    """The file's bytes, without the time at which it was drawn."""
    undated = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind]
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=_DOTS_PER_INCH, metadata=undated)
    return buffer.getvalue()
