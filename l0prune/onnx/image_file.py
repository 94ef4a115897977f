"""preprocessing.json, which lies beside ONNX files that take images: these hold the network alone."""

from pathlib import Path

from l0prune.files import write_json
from l0prune.plain_data import FileKind
from l0prune.reading import read_json
from l0prune.sources.preprocessing import Preprocessing

__all__ = ["PREPROCESSING", "describe_images", "described_images"]

PREPROCESSING = "preprocessing.json"
_FILE = FileKind("l0prune.preprocessing", 1, "a description of input images", "run shrink again")
_INPUT = "float32, (batch, channels, height, width), each channel (pixel / 255 - mean) / std"


def describe_images(preprocessing: Preprocessing, path: Path) -> None:
    """Write down what images have to become before they go into the files beside `path`."""
    write_json(path, _FILE.stamped({**preprocessing.to_json(), "input": _INPUT}))


def described_images(path: Path) -> Preprocessing | None:
    """What stands in such a file; None where there is none.

    Raises:
        FileFormatError: it cannot be understood.
        ConfigError: a value is out of range.
    """
    if not path.is_file():
        return None
    content = _FILE.content(read_json(path, _FILE.what), str(path), ("image_size", "mean", "std", "input"))
    content.pop("input")
    return Preprocessing.from_json(content)
