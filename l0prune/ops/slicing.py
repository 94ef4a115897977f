"""Parts of a tensor along a dimension: splits, slices, single indices."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from l0prune.ops.contractions import moved
from l0prune.ops.node import argument_of, concrete, op_name, varies, written_later
from l0prune.ops.operation import Op, Operation, Result
from l0prune.ops.sizes import Cut, Rewriter, Rows, SizedCall, Sizes
from l0prune.ops.tracker import Labels

__all__: list[str] = []

aten = torch.ops.aten


def _split(rewriter: Rewriter, node: Node) -> None:
    """Every part as long as what stays of it."""
    dim, gates = rewriter.along(node)
    if gates is not None:
        rewriter.replace(node, aten.split_with_sizes.default, node.args[0], _lengths(rewriter, node, dim), dim)


def _lengths(cut: Cut, node: Node, dim: int) -> list[int]:
    """How long the parts of a split are after the cut."""
    parts = cut.gates(node) or [[None] * (dim + 1)] * len(node.meta["val"])
    return [cut.count(value.shape[dim], part[dim]) for part, value in zip(parts, node.meta["val"], strict=True)]


class SplitCall(SizedCall):
    """A call that takes the sizes of the parts, the size of all but the last, or their number."""

    kind = "split"
    functions = (Tensor.split, torch.split, Tensor.split_with_sizes, torch.split_with_sizes, Tensor.chunk, torch.chunk)
    together = True

    def with_sizes(self, rows: Rows) -> SplitCall:
        """The same call with the sizes of all parts."""
        return SplitCall(Tensor.split, (self._tensor, [size for _, size in rows], self._dim), {})

    @classmethod
    def rows(cls, cut: Cut, node: Node, item: int) -> Rows:
        """As in `SizedCall`."""
        dim, _ = cut.along(node)
        varying = any(varies(value.shape[dim]) for value in node.meta["val"])
        return () if varying else tuple(enumerate(_lengths(cut, node, dim)))

    def _sizes(self) -> list[int]:
        names = ("split_size_or_sections", "split_size", "split_sizes", "chunks")
        given: Any = next((self.kwargs[name] for name in names if name in self.kwargs), None) or self.args[1]
        if not isinstance(given, int):
            return list(given)
        total = int(self._tensor.shape[self._dim])
        size = -(-total // given) if self.func in (Tensor.chunk, torch.chunk) else given
        return [min(size, total - start) for start in range(0, total, size)]

    @property
    def _dim(self) -> int:
        return self._argument(2, "dim", 0)  # type: ignore[no-any-return]


@Operation("tensor_split unsafe_split unsafe_chunk", rewrite=_split, sizes=Cut.changed, zeros=moved)
@Operation("split chunk split_with_sizes", rewrite=_split, sizes=Cut.changed, call=SplitCall, zeros=moved)
def split(op: Op) -> Result:
    """Consecutive parts along `dim`; equal parts are tied to each other, so that `chunk(2)` in the code stays right."""
    x = op.arg("self")
    labels = op.labels(x)
    dim = op.arg("dim") % len(labels)
    op.set_origin(x, [None if d == dim else d for d in range(len(labels))])
    ids = labels[dim]
    sizes = [op_part.shape[dim] for op_part in op.node.meta["val"]]
    if ids is not None and _is_free(x, dim):
        labels = _cut_anywhere(op, labels, dim)
    if labels[dim] is None:
        return [list(labels) for _ in sizes]
    ends = np.cumsum([int(size) for size in sizes])
    parts = np.split(ids, ends[:-1])  # type: ignore[arg-type]
    if op.name != "split_with_sizes" and len({len(part) for part in parts}) == 1:
        op.tracker.tie_rows(np.stack(parts, axis=1))
    return [[*labels[:dim], part, *labels[dim + 1 :]] for part in parts]


def _slice(rewriter: Rewriter, node: Node) -> None:
    """What stays of the slice: a slice again where that has equal steps, else a list of places."""
    dim, gates = rewriter.along(node)
    if gates is None:
        return
    if op_name(node.target) == "narrow":
        start = argument_of(node, "start") % len(gates)
        stop, step = start + argument_of(node, "length"), 1
    else:
        start, stop, step = (argument_of(node, name) for name in ("start", "end", "step"))
    kept = rewriter.kept[gates]
    chosen = np.arange(len(kept))[slice(start, stop, step)]
    if len(chosen) == len(kept):
        return  # all of it, however long it is
    places = (np.cumsum(kept) - 1)[chosen[kept[chosen]]]
    steps = np.unique(np.diff(places))
    if len(places) and len(steps) <= 1:
        stride = int(steps[0]) if len(steps) else 1
        rewriter.replace(node, aten.slice.Tensor, node.args[0], dim, int(places[0]), int(places[-1]) + 1, stride)
    else:
        rewriter.select(node, dim, places)


class SliceCall(SizedCall):
    """An index with slices; its sizes are their starts and stops."""

    kind = "slice"
    functions = (Tensor.__getitem__,)

    def given(self) -> dict[int, tuple[Any, ...]]:
        """Start and stop of every slice, by its place in the index."""
        return {item: bounds for item, _, _, bounds in self._slices()}

    def with_sizes(self, rows: Rows) -> SliceCall:
        """The same index with other starts and stops."""
        index = list(self._index)
        for item, start, stop in rows:
            index[item] = slice(start, stop)
        return SliceCall(self.func, (self._tensor, tuple(index)), self.kwargs)

    def results(self, result: Any) -> list[tuple[int, Sizes]]:
        """The slices that leave something out: place in the index, and dimension, size before and size after.

        The dimension is that of a graph, where the parts of an index are applied from left to right: a number drops its
        dimension, None adds one.
        """
        return [
            (item, (dim, before, after))
            for item, dim, before, bounds in self._slices()
            if (after := len(range(*bounds, self._index[item].step or 1))) != before
        ]

    @classmethod
    def of_node(cls, node: Node) -> Sizes | None:
        """The same of a node; None if it leaves everything."""
        dim, before = cls._sliced(node)
        after = concrete(node.meta["val"].shape[dim])
        return None if after == before else (dim, before, after)

    @classmethod
    def rows(cls, cut: Cut, node: Node, item: int) -> Rows:
        """Start and stop of a slice among the indices that stay; nothing for one with steps."""
        _, gates = cut.along(node)
        start, stop, step = (argument_of(node, name) for name in ("start", "end", "step"))
        if gates is None or step != 1 or isinstance(start, Node) or isinstance(stop, Node):
            return ()
        begin, end, _ = slice(start, stop).indices(cls._sliced(node)[1])
        return ((item, cut.kept.count(gates[:begin]), cut.kept.count(gates[:end])),)

    @staticmethod
    def _sliced(node: Node) -> tuple[int, int]:
        """Dimension of a slice, and its size before."""
        shape = node.args[0].meta["val"].shape  # type: ignore[union-attr]
        dim: int = argument_of(node, "dim") % len(shape)
        return dim, concrete(shape[dim])

    def _slices(self) -> Iterator[tuple[int, int, int, tuple[int, int]]]:
        """Every slice of an index: place, dimension as in a graph, size before, start and stop."""
        n_hidden = self._tensor.dim() - sum(1 for part in self._index if part is not None and part is not Ellipsis)
        source = dim = 0
        for item, part in enumerate(self._index):
            if isinstance(part, slice):
                before = int(self._tensor.shape[source])
                start, stop, _ = part.indices(before)
                yield item, dim, before, (start, stop)
            source += n_hidden if part is Ellipsis else 0 if part is None else 1
            dim += n_hidden if part is Ellipsis else 0 if isinstance(part, int) else 1

    @property
    def _index(self) -> tuple[Any, ...]:
        index = self.args[1]
        return index if isinstance(index, tuple) else (index,)


@Operation("slice", rewrite=_slice, sizes=Cut.changed, call=SliceCall, zeros=moved)
def slice_(op: Op) -> Labels:
    """`x[start:end:step]` along `dim`."""
    labels = op.labels(op.arg("self"))
    dim = op.arg("dim") % len(labels)
    op.set_origin(op.arg("self"), [None if d == dim else d for d in range(len(labels))])
    if labels[dim] is None:
        return labels
    start, end, step = op.arg("start"), op.arg("end"), op.arg("step")
    whole = start in (None, 0) and step in (None, 1) and (end is None or end == sys.maxsize)
    if whole:
        return labels
    if not all(bound is None or isinstance(bound, int) for bound in (start, end, step)) or _is_free(
        op.arg("self"), dim
    ):
        return _cut_anywhere(op, labels, dim)
    if step not in (None, 1) and written_later(op.node):
        op.tracker.pin(labels[dim], "every so many of it are written in place")
    labels[dim] = labels[dim][start:end:step]  # type: ignore[index]
    return labels


def _is_free(x: Any, dim: int) -> bool:
    """Whether a dimension may have another length than in the example, as heads times batch has."""
    return varies(x.meta["val"].shape[dim])


def _cut_anywhere(op: Op, labels: Labels, dim: int) -> Labels:
    """How much of a dimension remains is known when the model runs: as of position weights for a sequence."""
    op.tracker.pin(labels[dim], "cut at a size that varies")
    labels[dim] = None
    return labels


@Operation("narrow", rewrite=_slice, sizes=Cut.changed, zeros=moved)
def narrow(op: Op) -> Labels:
    """`length` indices from `start` along `dim`."""
    labels = op.labels(op.arg("self"))
    dim, start, length = op.arg("dim") % len(labels), op.arg("start"), op.arg("length")
    if labels[dim] is not None:
        if not (isinstance(start, int) and isinstance(length, int)) or _is_free(op.arg("self"), dim):
            return _cut_anywhere(op, labels, dim)
        start += len(labels[dim]) if start < 0 else 0  # type: ignore[arg-type]
        labels[dim] = labels[dim][start : start + length]  # type: ignore[index]
    return labels


@Operation("select", zeros=moved)
def select(op: Op) -> Labels:
    """One index of a dimension by its number."""
    labels = op.labels(op.arg("self"))
    op.tracker.pin(labels.pop(op.arg("dim") % len(labels)), "one index is selected by its number")
    return labels


@Operation("unbind", zeros=moved)
def unbind(op: Op) -> list[Labels]:
    """All indices of a dimension, one output each."""
    labels = op.labels(op.arg("self"))
    op.tracker.pin(labels.pop(op.arg("dim") % len(labels)), "unbound into separate tensors")
    return [list(labels) for _ in op.node.meta["val"]]
