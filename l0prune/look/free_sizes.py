"""Sizes of a model's inputs that an exported program leaves free: the batch, and lengths such as that of a sequence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree
from torch.utils._sympy.symbol import SymT, symbol_is_type

from l0prune.model_call import ModelCall
from l0prune.ops.node import varies

__all__ = ["FreeSizes", "at_length", "image_dimensions", "length_dimensions", "other_images", "shares_batch"]

_LONGER = (8, 4, 2)
"""Times the lengths of the example at which compact models are compared: that far a limit in their code shows."""

_LONG = 512
"""A length that is more than twice that of the example is not tried beyond this: it would take long."""

_LARGEST = 1 << 20
"""Stands for a length without an upper bound."""


def length_dimensions(call: ModelCall) -> dict[int, tuple[int, ...]]:
    """Dimensions of a call's tensors, by `id` of the tensor, that may be lengths: worth a try, no more.

    Those of integers and booleans (tokens, masks), those of three-dimensional numbers (positions by features, or the other
    way round), and those of other numbers that are as long as the tokens; the batch is none. Images keep their size.
    """
    n_tokens = _token_counts(call)
    found = {}
    for tensor in call.tensors:
        free = not _is_number(tensor) or tensor.ndim == 3
        dims = tuple(dim for dim, size in _sizes(call, tensor) if free or size in n_tokens)
        if dims:
            found[id(tensor)] = dims
    return found


def image_dimensions(call: ModelCall) -> dict[int, tuple[int, ...]]:
    """Heights, widths and depths of a call's images, by `id` of the tensor, that may be free as well."""
    return {
        id(tensor): tuple(dim for dim in range(2, tensor.ndim) if tensor.shape[dim] > 1)
        for tensor in call.tensors
        if _is_number(tensor) and tensor.ndim > 3
    }


def other_images(call: ModelCall) -> Iterator[ModelCall]:
    """The call with images of other sizes: half, narrower, and a little larger; a model may refuse them."""
    dims = image_dimensions(call)
    for scale, more in (((0.5, 0.5), 0), ((1.0, 0.75), 0), ((1.0, 1.0), 1)):

        def resized(leaf: Any, scale: tuple[float, float] = scale, more: int = more) -> Any:
            for place, dim in enumerate(dims.get(id(leaf), ())):
                size = max(2, round(leaf.shape[dim] * scale[place % 2])) + more * (1 + place)
                leaf = _resized(leaf, dim, size)
            return leaf

        if dims:
            yield ModelCall(*pytree.tree_map(resized, (call.args, call.kwargs)))


def at_length(call: ModelCall, length: int) -> ModelCall | None:
    """The call with sequences of a length: tokens and their masks, and numbers that are as long; None where there are no tokens.

    Args:
        call: Whose tokens have one length, or that of a source and a target, which both become this.
        length: At least 1.
    """
    n_tokens = _token_counts(call)
    if not n_tokens:
        return None

    def resized(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            for dim, size in list(_sizes(call, leaf)):
                if size in n_tokens:
                    leaf = _resized(leaf, dim, length)
        return leaf

    return ModelCall(*pytree.tree_map(resized, (call.args, call.kwargs)))


def _resized(tensor: Tensor, dim: int, size: int) -> Tensor:
    """The tensor cut off, or begun again at its end."""
    return tensor.index_select(dim, torch.arange(size, device=tensor.device) % tensor.shape[dim])


def shares_batch(call: ModelCall) -> bool:
    """Whether the first dimension of the first tensor is a batch: all tensors have it, but tokens and masks of them."""
    n_tokens = _token_counts(call)
    batched = {id(tensor) for tensor in call.batched}
    return bool(batched) and all(
        id(tensor) in batched or not _is_number(tensor) or (tensor.ndim > 0 and n_tokens.issuperset(tensor.shape))
        for tensor in call.tensors
    )


def _token_counts(call: ModelCall) -> set[int]:
    return {size for tensor in call.tensors if not _is_number(tensor) for _, size in _sizes(call, tensor)}


def _sizes(call: ModelCall, tensor: Tensor) -> Iterator[tuple[int, int]]:
    """Dimension and size, where that is neither one nor the batch."""
    is_batched = tensor.ndim > 0 and tensor.shape[0] == call.batch_size
    return ((dim, int(size)) for dim, size in enumerate(tensor.shape) if size > 1 and not (dim == 0 and is_batched))


def _is_number(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


@dataclass(frozen=True, eq=False)
class FreeSizes:
    """Sizes of the tensors that go into an exported program, in order.

    Attributes:
        shapes: Of every tensor, its sizes: a number where it is fixed, an expression where it is free.
        batch: Symbols of batch dimensions; none unless that of every tensor that has one is free.
        lengths: Other symbols -> smallest and largest value that the program accepts.
        example: Symbol -> its value in the example.
    """

    shapes: tuple[tuple[sympy.Expr, ...], ...]
    batch: frozenset[sympy.Symbol]
    lengths: dict[sympy.Symbol, tuple[int, int]]
    example: dict[sympy.Symbol, int]

    @classmethod
    def of(cls, program: ExportedProgram, call: ModelCall, *, with_batch: bool = True) -> FreeSizes:
        """Read off the inputs of `program`, exported with the tensors of `call`; all are lengths if there is no batch."""
        inputs = set(program.graph_signature.user_inputs)
        values = [
            node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder" and node.name in inputs
        ]
        symbolic = [value for value in values if isinstance(value, Tensor)]
        given = call.tensors
        shapes = tuple(tuple(_expression(size) for size in value.shape) for value in symbolic)
        example = {
            expression: int(size)
            for shape, tensor in zip(shapes, given, strict=True)
            for expression, size in zip(shape, tensor.shape, strict=True)
            if expression.is_symbol
        }
        everything = {symbol for shape in shapes for expression in shape for symbol in expression.free_symbols}
        rows = [
            shape[0].free_symbols
            for shape, tensor in zip(shapes, given, strict=True)
            if tensor.ndim and tensor.shape[0] == call.batch_size
        ]
        batch = frozenset().union(*rows) if with_batch and all(rows) else frozenset()
        lengths = {symbol: _range(program, symbol) for symbol in sorted(everything - batch, key=str)}
        return cls(shapes, batch, lengths, example)

    @property
    def has_batch(self) -> bool:
        """Whether other numbers of rows are accepted."""
        return bool(self.batch)

    def depends_on_batch(self, value: Any) -> bool:
        """Whether the shape of a tensor of the program grows with the batch; a number of entries that data select does."""
        symbols = {s for size in getattr(value, "shape", ()) if varies(size) for s in _expression(size).free_symbols}
        return not self.batch.isdisjoint(symbols) or any(symbol_is_type(s, SymT.UNBACKED_INT) for s in symbols)

    def scaled_lengths(self, scale: float) -> dict[sympy.Symbol, int]:
        """Every free length times `scale`, as far as the program accepts that."""
        return {
            symbol: min(max(round(self.example[symbol] * scale), low), high)
            for symbol, (low, high) in self.lengths.items()
            if symbol in self.example
        }

    def elsewhere(self, call: ModelCall) -> Iterator[ModelCall]:
        """The call with another batch size, first with other lengths too; a model may still refuse lengths."""
        if self.has_batch and call.batch_size is not None:
            call = call.with_batch(2 * call.batch_size)
        if self.lengths:
            yield self.with_lengths(call, self.scaled_lengths(0.5))
        if self.has_batch:
            yield call

    def others(self, call: ModelCall) -> Iterator[ModelCall]:
        """The call with other values of all free sizes: half with a row more, three quarters and a little more of one row."""
        given = call.batch_size or 1
        for rows, scale, more in ((given + 1, 0.5, 0), (1, 0.75, 0), (1, 1.0, 1)):
            sizes = {
                symbol: min(max(round(self.example[symbol] * scale) + more * (1 + place), low), high)
                for place, (symbol, (low, high)) in enumerate(self.lengths.items())
                if symbol in self.example
            }
            if any(size != self.example[symbol] for symbol, size in sizes.items()):
                other = self.with_lengths(call, sizes)
                yield other.with_batch(rows) if self.has_batch else other
        if self.has_batch and not self.lengths:
            yield call.with_batch(given + 1)

    def longer(self, call: ModelCall) -> Iterator[ModelCall]:
        """The call with longer lengths, the longest first, as far as the program accepts that; a model may still refuse them."""
        for scale in _LONGER:
            lengths = self.scaled_lengths(scale)
            grows = any(size > self.example[symbol] for symbol, size in lengths.items())
            if grows and (scale == min(_LONGER) or max(lengths.values()) <= _LONG):
                yield self.with_lengths(call, lengths)

    def with_lengths(self, call: ModelCall, lengths: dict[sympy.Symbol, int]) -> ModelCall:
        """The call with other lengths: tensors are cut off, or begin again at their end."""
        values = {
            symbol: lengths.get(symbol, size) for symbol, size in self.example.items() if symbol not in self.batch
        }
        shapes: Iterator[tuple[sympy.Expr, ...]] = iter(self.shapes)

        def resized(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            for dim, expression in enumerate(next(shapes)):
                if expression.free_symbols and expression.free_symbols <= values.keys():
                    leaf = _resized(leaf, dim, int(expression.subs(values)))
            return leaf

        args, kwargs = pytree.tree_map(resized, (call.args, call.kwargs))
        return ModelCall(args, kwargs)


def _expression(size: int | torch.SymInt) -> sympy.Expr:
    return sympy.Integer(int(size)) if not varies(size) else size.node.expr  # type: ignore[union-attr]


def _range(program: ExportedProgram, symbol: sympy.Symbol) -> tuple[int, int]:
    known = program.range_constraints.get(symbol)
    if known is None:
        return 2, _LARGEST
    return int(known.lower), int(known.upper) if known.upper.is_Integer else _LARGEST
