"""Batches as the training loop sees them: counted, in epochs, shared out among processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from l0prune.errors import DataError
from l0prune.model_call import plain_mappings

__all__ = [
    "Batches",
    "batch_size",
    "checked_pair",
    "count_batches",
    "count_samples",
    "place",
    "set_epoch",
    "shapes",
    "share",
    "steps",
]


class Batches(Protocol):
    """Training data: can be iterated again and again, yields `(inputs, targets)`.

    `inputs` is a tensor, a tuple of positional or a dict of keyword tensors. An optional method `set_epoch(epoch)` is
    called before each pass; order and augmentation must depend on the epoch (and a seed) only, so that a resumed run
    sees the same batches.
    """

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        """Begin a pass."""
        ...

    def __len__(self) -> int:
        """Batches in one pass."""
        ...


def count_batches(batches: Batches) -> int:
    """Batches in one pass.

    Raises:
        DataError: if there are none, or they cannot be counted.
    """
    try:
        count = len(batches)
    except TypeError as error:
        raise DataError(
            f"train_batches is a {type(batches).__name__} without a length: give a DataLoader, a list of batches or an"
            " object with __len__"
        ) from error
    if count < 1:
        raise DataError("train_batches is empty: give at least one batch (is the data set smaller than a batch?)")
    return count


def count_samples(batches: Batches) -> int:
    """Rows of one pass, taking all batches to be as large as the first.

    Raises:
        DataError: if the first batch is not a pair with rows, or there is none.
    """
    set_epoch(batches, 0)
    for batch in batches:
        return count_batches(batches) * batch_size(checked_pair(batch)[0])
    raise DataError(f"train_batches promised {len(batches)} batches and yielded none")


def steps(batches: Batches, start: int, stop: int, *, seed: int, rank: int = 0) -> Iterator[tuple[int, Any, Any]]:
    """Batches of the optimizer steps `start` to `stop` - 1, over as many passes as that takes.

    The default random generator is seeded anew at the begin of each pass, so that a pass is the same whether the run
    was interrupted before it or not.

    Args:
        batches: What is iterated.
        start: First step; a whole number of passes.
        stop: Step after the last one.
        seed: Seed of the passes.
        rank: Index of this process: the seed after the first batch differs among processes (dropout should), before
            it they agree (shuffling must).

    Yields:
        (step, inputs, targets).

    Raises:
        DataError: if a pass yields fewer batches than its length, or something that is not a pair.
    """
    per_pass = count_batches(batches)
    for epoch in range(start // per_pass, -(-stop // per_pass)):
        set_epoch(batches, epoch)
        torch.manual_seed(mixed_seed(seed, epoch))
        step, end = epoch * per_pass, min(stop, (epoch + 1) * per_pass)
        for batch in batches:
            if step == epoch * per_pass and rank:
                torch.manual_seed(mixed_seed(seed, epoch, rank))
            inputs, targets = checked_pair(batch)
            yield step, inputs, targets
            step += 1
            if step == end:
                break
        if step < end:
            raise DataError(
                f"train_batches has length {per_pass} but its pass number {epoch} ended after {step - epoch * per_pass}"
                " batches: __len__ and __iter__ must agree"
            )


def set_epoch(batches: Batches, epoch: int) -> None:
    """Tell the batches which pass comes, where they want to know."""
    setter = getattr(batches, "set_epoch", None)
    if setter is not None:
        setter(epoch)


def checked_pair(batch: Any) -> tuple[Any, Any]:
    """Inputs and targets of a batch."""
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return plain_mappings(batch[0]), batch[1]
    found = f"a sequence of {len(batch)}" if isinstance(batch, (tuple, list)) else f"a {type(batch).__name__}"
    raise DataError(f"a batch is {found}: expected a pair (inputs, targets)")


def share(inputs: Any, targets: Any, *, rank: int, n_processes: int) -> tuple[Any, Any, float]:
    """This process's part of a batch: consecutive rows, as even as possible.

    Args:
        inputs: Tensors whose first dimension is the batch are cut, everything else is kept.
        targets: Likewise.
        rank: Index of the process, in [0, n_processes).
        n_processes: Number of processes, >= 1.

    Returns:
        (inputs, targets, weight); the mean over processes of weight * (mean loss of the part) is the mean loss of the
        batch. A batch with fewer rows than processes is given to all of them whole.
    """
    n_rows = batch_size(inputs)
    if n_processes == 1 or n_rows < n_processes:
        return inputs, targets, 1.0
    first, last = n_rows * rank // n_processes, n_rows * (rank + 1) // n_processes

    def part(leaf: Any) -> Any:
        return leaf[first:last] if isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == n_rows else leaf

    weight = (last - first) * n_processes / n_rows
    return pytree.tree_map(part, inputs), pytree.tree_map(part, targets), weight


def place(value: Any, device: torch.device, *, channels_last: bool) -> Any:
    """All tensors of a batch on `device`; 4-dimensional ones in channels-last order if asked."""

    def placed(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if channels_last and leaf.dim() == 4:
            return leaf.to(device, non_blocking=True, memory_format=torch.channels_last)
        return leaf.to(device, non_blocking=True)

    return pytree.tree_map(placed, value)


def batch_size(inputs: Any) -> int:
    """Rows of the first tensor in `inputs`.

    Raises:
        DataError: if there is none.
    """
    for leaf in pytree.tree_leaves(inputs):
        if isinstance(leaf, Tensor) and leaf.dim():
            return leaf.shape[0]
    raise DataError(f"the inputs of a batch are a {type(inputs).__name__} without a tensor that has rows")


def mixed_seed(*numbers: int) -> int:
    """One seed in [0, 2^63) from several numbers; neighbouring numbers give unrelated seeds."""
    value = 0x9E3779B97F4A7C15
    for number in numbers:
        value = (value ^ (number & (2**64 - 1))) * 0xBF58476D1CE4E5B9 & (2**64 - 1)
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB & (2**64 - 1)
        value ^= value >> 31
    return value >> 1


def shapes(value: Any) -> str:
    """Shapes of all tensors in `value`, for messages."""
    leaves: Iterable[Any] = pytree.tree_leaves(value)
    return ", ".join(str(tuple(leaf.shape)) for leaf in leaves if isinstance(leaf, Tensor)) or type(value).__name__
