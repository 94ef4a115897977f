"""Which sizes of its inputs an ONNX file leaves free: those that torch.export does not fix, and that torch itself takes.

A file holds no conditions on its sizes. So a size is free only if the file then computes what torch computes at every size
that is tried and that torch takes, also at those where the code goes another way than with the example.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.fx import GraphModule

from l0prune.look.free_sizes import FreeSizes, length_dimensions
from l0prune.model_call import ModelCall, output_tensors
from l0prune.ops.node import varies

__all__ = [
    "SIZE_TOLERANCE",
    "Freedom",
    "Trial",
    "beyond_bounds",
    "freedoms",
    "goes_one_way",
    "outputs_or_none",
    "renamed",
    "size_names",
    "taken_sizes",
    "trials",
    "without_refused",
]

SIZE_TOLERANCE = 1e-3
"""Largest relative difference at other sizes: a size that is fixed in the file shows in nothing but the numbers."""

BATCH = "batch"
_LENGTH = "length"
_SIDES = ("depth", "height", "width")
_TRIED_BATCHES = (1, 3)
_CHECKED_BATCHES = (5, 2, 1)
_STRIDE = 32  # what the sizes of most networks that want multiples want multiples of
_MOST, _MOST_OF_IMAGE = 40, 4  # times the example's: bounds of the code beyond that, as of a long table, are not tried


@dataclass(frozen=True)
class Freedom:
    """What is to be free.

    Attributes:
        batch: The first dimension of every tensor that has the batch.
        dims: Other dimensions: number of the tensor among those of the call, and dimension.
    """

    batch: bool = False
    dims: frozenset[tuple[int, int]] = frozenset()

    def shapes(self, model: nn.Module, call: ModelCall) -> Any:
        """As torch.export wants it; None where nothing is free."""
        collection, batch = ShapesCollection(), Dim(BATCH)
        batched = {id(tensor) for tensor in call.batched} if self.batch else set()
        for number, tensor in enumerate(call.tensors):
            own: dict[int, Any] = {dim: Dim.AUTO for at, dim in self.dims if at == number}
            if id(tensor) in batched:
                own[0] = batch
            if own:
                collection[tensor] = own
        return collection.dynamic_shapes(model, call.args, call.kwargs) if self.batch or self.dims else None

    def found_in(self, free: FreeSizes) -> Freedom:
        """What of it a program leaves free."""
        dims = frozenset((number, dim) for number, dim in self.dims if not free.shapes[number][dim].is_Integer)
        return Freedom(free.has_batch, dims)


def freedoms(model: nn.Module, call: ModelCall, *, images: bool) -> Iterator[Freedom]:
    """What may be free, the most first: batch, lengths, heights and widths.

    Where torch does not take other batches, as for the nodes of a graph whose edges name them, the first dimensions are sizes
    like others. Sizes that an exported graph has as numbers stay fixed.

    Args:
        model: In evaluation mode.
        call: Inputs it takes.
        images: Try heights and widths.
    """
    fixed = _fixed_in_graph(model, call)
    numbers = {id(tensor): number for number, tensor in enumerate(call.tensors)}
    rows = {(numbers[id(tensor)], 0) for tensor in call.batched}
    has_batch = rows.isdisjoint(fixed) and all(
        outputs_or_none(model, call.with_batch(size)) is not None for size in _TRIED_BATCHES
    )
    lengths = {(numbers[key], dim) for key, dims in length_dimensions(call).items() for dim in dims}
    sides = _sides(call) if images else set()
    most = lengths | sides if has_batch else lengths | sides | rows
    for dims in (most, lengths, set()):
        if has_batch or dims - fixed:
            yield Freedom(has_batch, frozenset(dims - fixed))


def _sides(call: ModelCall) -> set[tuple[int, int]]:
    """Dimensions of images and videos but the batch; what a network has weights for, it fixes itself."""
    return {
        (number, dim)
        for number, tensor in enumerate(call.tensors)
        if tensor.ndim > 3 and (tensor.is_floating_point() or tensor.is_complex())
        for dim in range(1, tensor.ndim)
        if tensor.shape[dim] > 1
    }


def outputs_or_none(model: nn.Module, call: ModelCall) -> list[Tensor] | None:
    """What torch computes; None where it refuses."""
    try:
        return output_tensors(call(model))
    except Exception:  # noqa: BLE001 - a model may refuse sizes in any way
        return None


@dataclass(frozen=True)
class Trial:
    """Sizes at which a file is compared with torch.

    Attributes:
        batch: Rows; None for those of the example.
        sizes: The free sizes that differ from the example's.
        may_refuse: The file need not run there; what it computes has to be right.
    """

    batch: int | None
    sizes: dict[sympy.Symbol, int]
    may_refuse: bool = False

    def call(self, example: ModelCall, free: FreeSizes) -> ModelCall:
        """The example at these sizes."""
        return free.with_lengths(example if self.batch is None else example.with_batch(self.batch), self.sizes)


def taken_sizes(model: nn.Module, call: ModelCall, free: FreeSizes) -> dict[sympy.Symbol, int]:
    """For every free size, another one that torch takes while the rest is as in the example; sizes without one are missing."""
    one = call.with_batch(1) if free.has_batch else call
    found = {}
    for symbol, (low, high) in free.lengths.items():
        example = free.example.get(symbol)
        if example is None:
            continue
        for size in _others(example, low, high):
            if outputs_or_none(model, free.with_lengths(one, {symbol: size})) is not None:
                found[symbol] = size
                break
    return found


def without_refused(freedom: Freedom, free: FreeSizes, taken: dict[sympy.Symbol, int]) -> Freedom:
    """The same without the dimensions whose size torch is not seen to take another value of."""
    dims = {
        (number, dim)
        for number, dim in freedom.dims
        if free.shapes[number][dim].free_symbols <= taken.keys() | free.batch
    }
    return Freedom(freedom.batch, frozenset(dims))


def trials(free: FreeSizes, taken: dict[sympy.Symbol, int]) -> Iterator[Trial]:
    """The example; all sizes together in several proportions, with other batches; each size alone; beyond bounds of the code."""
    one = 1 if free.has_batch else None
    yield Trial(one, {})
    batches = _CHECKED_BATCHES if free.has_batch else (None,) * len(_CHECKED_BATCHES)
    sizes = [_proportions(free, symbol) for symbol in taken]
    for rows, together in zip(batches, zip(*sizes, strict=True) if sizes else [()] * len(batches), strict=True):
        if free.has_batch or taken:
            yield Trial(rows, dict(zip(taken, together, strict=True)))
    yield from (Trial(one, {symbol: size}) for symbol, size in taken.items())
    yield from beyond_bounds(free, taken)


def goes_one_way(
    program: ExportedProgram, model: nn.Module, call: ModelCall, free: FreeSizes, taken: dict[sympy.Symbol, int]
) -> bool:
    """Whether a program computes what the model does at a few sizes where code with conditions on its sizes goes another way.

    It costs little beside a translation that would fail for it.
    """
    one = 1 if free.has_batch else None
    odd = Trial(one, {symbol: _proportions(free, symbol)[1] for symbol in taken})
    module = program.module(check_guards=False)
    for trial in [odd, *beyond_bounds(free, taken)] if taken else ():
        at = trial.call(call, free)
        expected = outputs_or_none(model, at)
        found = expected and outputs_or_none(module, at)
        if expected and not (_are_close(found, expected) if found else trial.may_refuse):
            return False
    return True


def _are_close(found: list[Tensor], expected: list[Tensor]) -> bool:
    return len(found) == len(expected) and all(
        a.shape == b.shape and torch.allclose(a, b, rtol=SIZE_TOLERANCE, atol=SIZE_TOLERANCE, equal_nan=True)
        for a, b in zip(found, expected, strict=True)
    )


def beyond_bounds(free: FreeSizes, taken: dict[sympy.Symbol, int]) -> Iterator[Trial]:
    """One less than the code's least size, and one more than its largest: what a file does there is no longer what it does."""
    one = 1 if free.has_batch else None
    for symbol in taken:
        low, high = free.lengths[symbol]
        most = free.example[symbol] * (_MOST_OF_IMAGE if _side(symbol, free) in _SIDES else _MOST)
        beyond = [low - 1] * (low > _LEAST) + [high + 1] * (high < most)
        yield from (Trial(one, {symbol: size}, may_refuse=True) for size in beyond)


def size_names(free: FreeSizes) -> dict[str, str]:
    """A name for every free size: batch; depth, height and width of images and videos; length, length_2 ..."""
    names = {str(symbol): BATCH for symbol in free.batch}
    used: set[str] = set()
    for symbol in free.lengths:
        base = _side(symbol, free)
        number, name = 2, base
        while name in used:
            name, number = f"{base}_{number}", number + 1
        used.add(name)
        names[str(symbol)] = name
    return names


def renamed(size: Any, names: dict[str, str]) -> Any:
    """A size of a value in a file with the names that it is made of; a number that is written as a name as a number."""
    name = getattr(size, "value", None)
    if not isinstance(name, str):
        return size
    return int(name) if name.isdigit() else re.sub(r"\b\w+\b", lambda match: names.get(match[0], match[0]), name)


_LEAST = 2
"""torch.export gives every free size this as its least value."""


def _others(example: int, low: int, high: int) -> list[int]:
    """Sizes to try beside that of the example."""
    wanted = (example // 2, example + example // 2, example - 1, example + _STRIDE, 2 * example)
    return [size for size in dict.fromkeys(wanted) if max(low, 1) <= size <= high and size != example]


def _proportions(free: FreeSizes, symbol: sympy.Symbol) -> tuple[int, int, int]:
    """Half, one less, and half as much again."""
    low, high = free.lengths[symbol]
    example = free.example[symbol]
    half, less, more = (min(max(size, low), high) for size in (example // 2, example - 1, example + example // 2))
    return half, less, more


def _side(symbol: sympy.Symbol, free: FreeSizes) -> str:
    for shape in free.shapes:
        if symbol not in shape:
            continue
        dims = [dim for dim, size in enumerate(shape) if dim and not size.is_Integer]
        at = shape.index(symbol)
        if len(shape) > 3 and at in dims:
            if len(dims) == 1:
                return {1: "width", 2: "height"}.get(len(shape) - at, _LENGTH)
            return _SIDES[-len(dims) :][dims.index(at)] if len(dims) <= len(_SIDES) else _LENGTH
        return _LENGTH
    return _LENGTH


def _fixed_in_graph(model: nn.Module, call: ModelCall) -> set[tuple[int, int]]:
    """Sizes that the graph of a model has as numbers: it would not notice another one, and compute something else."""
    if not isinstance(model, GraphModule):
        return set()
    values = [node.meta.get("val") for node in model.graph.nodes if node.op == "placeholder"]
    known = [value for value in values if isinstance(value, Tensor)]
    if len(known) != len(call.tensors):
        return set()
    return {
        (number, dim)
        for number, value in enumerate(known)
        for dim, size in enumerate(value.shape)
        if not (isinstance(size, torch.SymInt) and varies(size))
    }
