"""Batches as the training loop sees them: counted, in epochs, shared out among processes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from l0prune.errors import DataError
from l0prune.randomness import Randomness, seed_all
from l0prune.tasks.task import Task

__all__ = [
    "Batches",
    "FirstBatches",
    "begin_pass",
    "count_batches",
    "count_samples",
    "first_rows",
    "first_samples",
    "rows",
    "set_epoch",
    "shapes",
    "share",
    "steps",
]


class Batches(Protocol):
    """Training data: can be iterated repeatedly, and yields batches that the task splits into inputs and targets.

    A batch is `(inputs, targets)`, or a dict with `labels`; inputs are a tensor, a tuple of positional tensors or a dict of
    keyword tensors. Before each pass an optional method `set_epoch(epoch)` is called, also of a loader's sampler and data set,
    and the default generators of torch, Python and numpy, and a loader's own, are seeded anew: order and augmentation must follow
    from these alone, so that a resumed run sees the same batches. Within a pass, an optional method `from_batch(n)` returns it
    without its first `n` batches; without one they are made and thrown away.
    """

    def __iter__(self) -> Iterator[Any]:
        """Begin a pass."""
        ...

    def __len__(self) -> int:
        """Batches in one pass."""
        ...


class FirstBatches:
    """The first batches of each pass.

    Args:
        source: Where they come from.
        length: How many are taken.
    """

    def __init__(self, source: Iterable[Any], length: int) -> None:
        self.source, self.length = source, length

    def __iter__(self) -> Iterator[Any]:
        """Begin a pass."""
        return self.from_batch(0)

    def from_batch(self, first: int) -> Iterator[Any]:
        """A pass without its first batches."""
        return itertools.islice(_from_batch(self.source, first), self.length - first)

    def __len__(self) -> int:
        """Batches in one pass."""
        return self.length


def count_batches(batches: Batches) -> int:
    """Batches in one pass.

    Raises:
        DataError: if there are none.
    """
    count = len(batches)
    if count < 1:
        raise DataError("train_batches is empty: give at least one batch (is the data set smaller than a batch?)")
    return count


def count_samples(batches: Batches, task: Task) -> int:
    """Rows of one pass, taking all batches to be as large as the first.

    Raises:
        DataError: if the first batch is not one of the task, or there is none.
    """
    return count_batches(batches) * task.n_rows(*_first(batches, task))


def first_rows(batches: Batches, task: Task, n_rows: int = 2) -> tuple[Any, Any]:
    """Inputs and targets of the first rows of the first batch.

    Raises:
        DataError: as `count_samples`.
    """
    inputs, targets = _first(batches, task)
    return rows(inputs, targets, task, 0, n_rows)


def _first(batches: Batches, task: Task) -> tuple[Any, Any]:
    set_epoch(batches, 0)
    for batch in batches:
        return task.split(batch)
    raise DataError(f"train_batches promised {len(batches)} batches and yielded none")


def steps(
    batches: Batches, start: int, stop: int, *, seed: int, rank: int = 0, randomness: Randomness | None = None
) -> Iterator[tuple[int, Any]]:
    """Batches of the optimizer steps `start` to `stop` - 1, over as many passes as that takes.

    The default random generators are seeded anew at the begin of each pass, so that a pass is the same whether the run
    was interrupted before it or not.

    Args:
        batches: What is iterated.
        start: First step.
        stop: Step after the last one.
        seed: Seed of the passes.
        rank: Index of this process: the seed after the first batch differs among processes (dropout should), before
            it they agree (shuffling must).
        randomness: Where the generators stood before `start`, where that lies within a pass.

    Yields:
        (step, batch).

    Raises:
        DataError: if a pass yields fewer batches than its length.
    """
    per_pass = count_batches(batches)
    for epoch in range(start // per_pass, -(-stop // per_pass)):
        begin_pass(batches, epoch, seed=seed)
        step, end = max(start, epoch * per_pass), min(stop, (epoch + 1) * per_pass)
        source = _from_batch(batches, step - epoch * per_pass)
        if step > epoch * per_pass and randomness is not None:
            randomness.restore()
        for batch in source:
            if step == epoch * per_pass and rank:
                torch.manual_seed(mixed_seed(seed, epoch, rank))
            yield step, batch
            step += 1
            if step == end:
                break
        if step < end:
            raise DataError(
                f"train_batches has length {per_pass} but its pass number {epoch} ended after {step - epoch * per_pass}"
                " batches: __len__ and __iter__ must agree"
            )


def begin_pass(batches: Iterable[Any], epoch: int, *, seed: int) -> None:
    """Let everything random in a pass follow from its number and the seed of the run."""
    set_epoch(batches, epoch)
    number = mixed_seed(seed, epoch)
    for part in _parts(batches):
        generator = getattr(part, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(number)
    seed_all(number)


def set_epoch(batches: Iterable[Any], epoch: int) -> None:
    """Tell the batches, and the sampler and data set of a loader, which pass comes, where they want to know."""
    for part in _parts(batches):
        setter = getattr(part, "set_epoch", None)
        if callable(setter):
            setter(epoch)


def _parts(batches: Iterable[Any]) -> list[Any]:
    """The batches and, of a loader, what it draws from."""
    if isinstance(batches, FirstBatches):
        return _parts(batches.source)
    batch_sampler = getattr(batches, "batch_sampler", None)
    samplers = (getattr(batches, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
    found = [part for part in (batches, *samplers, getattr(batches, "dataset", None)) if part is not None]
    return list({id(part): part for part in found}.values())


def _from_batch(batches: Iterable[Any], first: int) -> Iterator[Any]:
    """A pass without its first batches."""
    skip = getattr(batches, "from_batch", None)
    if first and skip is not None:
        return iter(skip(first))
    source = iter(batches)
    for _ in itertools.islice(source, first):
        pass
    return source


def share(inputs: Any, targets: Any, task: Task, *, rank: int, n_processes: int) -> tuple[Any, Any, float]:
    """This process's part of a batch: consecutive rows, as even as possible.

    Args:
        inputs: Tensors whose first dimension is the batch, and lists of its length, are cut; everything else is kept.
        targets: Likewise.
        task: Says what a part counts.
        rank: Index of the process, in [0, n_processes).
        n_processes: Number of processes, >= 1.

    Returns:
        (inputs, targets, weight); the mean over processes of weight * (mean loss of the part) is the mean loss of the
        batch. A batch that leaves a process nothing that counts is given to all of them whole.
    """
    n_rows = 0 if n_processes == 1 else task.n_rows(inputs, targets)
    if n_rows < n_processes:
        return inputs, targets, 1.0
    bounds = [n_rows * number // n_processes for number in range(n_processes + 1)]
    parts = [rows(inputs, targets, task, first, last) for first, last in itertools.pairwise(bounds)]
    weights = [task.weight(*part) for part in parts]
    if min(weights) <= 0:
        return inputs, targets, 1.0
    return *parts[rank], weights[rank] * n_processes / sum(weights)


def first_samples(examples: Iterable[tuple[Any, Any]], task: Task, n_samples: int) -> Iterator[tuple[Any, Any]]:
    """Batches of (inputs, targets) until they hold a number of entries; the last one is cut to that."""
    for inputs, targets in examples:
        n_rows = task.n_rows(inputs, targets)
        yield rows(inputs, targets, task, 0, n_samples) if n_rows > n_samples else (inputs, targets)
        n_samples -= n_rows
        if n_samples <= 0:
            return


def rows(inputs: Any, targets: Any, task: Task, first: int, last: int) -> tuple[Any, Any]:
    """Some rows of a batch."""
    n_rows = task.n_rows(inputs, targets)
    inputs = tuple(inputs) if isinstance(inputs, list) else inputs  # positional arguments

    def is_batched(value: Any) -> bool:
        return isinstance(value, list) and len(value) == n_rows and not isinstance(value[0], (int, float, str))

    def part(leaf: Any) -> Any:
        is_tensor = isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == n_rows
        return leaf[first:last] if is_tensor or is_batched(leaf) else leaf

    return tuple(pytree.tree_map(part, value, is_leaf=is_batched) for value in (inputs, targets))  # type: ignore[return-value]


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
