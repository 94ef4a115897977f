"""Batches out of arrays in memory: reproducible order, augmentation, normalisation."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from l0prune.errors import ConfigError, DataError
from l0prune.model_call import ModelCall
from l0prune.sources.augmentation import Augmentation, crop_and_flip
from l0prune.sources.datasets import Array, Inputs, count
from l0prune.sources.model_spec import LoadedModel
from l0prune.sources.preprocessing import Preprocessing
from l0prune.sources.stored import Stored

__all__ = ["ArrayBatches", "ImageBatches", "make_batches"]


class ArrayBatches:
    """Batches of arrays, as they are: features, token ids, prepared images.

    Iterating twice gives the same batches; `set_epoch` chooses others. The order, and any augmentation, depend on
    (seed, epoch) only.

    Args:
        x: An array (N, ...), or a dict of such arrays, one a keyword of the model.
        y: Targets, (N, ...).
        batch_size: Entries a batch, at least 1.
        shuffle: Draw a new order for each epoch.
        seed: Any integer.
        drop_last: Leave out a last batch that is not full.
        device: Where batches go; None leaves them on the CPU.

    Yields:
        (inputs, targets): a tensor or a dict of tensors, and a tensor.

    Raises:
        ConfigError: if `batch_size` is below 1.
        DataError: if there is no entry, or none is left after dropping the last batch.
    """

    def __init__(
        self,
        x: Inputs,
        y: Array,
        *,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        n = count(x)
        if batch_size < 1:
            raise ConfigError(f"batch size {batch_size}: expected 1 or more.")
        if n == 0:
            raise DataError("the data set is empty: there is no batch to make.")
        if n != len(y):
            raise DataError(f"there are {n} inputs and {len(y)} targets; expected the same number.")
        if drop_last and n < batch_size:
            raise DataError(f"{n} entries do not fill one batch of {batch_size}; use a batch size of at most {n}.")
        self.n, self.y = n, _held(y)
        named = x if isinstance(x, dict) else {"": x}
        self.x = {name: _held(array) for name, array in named.items()}
        self._lengths = next((array.lengths() for array in self.x.values() if isinstance(array, Stored)), None)
        self.batch_size, self.shuffle, self.seed, self.drop_last = batch_size, shuffle, seed, drop_last
        self.device = torch.device(device) if device is not None else None
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order and augmentation the next pass has."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        """One pass."""
        return self.from_batch(0)

    def from_batch(self, first: int) -> Iterator[tuple[Any, Tensor]]:
        """One pass without its first batches, which are not made."""
        for rows in self._rows(self._generator())[first:]:
            inputs = {name: self._to_device(_rows_of(array, rows)) for name, array in self.x.items()}
            yield inputs.get("", inputs), self._to_device(_rows_of(self.y, rows))

    def __len__(self) -> int:
        """Batches of one pass."""
        return self.n // self.batch_size if self.drop_last else -(-self.n // self.batch_size)

    def _generator(self) -> torch.Generator:
        """The randomness of this epoch."""
        return torch.Generator().manual_seed(((self.seed << 20) + self.epoch) % 2**63)

    def _rows(self, generator: torch.Generator) -> list[Tensor]:
        """Indices of each batch."""
        order = torch.randperm(self.n, generator=generator) if self.shuffle else torch.arange(self.n)
        order = order[: len(self) * self.batch_size]
        if self._lengths is None:
            return list(order.split(self.batch_size))
        lengths = torch.from_numpy(self._lengths)
        pools = order.split(self.batch_size * (_POOL if self.shuffle else self.n))
        alike = [pool[lengths[pool].argsort(stable=True, descending=True)] for pool in pools]
        batches = [batch for pool in alike for batch in pool.split(self.batch_size)]
        return [batches[i] for i in torch.randperm(len(batches), generator=generator)] if self.shuffle else batches

    def _to_device(self, value: Tensor) -> Tensor:
        return value if self.device is None else value.to(self.device, non_blocking=True)


_POOL = 32
"""Batches that are drawn at once and made of rows of alike lengths, so that little of them is padding."""


def _held(array: Any) -> Any:
    """An array as a tensor; what is stored stays where it is."""
    return array if isinstance(array, Stored) else torch.from_numpy(np.ascontiguousarray(array))


def _rows_of(array: Any, rows: Tensor) -> Tensor:
    return torch.from_numpy(array.read(rows.numpy())) if isinstance(array, Stored) else array[rows]


class ImageBatches(ArrayBatches):
    """Batches of uint8 images, normalised for a network; the images stay uint8 in memory.

    Args:
        x: uint8, (N, H, W) or (N, H, W, C).
        y: Targets, (N, ...).
        preprocessing: The network's input; images of another size are resized, grey ones repeated to three channels.
        augment: Random changes, or None.
        channels_last: Lay batches out with the channels last in memory.
        order: Batch size, order and device, as `ArrayBatches` takes them.

    Yields:
        (images, targets): float32 (B, channels, height, width), and the targets.

    Raises:
        DataError: if the images do not fit the network's input, or there are none.
        ConfigError: if `batch_size` is below 1.
    """

    def __init__(
        self,
        x: Array | Stored,
        y: Array,
        *,
        preprocessing: Preprocessing,
        augment: Augmentation | None = None,
        channels_last: bool = False,
        **order: Any,
    ) -> None:
        if x.dtype != np.uint8:
            raise DataError(f"images have type {x.dtype}, expected uint8.")
        super().__init__(x, y, **order)
        preprocessing.check(x.shape)
        self.preprocessing, self.augment, self.channels_last = preprocessing, augment, channels_last

    def from_batch(self, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass without its first batches, which are not made."""
        generator = self._generator()
        batches = self._rows(generator)
        pad, flip = (self.augment.pad, self.augment.flip) if self.augment else (0, False)
        corners = torch.randint(0, 2 * pad + 1, (2, self.n), generator=generator)
        flips = torch.rand(self.n, generator=generator) < 0.5 * flip
        for rows in batches[first:]:
            images = self.preprocessing.fit(_rows_of(self.x[""], rows))
            if self.augment is not None:
                images = crop_and_flip(images, corners[:, rows], flips[rows], pad=pad)
            images = self._to_device(images)
            yield self.preprocessing.normalise(images, channels_last=self.channels_last), self._to_device(self.y[rows])


def make_batches(
    loaded: LoadedModel,
    x: Inputs,
    y: Array,
    *,
    augment: Augmentation | None = None,
    channels_last: bool = False,
    pairs: bool = False,
    **order: Any,
) -> ArrayBatches:
    """The kind of batches that a model and data call for, after checking that they fit each other.

    Args:
        loaded: A model with its example inputs and preprocessing.
        x: uint8 images become ImageBatches; other arrays and dicts of arrays ArrayBatches.
        y: Targets, (N, ...).
        augment: For uint8 images only.
        channels_last: For uint8 images only.
        pairs: Each entry is a pair of inputs: arrays (N, 2, ...).
        order: Batch size, order and device, as `ArrayBatches` takes them.

    Raises:
        DataError: if names, shapes or types do not fit the model's inputs, or augmentation is asked of other data.
        ConfigError: if `batch_size` is below 1.
    """
    if isinstance(x, np.ndarray | Stored) and x.dtype == np.uint8:
        if loaded.preprocessing is None:
            raise DataError(
                f"the data holds uint8 images {x.shape}, and {loaded.spec!r} takes inputs of shape {loaded.input_shape}."
            )
        return ImageBatches(
            x, y, preprocessing=loaded.preprocessing, augment=augment, channels_last=channels_last, **order
        )
    if augment is not None:
        raise DataError("augmentation is for uint8 images; the data holds other arrays. Leave augmentation off.")
    _check_arrays(loaded, _of_pairs(x) if pairs else x)
    return ArrayBatches(x, y, **order)


def _of_pairs(x: Inputs) -> Inputs:
    """The first inputs of pairs."""
    return {name: array[:, 0] for name, array in x.items()} if isinstance(x, dict) else x[:, 0]


def _check_arrays(loaded: LoadedModel, x: Inputs) -> None:
    given = loaded.example_inputs
    expected = (
        given
        if not isinstance(given, dict)
        else {key: value for key, value in given.items() if isinstance(value, Tensor)}
    )
    if isinstance(x, dict):
        if isinstance(expected, dict) and set(x) != set(expected):
            raise DataError(f"the data holds {', '.join(x)}; {loaded.spec!r} takes {', '.join(expected)}.")
        pairs = [(name, x[name], expected[name]) for name in x] if isinstance(expected, dict) else []
    else:
        tensors = ModelCall.of(expected).tensors
        if len(tensors) > 1:
            raise DataError(f"the data holds one array, {loaded.spec!r} takes {len(tensors)} inputs.")
        pairs = [("x", x, tensors[0])]
    for name, array, tensor in pairs:
        is_float = array.dtype == np.float32
        wrong_shape = array.shape[1:] != tuple(tensor.shape[1:]) if is_float else array.ndim != tensor.ndim
        if wrong_shape or is_float != tensor.is_floating_point():
            raise DataError(
                f"{name} has shape {array.shape} and type {array.dtype}; {loaded.spec!r} takes "
                f"{tuple(tensor.shape[1:])} of {str(tensor.dtype).removeprefix('torch.')} for each entry."
            )
