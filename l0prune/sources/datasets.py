"""Data sets by specification, checked once and for all when they are loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from l0prune.errors import DataError
from l0prune.randomness import left_alone, seed_all
from l0prune.reading import is_there
from l0prune.sources import image_folders, readers
from l0prune.sources.factories import call_factory
from l0prune.sources.stored import Stored
from l0prune.sources.tables import TABLES

if TYPE_CHECKING:
    from l0prune.sources.texts import TextOptions

__all__ = ["Array", "DataSource", "Inputs", "call_data_factory", "data_of", "is_factory", "load_data"]

Array = npt.NDArray[Any]
Inputs = Array | Stored | dict[str, Array | Stored]  # a dict holds keyword inputs, e.g. input_ids and attention_mask

READERS = {
    "npz": readers.read_npz,
    "mnist": readers.read_mnist,
    "cifar10": readers.read_cifar10,
    "folder": image_folders.read_folder,
}
_LEAST_WITHOUT_TEST = 16
ARRAYS = ("x_train", "y_train", "x_test", "y_test")
FORMS = (
    "digits, npz:FILE, mnist:DIR, cifar10:DIR, folder:DIR, csv:FILE, tsv:FILE, jsonl:FILE, txt:FILE, hf-datasets:DIR or"
    " package.module:factory"
)


@dataclass(frozen=True)
class DataSource:
    """Training and test data in memory.

    Args:
        x_train: uint8 images (N, H, W) or (N, H, W, C); or float32 or integer arrays (N, ...); or a dict of such
            arrays, one a keyword of the model.
        y_train: Targets, (N, ...): any integer type, or float32; what they mean is the task's matter.
        x_test: As `x_train`, for testing.
        y_test: As `y_train`, for testing.
        n_classes: Number of classes, where that is known.
        class_names: What the classes are called, in the order of their numbers, where that is known.
        name: The specification the data came from.
        labelled: Whether the targets say anything; without any they are zeros.

    Raises:
        DataError: if an array is empty, of another type or rank, or the labels do not fit.
    """

    x_train: Inputs
    y_train: Array
    x_test: Inputs
    y_test: Array
    n_classes: int | None = None
    class_names: tuple[str, ...] = ()
    name: str = "data"
    labelled: bool = True

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            x, y = _checked_inputs(self, f"x_{part}"), _checked_targets(self, f"y_{part}")
            object.__setattr__(self, f"x_{part}", x)
            object.__setattr__(self, f"y_{part}", y)
            if count(x) != len(y):
                raise DataError(
                    f"{self.name}: x_{part} has {count(x)} entries, y_{part} has {len(y)}; expected the same number."
                )
        _check_alike(self)

    @property
    def has_images(self) -> bool:
        """Whether the inputs are uint8 images."""
        return isinstance(self.x_train, np.ndarray | Stored) and self.x_train.dtype == np.uint8


def load_data(
    spec: str,
    *,
    image_size: tuple[int, int] | None = None,
    texts: "TextOptions | None" = None,
    arguments: Mapping[str, Any] | None = None,
) -> DataSource:
    """Load a data set.

    Args:
        spec: `digits` (bundled), `npz:FILE` (x_train, y_train, x_test, y_test; or x_train alone), `mnist:DIR` (idx files,
            gzipped or not), `cifar10:DIR` (the python batches), `folder:DIR` (a folder of images a class, needs pillow),
            `csv:`, `tsv:`, `jsonl:` or `txt:` with a file, two with a comma between them, or a folder with `train` and `dev` or
            `test`, `hf-datasets:DIR` (saved to disk, needs pyarrow), or `package.module:factory` (returns a DataSource, the four
            arrays in order, or a dict of them; one that returns loaders is for `load_source`).
        texts: What is meant by a table of texts.
        arguments: Of a factory.
        image_size: (height, width) to bring the pictures of a `folder:` to; needed where they differ in size.

    Raises:
        DataError: if the specification is unknown, or its data is missing, damaged, or not as `DataSource` expects.
    """
    kind, colon, rest = spec.partition(":")
    if arguments and not is_factory(spec):
        raise DataError(f"{spec!r} takes no arguments, found {', '.join(arguments)}; they are for factories.")
    if kind in TABLES and rest:
        from l0prune.sources.texts import read_texts

        if texts is None:
            raise DataError(f"{spec!r} holds texts: they need a model with a tokenizer, such as hf:DIR.")
        return read_texts(kind, rest, texts)
    if spec == "digits":
        return _from_arrays(readers.read_digits(), spec)
    if colon and (kind in READERS or kind in TABLES):
        if not rest:
            raise DataError(f"{spec!r}: give the path after the colon, as in {kind}:path/to/data.")
        path = Path(rest).expanduser()
        if not is_there(path):
            raise DataError(f"{spec!r}: no such {'file' if kind == 'npz' else 'folder'}: {path}.")
        arrays = image_folders.read_folder(path, image_size) if kind == "folder" else READERS[kind](path)
        return _from_arrays(arrays, spec)
    if is_factory(spec):
        return data_of(call_data_factory(spec, arguments or {}), spec)
    hint = f" Did you mean npz:{spec}?" if spec.endswith(".npz") else ""
    raise DataError(f"unknown data {spec!r}; expected {FORMS}.{hint}")


def is_factory(spec: str) -> bool:
    """Whether `load_data` would import and call what a specification names."""
    kind, colon, _ = spec.partition(":")
    return bool(colon) and kind not in READERS and kind not in TABLES


def count(inputs: Inputs) -> int:
    """Number of entries."""
    return len(next(iter(inputs.values()))) if isinstance(inputs, dict) else len(inputs)


def _from_arrays(arrays: Mapping[str, Any], spec: str) -> DataSource:
    if readers.is_without_targets(arrays):
        return _without_targets(arrays, spec)
    missing = [name for name in ARRAYS if name not in arrays]
    if missing:
        found = ", ".join(sorted(arrays)) or "nothing"
        raise DataError(f"{spec}: no {', '.join(missing)}; found {found}, expected {', '.join(ARRAYS)}.")
    return DataSource(
        **{name: arrays[name] for name in ARRAYS},
        n_classes=arrays.get("n_classes"),
        class_names=tuple(arrays.get("class_names", ())),
        name=spec,
    )


def _without_targets(arrays: Mapping[str, Any], spec: str) -> DataSource:
    """Inputs alone; where none are for testing, the last tenth is, one at least."""
    train, test = arrays["x_train"], arrays.get("x_test")
    if test is None:
        n = _entries(train)
        if n < _LEAST_WITHOUT_TEST:
            raise DataError(
                f"{spec}: x_train has {n} entries and there is no x_test; expected {_LEAST_WITHOUT_TEST} at least, the last"
                " tenth of which is for testing."
            )
        n_test = max(1, n // 10)
        train, test = _part(train, slice(None, -n_test)), _part(train, slice(-n_test, None))
    y_train, y_test = (np.zeros(_entries(x), np.int64) for x in (train, test))
    return DataSource(train, y_train, test, y_test, name=spec, labelled=False)


def _entries(inputs: Any) -> int:
    """Number of entries, of what may be no inputs at all: zero then."""
    array = next(iter(inputs.values()), None) if isinstance(inputs, Mapping) else inputs
    return len(array) if isinstance(array, np.ndarray) and array.ndim else 0


def _part(inputs: Any, rows: slice) -> Any:
    return {key: array[rows] for key, array in inputs.items()} if isinstance(inputs, Mapping) else inputs[rows]


def call_data_factory(spec: str, arguments: Mapping[str, Any]) -> Any:
    """What a factory returns; the default random generators are seeded, so that it splits its data alike at each call.

    Raises:
        DataError: as `call_factory`.
    """
    with left_alone():
        seed_all(0)
        return call_factory(spec, DataError, **arguments)


def data_of(made: Any, spec: str) -> DataSource:
    """The arrays that a factory has returned.

    Raises:
        DataError: it has returned something else.
    """
    if isinstance(made, DataSource):
        return made
    if isinstance(made, Mapping):
        return _from_arrays(made, spec)
    if isinstance(made, tuple | list) and len(made) == len(ARRAYS):
        return _from_arrays(dict(zip(ARRAYS, made, strict=True)), spec)
    raise DataError(
        f"{spec!r} returned a {type(made).__name__}, expected a DataSource, a dict or tuple of {', '.join(ARRAYS)}, or two"
        " loaders of batches, to train and to test on."
    )


def _checked_inputs(source: DataSource, name: str) -> Inputs:
    value = getattr(source, name)
    if isinstance(value, Mapping):
        if not value:
            raise DataError(f"{source.name}: {name} is an empty dict.")
        arrays: dict[str, Array | Stored] = {
            str(key): _checked_array(source, f"{name}[{key!r}]", array) for key, array in value.items()
        }
        lengths = {key: len(array) for key, array in arrays.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(f"{source.name}: the arrays of {name} differ in length: {lengths}.")
        return arrays
    array = _checked_array(source, name, value)
    if array.dtype == np.uint8 and array.ndim not in {3, 4}:
        raise DataError(
            f"{source.name}: {name} has shape {array.shape}; images in uint8 have (N, H, W) or (N, H, W, C), other "
            "inputs are float32 or int64."
        )
    if array.dtype == np.uint8 and array.ndim == 4 and array.shape[3] not in {1, 3, 4}:
        raise DataError(
            f"{source.name}: {name} has shape {array.shape}, expected 1 or 3 channels last; transpose it to (N, H, W, C)."
        )
    return array


def _checked_array(source: DataSource, name: str, value: Any) -> Any:
    """uint8 as it is, other integers as int64, floats as float32; finite, and with at least one entry."""
    if isinstance(value, Stored):
        if not len(value):
            raise DataError(f"{source.name}: {name} is empty; there is nothing to train or test on.")
        return value
    if not isinstance(value, np.ndarray):
        raise DataError(f"{source.name}: {name} is a {type(value).__name__}, expected a numpy array.")
    if value.ndim == 0 or len(value) == 0:
        raise DataError(f"{source.name}: {name} is empty (shape {value.shape}); there is nothing to train or test on.")
    if value.dtype == np.uint8:
        return value
    if np.issubdtype(value.dtype, np.integer):
        return _without_loss(source, name, value, np.int64)
    if not np.issubdtype(value.dtype, np.floating):
        raise DataError(f"{source.name}: {name} has type {value.dtype}, expected uint8, float32 or an integer type.")
    bad = int(value.size - np.isfinite(value).sum())
    if bad:
        raise DataError(f"{source.name}: {name} has {bad} of {value.size} values that are NaN or infinite.")
    return _without_loss(source, name, value, np.float32)


def _without_loss(source: DataSource, name: str, value: Array, kind: type[np.generic]) -> Array:
    """The same numbers in another type; rounding to it is meant, going beyond it is not."""
    with np.errstate(over="ignore"):
        cast: Array = value.astype(kind, copy=False)
    beyond = cast < 0 if value.dtype == np.uint64 else ~np.isfinite(cast)
    if beyond.any():
        raise DataError(
            f"{source.name}: {name} has {int(beyond.sum())} of {value.size} values that {np.dtype(kind)} does not hold; the "
            f"largest is {value.max()}."
        )
    return cast


def _checked_targets(source: DataSource, name: str) -> Array:
    array = _checked_array(source, name, getattr(source, name))
    return array.astype(np.int64) if array.dtype == np.uint8 and isinstance(array, np.ndarray) else array


def _check_alike(source: DataSource) -> None:
    """Training and test arrays differ in length only."""
    for what in ("x", "y"):
        train, test = (_signature(getattr(source, f"{what}_{part}")) for part in ("train", "test"))
        if train != test:
            raise DataError(
                f"{source.name}: {what}_train and {what}_test differ in type, or in shape beyond the first dimension: "
                f"{train} and {test}."
            )


def _signature(value: Inputs) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_signature(value[key])}" for key in sorted(value))
    return f"{value.dtype} {value.common if isinstance(value, Stored) else value.shape[1:]}"
