"""Readers of data files: npz, MNIST's idx, CIFAR-10's python batches, folders of images."""

import gzip
import math
import pickle
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from l0prune.errors import DataError
from l0prune.reading import bounded_archive, reading, require_bounded
from l0prune.sources.pickles import load_arrays
from l0prune.sources.stored import Stored

__all__ = ["read_cifar10", "read_digits", "read_folder", "read_mnist", "read_npz"]

Arrays = dict[str, Any]
NAMES = ("x_train", "y_train", "x_test", "y_test", "n_classes")
IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".gif", ".tif", ".tiff"}
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM", "GIF", "TIFF")
"""As Pillow names them; it knows others that start programs, whatever a file is called."""
IN_MEMORY = 1 << 30
"""Bytes of pictures that are read at once; those of larger folders are read when a batch needs them."""
TEST_FOLDERS = ("test", "val", "valid", "validation")
TEST_SHARE = 5  # without a test folder, every fifth image of a class is for testing


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


def read_folder(folder: Path, image_size: tuple[int, int] | None = None) -> Arrays:
    """Images in a folder a class, under `train` and `test` (or `val`) folders or without.

    Without them every fifth image of a class, in the order of names, is for testing.

    Args:
        folder: Holds the folders.
        image_size: (height, width): the shorter side is resized to fit and the middle is kept. None keeps the
            images' own size, which must then be the same for all.

    Raises:
        DataError: if pillow is not installed, a folder is empty, an image is damaged, or sizes differ.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; expected one folder of images per class in it.")
    train = folder / "train"
    test = next((folder / name for name in TEST_FOLDERS if (folder / name).is_dir()), None)
    if train.is_dir() and test is not None:
        classes = _classes(train)
        if _classes(test) != classes:
            odd = sorted(set(_classes(test)) ^ set(classes))
            raise DataError(f"{folder}: the classes of {train.name} and {test.name} differ: {', '.join(odd[:5])}.")
        parts = {"train": _listed(train, classes), "test": _listed(test, classes)}
    else:
        classes = _classes(folder)
        listed = _listed(folder, classes)
        is_test = [index % TEST_SHARE == TEST_SHARE - 1 for index in _rank_in_class([label for _, label in listed])]
        parts = {
            "train": [item for item, held in zip(listed, is_test, strict=True) if not held],
            "test": [item for item, held in zip(listed, is_test, strict=True) if held],
        }
        if not parts["test"]:
            raise DataError(
                f"{folder}: {len(listed)} images are too few to hold any out for testing; add a test folder."
            )
    arrays: Arrays = {"n_classes": len(classes), "class_names": tuple(classes)}
    for part, items in parts.items():
        arrays[f"x_{part}"] = _read_images([path for path, _ in items], image_size)
        arrays[f"y_{part}"] = np.array([label for _, label in items], np.int64)
    parts_read = (arrays["x_train"], arrays["x_test"])
    if any(isinstance(part, Stored) for part in parts_read):
        arrays |= {
            f"x_{name}": part
            if isinstance(part, Stored) or part.ndim == 4
            else np.stack([_coloured(one) for one in part])
            for name, part in zip(("train", "test"), parts_read, strict=True)
        }
    if arrays["x_train"].ndim != arrays["x_test"].ndim:
        raise DataError(f"{folder}: train and test images differ, one is grey and the other in colour.")
    return arrays


def _classes(folder: Path) -> list[str]:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise DataError(f"{folder} has no folders in it; expected one per class, with its images.")
    return names


def _listed(folder: Path, classes: list[str]) -> list[tuple[Path, int]]:
    items = []
    for label, name in enumerate(classes):
        files = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise DataError(f"{folder / name} has no images in it ({', '.join(sorted(IMAGE_SUFFIXES))}).")
        items += [(path, label) for path in files]
    return items


def _rank_in_class(labels: list[int]) -> list[int]:
    seen: dict[int, int] = {}
    ranks = []
    for label in labels:
        ranks.append(seen.get(label, 0))
        seen[label] = ranks[-1] + 1
    return ranks


def _read_images(paths: list[Path], image_size: tuple[int, int] | None) -> Any:
    """uint8 (N, H, W) where all are grey, else (N, H, W, 3); files to be read batch by batch where they are too many."""
    try:
        import PIL  # noqa: F401 - whether it is there
    except ModuleNotFoundError as error:
        raise DataError("pillow is not installed; run `pip install pillow` to read folders of images.") from error

    if image_size is not None and 3 * math.prod(image_size) * len(paths) > IN_MEMORY:
        return ImageFiles(paths, image_size)
    images: list[Any] = []
    n_bytes = stored = 0
    for path in paths:
        images.append(_read_image(path, image_size))
        n_bytes, stored = n_bytes + images[-1].nbytes, stored + path.stat().st_size
        require_bounded(n_bytes, stored, path.parent, error=DataError)
        if images[-1].shape[:2] != images[0].shape[:2]:
            raise DataError(
                f"{path} is {_size(images[-1])} pixels and {paths[0]} is {_size(images[0])}; "
                "give the size to resize the images to (--image-size)."
            )
    if any(image.ndim == 3 for image in images):
        images = [_coloured(image) for image in images]
    return np.stack(images)


def _read_image(path: Path, image_size: tuple[int, int] | None) -> Any:
    """uint8 (H, W) of a grey picture, else (H, W, 3)."""
    from PIL import Image, ImageOps

    with reading(path, "readable image", error=DataError), warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            picture = ImageOps.exif_transpose(image).convert("L" if image.mode in {"1", "L"} else "RGB")
            if image_size is not None and picture.size[::-1] != image_size:
                picture = ImageOps.fit(picture, image_size[::-1], Image.Resampling.BILINEAR)
    return np.asarray(picture)


def _coloured(image: Any) -> Any:
    return image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2)


class ImageFiles(Stored):
    """Pictures that stay in their files until a batch needs them, uint8 (N, H, W, 3).

    Args:
        paths: Of the files.
        image_size: (height, width): the shorter side is resized to fit and the middle is kept.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, paths: Iterable[Path], image_size: tuple[int, int]) -> None:
        self._paths, self._size = np.array(list(paths), object), image_size
        self.shape = (len(self._paths), *image_size, 3)

    def __getitem__(self, rows: Any) -> "ImageFiles":
        """Some of them."""
        return ImageFiles(self._paths[rows], self._size)

    def read(self, rows: Any) -> Any:
        """Pictures (n, H, W, 3).

        Raises:
            DataError: a file is damaged.
        """
        return np.stack([_coloured(_read_image(path, self._size)) for path in self._paths[rows]])


def _size(image: Any) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"
