"""Pickles, looked at without running them, and read where they hold arrays only."""

import io
import pickle
import pickletools
import warnings
import zipfile
from pathlib import Path
from typing import Any

from l0prune.errors import L0PruneError
from l0prune.reading import bounded_archive, require_bounded

__all__ = ["imported_names", "load_arrays", "read_pickled_tensors"]

# What it takes to rebuild dictionaries, bytes and numpy arrays, under the module names numpy 1 and 2 write.
ALLOWED = {
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
}


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


def read_pickled_tensors(path: Path, *, error: type[L0PruneError]) -> Any:
    """Read what torch.save wrote, if it is tensors and plain values; no code in it is run.

    Args:
        path: The file.
        error: What to raise where it claims more than its size can hold.

    Raises:
        L0PruneError: `error`.
        Exception: of any kind, where torch cannot read it.
    """
    import torch
    from torch.utils import _pytree as pytree

    stored = path.stat().st_size
    if zipfile.is_zipfile(path):
        bounded_archive(path, stored, path, error=error).close()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickle protocols
        content = torch.load(path, map_location="cpu", weights_only=True)
    tensors = [leaf for leaf in pytree.tree_leaves(content) if isinstance(leaf, torch.Tensor)]
    require_bounded(sum(leaf.numel() * leaf.element_size() for leaf in tensors), stored, path, error=error)
    return content


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Allow what `ALLOWED` lists."""
        if (module, name) == ("_codecs", "encode"):
            return _as_latin1
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it needs {module}.{name}, that is code")
        return super().find_class(module, name)


def _as_latin1(text: str, encoding: str) -> bytes:
    """How old pickles store bytes; other encodings are modules that Python would import."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it has text in {encoding[:20]!r}")
    return text.encode("latin1")
