"""The folder of a compact model: its manifest, and its files, each checked against the manifest before it is read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.fx import GraphModule

from l0prune.errors import ConfigError, FileFormatError, ModelSpecError, first_line
from l0prune.plain_data import from_plain
from l0prune.reading import read_json, reading
from l0prune.sources.exported import load_example_inputs, load_exported_program, module_of
from l0prune.sources.library_models import LibraryModel
from l0prune.sources.preprocessing import Preprocessing

__all__ = ["MANIFEST", "PLAN", "PROGRAM", "WEIGHTS", "CompactFolder", "is_compact_folder", "manifest_of", "read_graph"]

FORMAT = "l0prune.compact"
VERSION = 1
KIND, REMEDY = "part of a compact model", "run shrink again"
WEIGHTS, PLAN, PROGRAM, MANIFEST = "model.safetensors", "surgery.json", "model.pt2", "manifest.json"
_KEYS = {"format", "version", "l0prune", "model_class", "form", "max_rel_diff", "dynamic_batch", "files"}
_REFUSAL, _IMAGES, _CLASS_LOST, _LIBRARY = "no_graph_because", "preprocessing", "not_in_place_because", "library"
_OPTIONAL = {_REFUSAL, _IMAGES, _CLASS_LOST, _LIBRARY}


def is_compact_folder(path: str | Path) -> bool:
    """Whether a path is a folder with the manifest of a compact model, damaged or not."""
    try:
        manifest = _read_json(Path(path) / MANIFEST)
    except FileFormatError:
        return False
    return isinstance(manifest, dict) and manifest.get("format") == FORMAT


@dataclass(frozen=True)
class CompactFolder:
    """A folder that `l0prune.save` wrote, with every file as it was saved.

    Attributes:
        path: The folder.
        manifest: What `manifest.json` says.
    """

    path: Path
    manifest: Mapping[str, Any]

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
            raise FileFormatError(f"{folder} is no folder; run `l0prune shrink` first, or give the folder it wrote")
        manifest = _read_json(folder / MANIFEST)
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise FileFormatError(f"{folder / MANIFEST} is no manifest of a compact model; run shrink again")
        if manifest.get("version") != VERSION:
            raise FileFormatError(
                f"{folder / MANIFEST} has version {manifest.get('version')!r}; this l0prune reads version {VERSION}; "
                "run shrink again"
            )
        if set(manifest) - _OPTIONAL != _KEYS or not isinstance(manifest["files"], dict):
            odd = ", ".join(sorted((set(manifest) - _OPTIONAL) ^ _KEYS)) or "files"
            raise FileFormatError(f"{folder / MANIFEST} has missing or unknown keys: {odd}; run shrink again")
        kinds = {"form": str, "max_rel_diff": float, "dynamic_batch": bool, "files": dict[str, str]}
        kinds |= {_REFUSAL: str, _CLASS_LOST: str}
        for key in kinds.keys() & manifest.keys():
            from_plain(kinds[key], manifest[key], f"{folder / MANIFEST}, {key}", remedy=REMEDY)
        if _LIBRARY in manifest:
            LibraryModel.from_json(manifest[_LIBRARY], f"{folder / MANIFEST}, {_LIBRARY}", remedy=REMEDY)
        for name in (WEIGHTS, PLAN) if _REFUSAL in manifest else (WEIGHTS, PLAN, PROGRAM):
            if not (folder / name).is_file():
                raise FileFormatError(f"{folder / name} is missing; run shrink again")
            with reading(
                folder / name, KIND, remedy=REMEDY
            ):  # which refuses files larger than the memory, before they are hashed
                found = _sha256(folder / name)
            if found != manifest["files"].get(name):
                raise FileFormatError(
                    f"{folder / name} is not the file that was saved (its SHA-256 differs from {MANIFEST}); run shrink again"
                )
        return cls(folder, manifest)

    @property
    def no_graph_because(self) -> str | None:
        """Why there is no graph, so that the model is loaded into its class; None if there is one."""
        return self.manifest.get(_REFUSAL)

    @property
    def not_in_place_because(self) -> str:
        """Why the model lost its class when it was cut; empty if it kept it."""
        reason: str = self.manifest.get(_CLASS_LOST, "")
        return reason

    @property
    def library(self) -> LibraryModel | None:
        """How a library builds the dense model, if one does."""
        stated = self.manifest.get(_LIBRARY)
        return None if stated is None else LibraryModel.from_json(stated, str(self.path / MANIFEST), remedy=REMEDY)

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
        stated = self.manifest.get(_IMAGES)
        try:
            return None if stated is None else Preprocessing.from_json(stated)
        except (ConfigError, FileFormatError) as error:
            raise FileFormatError(f"{self.path / MANIFEST}: {first_line(error)}; run shrink again") from error

    def graph(self) -> tuple[GraphModule, tuple[Any, ...], dict[str, Any]]:
        """As `read_graph`, of the saved graph."""
        return read_graph(self.program)

    def example_inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword example inputs alone; none where there is no graph."""
        return ((), {}) if self.no_graph_because is not None else load_example_inputs(self.program)


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


def manifest_of(
    folder: Path,
    contents: Mapping[str, Any],
    *,
    refusal: str | None,
    preprocessing: Preprocessing | None,
    class_lost: str = "",
    library: LibraryModel | None = None,
) -> dict[str, Any]:
    """The manifest of the files that lie in a folder.

    Args:
        folder: The folder.
        contents: What it says beside format, version and files.
        refusal: Why there is no graph.
        preprocessing: How images become the model's input.
        class_lost: Why the model has not kept its class.
        library: How a library builds the dense model.
    """
    manifest = {"format": FORMAT, "version": VERSION, **contents}
    manifest["files"] = {name: _sha256(folder / name) for name in (WEIGHTS, PLAN, PROGRAM) if (folder / name).exists()}
    if refusal is not None:
        manifest[_REFUSAL] = refusal
    if preprocessing is not None:
        manifest[_IMAGES] = preprocessing.to_json()
    if class_lost:
        manifest[_CLASS_LOST] = class_lost
    if library is not None:
        manifest[_LIBRARY] = library.to_json()
    return manifest


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
