"""The folder of a compact model: its manifest, and its files, each checked against the manifest before it is read."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch.fx import GraphModule

from l0prune.errors import ConfigError, FileFormatError, ModelSpecError, first_line
from l0prune.plain_data import FileKind
from l0prune.reading import read_json, reading
from l0prune.sources.exported import load_example_inputs, load_exported_program, module_of
from l0prune.sources.library_models import LibraryModel
from l0prune.sources.preprocessing import Preprocessing

__all__ = [
    "MANIFEST",
    "PLAN",
    "PROGRAM",
    "WEIGHTS",
    "CompactFolder",
    "Manifest",
    "hashes_of",
    "is_compact_folder",
    "read_graph",
]

KIND, REMEDY = "part of a compact model", "run shrink again"
FILE = FileKind("l0prune.compact", 1, "the manifest of a compact model", REMEDY)
WEIGHTS, PLAN, PROGRAM, MANIFEST = "model.safetensors", "surgery.json", "model.pt2", "manifest.json"
OPTIONAL = ("no_graph_because", "preprocessing", "not_in_place_because", "library")


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says.

    Attributes:
        l0prune: Version that wrote it.
        model_class: Name of the class of the model.
        form: "in-place" or "graph".
        max_rel_diff: Largest difference of its outputs from those of the gated model, relative to the largest.
        dynamic_batch: Whether the graph takes batches of any size.
        files: Name -> SHA-256.
        no_graph_because: Why there is no graph, so that the model is loaded into its class; None if there is one.
        preprocessing: How images become the model's input, plain data.
        not_in_place_because: Why the model lost its class when it was cut; empty if it kept it.
        library: How a library builds the dense model, plain data.
    """

    l0prune: str
    model_class: str
    form: str
    max_rel_diff: float
    dynamic_batch: bool
    files: dict[str, str]
    no_graph_because: str | None = None
    preprocessing: dict[str, Any] | None = None
    not_in_place_because: str = ""
    library: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON object; what there is nothing to say of is left out."""
        return FILE.stamped({key: value for key, value in asdict(self).items() if key not in OPTIONAL or value})


def is_compact_folder(path: str | Path) -> bool:
    """Whether a path is a folder with the manifest of a compact model, damaged or not."""
    try:
        manifest = _read_json(Path(path) / MANIFEST)
    except FileFormatError:
        return False
    return isinstance(manifest, dict) and manifest.get("format") == FILE.format


@dataclass(frozen=True)
class CompactFolder:
    """A folder that `l0prune.save` wrote, with every file as it was saved.

    Attributes:
        path: The folder.
        manifest: What `manifest.json` says.
    """

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path) -> CompactFolder:
        """Read the manifest and see that every file is the one that was saved.

        Raises:
            FileFormatError: a file is missing, damaged, of an unknown version, or not the one that was saved.
        """
        with reading(path, "folder of a compact model", remedy=REMEDY, folder=True):
            return cls._open(Path(path))

    @classmethod
    def _open(cls, folder: Path) -> CompactFolder:
        if not folder.is_dir():
            raise FileFormatError(f"{folder} is not a folder; run `l0prune shrink` first, or give the folder it wrote")
        manifest = FILE.read(Manifest, _read_json(folder / MANIFEST), str(folder / MANIFEST), optional=OPTIONAL)
        opened = cls(folder, manifest)
        _ = opened.library  # which refuses what asks for more than a model
        for name in (WEIGHTS, PLAN, PROGRAM) if manifest.no_graph_because is None else (WEIGHTS, PLAN):
            if not (folder / name).is_file():
                raise FileFormatError(f"{folder / name} is missing; run shrink again")
            with reading(
                folder / name, KIND, remedy=REMEDY
            ):  # which refuses files larger than the memory, before they are hashed
                found = _sha256(folder / name)
            if found != manifest.files.get(name):
                raise FileFormatError(
                    f"{folder / name} is not the file that was saved (its SHA-256 differs from {MANIFEST}); run shrink again"
                )
        return opened

    @property
    def library(self) -> LibraryModel | None:
        """How a library builds the dense model, if one does."""
        stated = self.manifest.library
        return (
            None
            if stated is None
            else LibraryModel.from_json(stated, f"{self.path / MANIFEST}, library", remedy=REMEDY)
        )

    @property
    def plan(self) -> Any:
        """The content of `surgery.json`."""
        return _read_json(self.path / PLAN)

    @property
    def weights(self) -> Path:
        """The file of the weights."""
        return self.path / WEIGHTS

    @property
    def program(self) -> Path:
        """The file of the graph, which need not be there."""
        return self.path / PROGRAM

    @property
    def preprocessing(self) -> Preprocessing | None:
        """What was written down about its input images, if anything.

        Raises:
            FileFormatError: it describes none.
        """
        stated = self.manifest.preprocessing
        try:
            return None if stated is None else Preprocessing.from_json(stated)
        except (ConfigError, FileFormatError) as error:
            raise FileFormatError(f"{self.path / MANIFEST}: {first_line(error)}; run shrink again") from error

    def graph(self) -> tuple[GraphModule, tuple[Any, ...], dict[str, Any]]:
        """As `read_graph`, of the saved graph."""
        return read_graph(self.program)

    def example_inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword example inputs alone; none where there is no graph."""
        return ((), {}) if self.manifest.no_graph_because is not None else load_example_inputs(self.program)


def read_graph(path: Path) -> tuple[GraphModule, tuple[Any, ...], dict[str, Any]]:
    """The module of a saved graph, and its positional and keyword example inputs.

    Raises:
        FileFormatError: the graph holds what this version does not read.
    """
    try:
        program = load_exported_program(path)
    except ModelSpecError as error:
        raise FileFormatError(f"{error} Or run shrink again.") from error
    args, kwargs = program.example_inputs or ((), {})
    return module_of(program), tuple(args), dict(kwargs)


def hashes_of(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of the files of a compact model that lie in a folder."""
    return {name: _sha256(folder / name) for name in (WEIGHTS, PLAN, PROGRAM) if (folder / name).exists()}


def _read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        FileFormatError: it is missing or damaged.
    """
    return read_json(path, KIND, remedy=REMEDY)


def _sha256(path: Path) -> str:
    """Hash of a file."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        for chunk in iter(lambda: file.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()
