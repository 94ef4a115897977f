"""Pickles, looked at without running them, and read where they hold arrays only."""

import io
import pickle
import pickletools
import tarfile
import warnings
import zipfile
from pathlib import Path
from typing import IO, Any

from l0prune.errors import L0PruneError
from l0prune.reading import bounded_archive, require_bounded

__all__ = ["imported_names", "load_arrays", "read_pickled_tensors"]


def imported_names(path: Path) -> list[str] | None:
    """Names a pickle would import, read from its opcodes.

    Args:
        path: A pickle, or a zip archive as torch writes it, with one in `*/data.pkl`.

    Returns:
        Dotted names in order of appearance, or None where the file is no complete pickle.
    """
    try:
        if zipfile.is_zipfile(path):
            with bounded_archive(path, path.stat().st_size, path) as archive:
                member = next(name for name in archive.namelist() if name.endswith("data.pkl"))
                return _names(io.BytesIO(archive.read(member)))
        with path.open("rb") as file:
            return _names(file)
    except Exception:  # noqa: BLE001 - a damaged file can make these readers fail in any way
        return None


def _names(file: Any) -> list[str]:
    names: list[str] = []
    strings: list[str] = []
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in {"GLOBAL", "INST"}:
            names.append(str(argument).replace(" ", "."))
        elif opcode.name == "STACK_GLOBAL":
            names.append(".".join(strings[-2:]))
        elif isinstance(argument, str):
            strings.append(argument)
    return list(dict.fromkeys(names))


def load_arrays(file: Any) -> Any:
    """Read a pickle that may hold containers, text, numbers and numpy arrays, and nothing else.

    Args:
        file: Binary file; pickles of Python 2 are understood, their text comes as bytes.

    Raises:
        pickle.UnpicklingError: if it asks for anything else; nothing is run.
    """
    return _ArrayUnpickler(file, encoding="bytes").load()


def read_pickled_tensors(file: IO[bytes], path: Path, *, error: type[L0PruneError]) -> Any:
    """Read what torch.save wrote, if it is tensors and plain values; no code in it is run.

    Args:
        file: The file, or a part of one.
        path: Of the file, for the message.
        error: What to raise where it claims more than its size can hold.

    Raises:
        L0PruneError: `error`.
        Exception: of any kind, where torch cannot read it.
    """
    import torch
    from torch.utils import _pytree as pytree

    stored = file.seek(0, io.SEEK_END)
    file.seek(0)
    is_zip = file.read(4) == b"PK\x03\x04"  # as torch decides; what follows has to agree
    if is_zip:
        bounded_archive(file, stored, path, error=error).close()
    elif _is_tar(file):
        raise error(f"{path} is a tar archive, as torch wrote them before 2018; load it with torch and save it again.")
    file.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickle protocols
        content = torch.load(file, map_location="cpu", weights_only=True)
    tensors = [leaf for leaf in pytree.tree_leaves(content) if isinstance(leaf, torch.Tensor)]
    require_bounded(sum(leaf.numel() * leaf.element_size() for leaf in tensors), stored, path, error=error)
    return content


def _is_tar(file: IO[bytes]) -> bool:
    """Whether torch would take a file for a tar archive, and write its members to a temporary folder."""
    file.seek(0)
    try:
        tarfile.open(fileobj=file, mode="r:").close()
    except tarfile.TarError:
        return False
    return True


def _empty_array(_kind: object, _shape: object, _type: object) -> Any:
    """An array that its state will fill: as numpy makes it, but for the room that a file may ask for."""
    import numpy as np

    return np.empty(0, np.uint8)


def _as_latin1(text: str, encoding: str) -> bytes:
    """How old pickles store bytes; other encodings are modules that Python would import."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it has text in {encoding[:20]!r}")
    return text.encode("latin1")


# What it takes to rebuild dictionaries, bytes and numpy arrays, by the module names of numpy 1 and 2. The class of arrays is
# named and never called: it would make room for as many as it is told to.
STAND_INS: dict[tuple[str, str], object] = {
    ("_codecs", "encode"): _as_latin1,
    ("numpy", "ndarray"): "numpy.ndarray",
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _empty_array for core in ("core", "_core")},
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Allow what `STAND_INS` lists, and types of numbers."""
        if (module, name) == ("numpy", "dtype"):
            return super().find_class(module, name)
        if (module, name) not in STAND_INS:
            raise pickle.UnpicklingError(f"it needs {module[:80]}.{name[:80]}, which is code")
        return STAND_INS[module, name]
