"""Readers of data files: npz, MNIST's idx, CIFAR-10's python batches."""

import gzip
import math
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from l0prune.errors import DataError
from l0prune.reading import bounded_archive, reading, require_bounded
from l0prune.sources.pickles import load_arrays

__all__ = ["Arrays", "read_cifar10", "read_digits", "read_mnist", "read_npz"]

Arrays = dict[str, Any]
NAMES = ("x_train", "y_train", "x_test", "y_test", "n_classes")
IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_digits() -> Arrays:
    """The bundled 8x8 digits."""
    from l0prune import models

    return read_npz(Path(models.__file__).parent / "data" / "digits.npz")


def read_npz(path: Path) -> Arrays:
    """The arrays of an npz file that have to do with data; pickled ones are refused.

    Raises:
        DataError: if the file is damaged, no npz, or an array in it is pickled.
    """
    with reading(path, "npz file", error=DataError):
        if not zipfile.is_zipfile(path):
            with path.open("rb") as content:
                found = (
                    "holds a single array" if content.read(6) == b"\x93NUMPY" else "is damaged or is not an npz file"
                )
            raise DataError(f"{path} {found}, expected an npz file with {', '.join(NAMES[:4])}.")
        bounded_archive(path, path.stat().st_size, path, error=DataError).close()
        with np.load(path, allow_pickle=False) as file:
            wanted = [name for name in NAMES if name in file.files]
            if not set(NAMES[:4]) <= set(wanted) and not is_without_targets(wanted):
                missing = [name for name in NAMES[:4] if name not in wanted]
                raise DataError(f"{path}: no {', '.join(missing)}; found {', '.join(file.files) or 'nothing'}.")
            _check_claims(path, wanted)
            arrays: Arrays = {name: file[name] for name in wanted}
        if "n_classes" in arrays:
            arrays["n_classes"] = int(arrays["n_classes"])
    return arrays


def is_without_targets(names: Iterable[str]) -> bool:
    """Whether arrays of these names are inputs alone."""
    found = set(names)
    return "x_train" in found and not {"y_train", "y_test"} & found


def _check_claims(path: Path, names: list[str]) -> None:
    """See that arrays are plain, and have in the file what their headers promise: numpy makes room for it before it looks."""
    with zipfile.ZipFile(path) as archive:
        members = archive.namelist()
        for name in names:
            member = archive.getinfo(f"{name}.npy" if f"{name}.npy" in members else name)
            with archive.open(member) as content:
                version = np.lib.format.read_magic(content)
                read_header = (
                    np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                )
                shape, _, dtype = read_header(content)
            if dtype.hasobject:
                raise DataError(
                    f"{path} was refused, and nothing in it was run: it holds pickled objects. Save plain numeric arrays."
                )
            if math.prod(shape) * dtype.itemsize > member.file_size:
                raise DataError(
                    f"{path} is damaged: {name} claims shape {shape}, which is more than it has; download it again."
                )


def read_mnist(folder: Path) -> Arrays:
    """MNIST's four idx files, gzipped or not.

    Raises:
        DataError: if one is missing or damaged.
    """
    arrays = {}
    for part, prefix in (("train", "train"), ("test", "t10k")):
        arrays[f"x_{part}"] = _read_idx(_idx_file(folder, f"{prefix}-images", 3))
        arrays[f"y_{part}"] = _read_idx(_idx_file(folder, f"{prefix}-labels", 1))
    return arrays


def _idx_file(folder: Path, stem: str, rank: int) -> Path:
    names = [f"{stem}{sep}idx{rank}-ubyte{end}" for sep in "-." for end in ("", ".gz")]
    for where in (folder, folder / "MNIST" / "raw", folder / "raw"):
        for name in names:
            if (where / name).is_file():
                return where / name
    raise DataError(f"{folder}: no {names[0]}, with or without .gz; expected MNIST's four idx files there.")


def _read_idx(path: Path) -> Any:
    """One array. Format: two zero bytes, type, rank, the sizes as big-endian 32-bit integers, the values."""
    with reading(path, "idx file", error=DataError, remedy="download it again"):
        return _parsed_idx(path, unpacked(path))


def unpacked(path: Path) -> bytes:
    """The content of a file, gzipped or not; of one that unfolds without end, no more than there may be."""
    stored = path.stat().st_size
    if path.suffix != ".gz":
        return path.read_bytes()
    parts, n_bytes = [], 0
    with gzip.open(path) as file:
        while part := file.read(1 << 24):
            n_bytes += len(part)
            require_bounded(n_bytes, stored, path, error=DataError)
            parts.append(part)
    return b"".join(parts)


def _parsed_idx(path: Path, content: bytes) -> Any:
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in IDX_TYPES:
        raise DataError(f"{path} is not an idx file: it starts with {content[:4].hex() or 'nothing'}.")
    kind, rank = np.dtype(IDX_TYPES[content[2]]), content[3]
    start = 4 + 4 * rank
    shape = tuple(int(n) for n in np.frombuffer(content[4:start], ">u4")) if len(content) >= start else None
    if shape is None or len(content) - start != math.prod(shape) * kind.itemsize:
        raise DataError(f"{path} is damaged: {len(content)} bytes do not hold shape {shape}; download it again.")
    return np.frombuffer(content, kind, offset=start).reshape(shape).copy()


def read_cifar10(folder: Path) -> Arrays:
    """CIFAR-10's python batches: data_batch_1 to data_batch_5 and test_batch.

    They are pickles, read by an unpickler that makes numpy arrays and nothing else.

    Raises:
        DataError: if one is missing or damaged, or asks for more.
    """
    inner = folder / "cifar-10-batches-py"
    where = inner if inner.is_dir() else folder
    train = [_read_cifar_batch(where / f"data_batch_{i}") for i in range(1, 6)]
    x_test, y_test = _read_cifar_batch(where / "test_batch")
    return {
        "x_train": np.concatenate([x for x, _ in train]),
        "y_train": np.concatenate([y for _, y in train]),
        "x_test": x_test,
        "y_test": y_test,
        "n_classes": 10,
    }


def _read_cifar_batch(path: Path) -> tuple[Any, Any]:
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected data_batch_1 to data_batch_5 and test_batch there.")
    with reading(path, "batch of CIFAR-10", error=DataError, remedy="download it again"):
        return _cifar_arrays(path, _unpickled(path))


def _unpickled(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return load_arrays(file)
    except pickle.UnpicklingError as error:
        if "which is code" in str(error):
            raise DataError(f"{path} was refused, and nothing in it was run: {error}.") from error
        raise


def _cifar_arrays(path: Path, batch: Any) -> tuple[Any, Any]:
    batch = {_text(key): value for key, value in batch.items()} if isinstance(batch, Mapping) else {}
    data, labels = batch.get("data"), batch.get("labels")
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        raise DataError(f"{path}: 'data' is {_kind(data)}, expected uint8 (N, 3072).")
    if data.nbytes > path.stat().st_size:
        raise DataError(
            f"{path} is damaged: 'data' claims {_kind(data)}, which is more than it has; download it again."
        )
    if not isinstance(labels, list) or not all(isinstance(label, int) for label in labels):
        raise DataError(f"{path}: 'labels' is {_kind(labels)}, expected a list of integers.")
    images = data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), np.array(labels, np.int64)


def _text(key: Any) -> Any:
    return key.decode("latin-1") if isinstance(key, bytes) else key


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    return "missing" if value is None else f"a {type(value).__name__}"
