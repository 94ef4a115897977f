"""Data that a user's own loaders make into batches, in place of arrays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from l0prune.errors import DataError
from l0prune.model_call import plain_mappings
from l0prune.sources.datasets import DataSource, call_data_factory, data_of, is_factory, load_data

if TYPE_CHECKING:
    from l0prune.sources.texts import TextOptions

__all__ = ["Loaders", "Placed", "is_repeatable", "load_source"]

PARTS = ("train", "test")


@dataclass(frozen=True, eq=False)
class Loaders:
    """Batches to train and to test on, as a data loader yields them: pairs of inputs and targets, or dicts with `labels`.

    Attributes:
        train: Can be iterated again and again.
        test: Likewise.
        name: The specification they came from.
        sample: The first batch of `train` as arrays; None where it is nothing that arrays hold.
        labelled: Whether batches have targets.
        n_parts: How many things a batch is a sequence of; 0 if it is none.
    """

    train: Iterable[Any]
    test: Iterable[Any]
    name: str
    sample: DataSource | None
    labelled: bool
    n_parts: int = 0

    @classmethod
    def of(cls, train: Iterable[Any], test: Iterable[Any], name: str) -> Loaders:
        """Two loaders, after a look at the first batch of each.

        Raises:
            DataError: one of them yields nothing, or can be iterated once only.
        """
        firsts = []
        for part, batches in zip(PARTS, (train, test), strict=True):
            if not is_repeatable(batches):
                raise DataError(
                    f"{name}: the {part} batches are a {type(batches).__name__}, which can be iterated once only: return a"
                    " DataLoader, a list, or an object whose __iter__ begins anew"
                )
            first = next(iter(batches), None)
            if first is None:
                raise DataError(f"{name}: the {part} batches are empty; is the data set smaller than a batch?")
            firsts.append(first)
        inputs, targets = _split(firsts[0])
        n_parts = len(firsts[0]) if isinstance(firsts[0], tuple | list) else 0
        return cls(train, test, name, _sample(inputs, targets, name), labelled=targets is not None, n_parts=n_parts)


class Placed:
    """Batches on a device.

    Args:
        batches: To iterate over.
        device: Where tensors go; None leaves them.
    """

    def __init__(self, batches: Iterable[Any], device: torch.device | None) -> None:
        self._batches, self._device = batches, device

    def __iter__(self) -> Iterator[Any]:
        """One pass."""
        for batch in self._batches:
            yield pytree.tree_map_only(Tensor, self._place, plain_mappings(batch))

    def _place(self, leaf: Tensor) -> Tensor:
        return leaf if self._device is None else leaf.to(self._device, non_blocking=True)


def load_source(
    spec: str,
    *,
    image_size: tuple[int, int] | None = None,
    texts: TextOptions | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> DataSource | Loaders:
    """As `load_data`; a factory may also return two loaders, as a pair or as a dict with `train` and `test`."""
    if not is_factory(spec):
        return load_data(spec, image_size=image_size, texts=texts, arguments=arguments)
    made = call_data_factory(spec, arguments or {})
    if isinstance(made, Mapping) and set(made) == set(PARTS):
        return Loaders.of(made["train"], made["test"], spec)
    is_pair = isinstance(made, tuple | list) and len(made) == len(PARTS)
    if is_pair and all(isinstance(part, Iterable) for part in made):
        return Loaders.of(made[0], made[1], spec)
    return data_of(made, spec)


def is_repeatable(batches: Any) -> bool:
    """Whether a second pass can be made: an iterator is its own."""
    return isinstance(batches, Iterable) and not isinstance(batches, Iterator)


def _split(batch: Any) -> tuple[Any, Any]:
    """Inputs and targets of a batch; None where it has no targets."""
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return batch[0], batch[1]
    if isinstance(batch, Mapping):
        inputs = dict(plain_mappings(batch))
        name = next((name for name in ("labels", "label") if name in inputs), None)
        return inputs, None if name is None else inputs.pop(name)
    return batch, None


def _sample(inputs: Any, targets: Any, name: str) -> DataSource | None:
    """A batch as arrays, for training and testing alike; None where it is nothing that they hold."""
    several = isinstance(inputs, tuple | list | Mapping)
    values = [inputs] if not several else list(inputs.values()) if isinstance(inputs, Mapping) else list(inputs)
    if not values or not all(isinstance(value, Tensor) and value.dim() for value in (*values, targets)):
        return None
    names = list(inputs) if isinstance(inputs, Mapping) else [f"input_{number}" for number in range(len(values))]
    arrays = {name: value.detach().cpu().numpy() for name, value in zip(names, values, strict=True)}
    x: Any = arrays if several else arrays["input_0"]
    y = targets.detach().cpu().numpy()
    try:
        return DataSource(x, y, x, y, name=name)
    except DataError:
        return None
