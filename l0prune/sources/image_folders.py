"""Folders of images, a folder a class: read at once, or left in their files where they are too many."""

import math
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from l0prune.errors import DataError
from l0prune.reading import reading, require_bounded
from l0prune.sources.readers import Arrays
from l0prune.sources.stored import Stored

__all__ = ["ImageFiles", "read_folder"]

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".gif", ".tif", ".tiff"}
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM", "GIF", "TIFF")
"""As Pillow names them; it knows others that start programs, whatever a file is called."""
IN_MEMORY = 1 << 30
"""Bytes of pictures that are read at once; those of larger folders are read when a batch needs them."""
TEST_FOLDERS = ("test", "val", "valid", "validation")
TEST_SHARE = 5  # without a test folder, every fifth image of a class is for testing


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
