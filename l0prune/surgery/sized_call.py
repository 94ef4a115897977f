"""A call of a function that takes sizes, as a module's code makes it: which sizes it is given, and the same with others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["KIND_OF", "Rows", "SizedCall"]

Rows = tuple[tuple[int, ...], ...]
"""Sizes of a call, as in `CallChange.sizes`."""

KIND_OF: dict[Callable[..., Any], str] = {
    Tensor.view: "view",
    Tensor.reshape: "view",
    torch.reshape: "view",
    Tensor.expand: "expand",
    Tensor.broadcast_to: "expand",
    torch.broadcast_to: "expand",
    Tensor.unflatten: "unflatten",
    torch.unflatten: "unflatten",
    Tensor.split: "split",
    torch.split: "split",
    Tensor.split_with_sizes: "split",
    torch.split_with_sizes: "split",
    Tensor.chunk: "split",
    torch.chunk: "split",
    Tensor.__getitem__: "slice",
    F.conv1d: "groups",
    F.conv2d: "groups",
    F.conv3d: "groups",
}
"""Functions that take sizes, and the name of their kind in a plan."""


@dataclass(frozen=True)
class SizedCall:
    """A call of one of the functions in `KIND_OF`."""

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def kind(self) -> str:
        """Name of its kind in a plan."""
        return KIND_OF[self.func]

    def make(self) -> Any:
        """Its result."""
        return self.func(*self.args, **self.kwargs)

    def given(self) -> dict[int, tuple[Any, ...]]:
        """Its sizes by place, in the form of the rows of a plan; a size that is to be inferred is absent."""
        if self.kind == "slice":
            return {item: bounds for item, _, _, bounds in self._slices()}
        if self.kind == "groups":
            return {0: (self._argument(6, "groups", 1),)}
        sizes = self._parts() if self.kind == "split" else self._sizes()
        return {place: (size,) for place, size in enumerate(sizes) if not (isinstance(size, int) and size == -1)}

    def with_sizes(self, rows: Rows) -> SizedCall:
        """The same call with other sizes; one that is to be inferred still is."""
        if self.kind == "groups":
            kept = self.args[:6]
            return replace(self, args=kept, kwargs={**self.kwargs, "groups": rows[0][1]})
        if self.kind == "split":
            return SizedCall(Tensor.split, (self._tensor, [size for _, size in rows], self._dim), {})
        if self.kind == "slice":
            index = list(self._index)
            for item, start, stop in rows:
                index[item] = slice(start, stop)
            return replace(self, args=(self._tensor, tuple(index)))
        sizes, given = self._sizes(), self.given()
        for place, size in rows:
            if place in given:
                sizes[place] = size
        where = (self._argument(1, "dim", None),) if self.kind == "unflatten" else ()
        return SizedCall(self.func, (self._tensor, *where, sizes), {})

    def cutting_slices(self) -> list[tuple[int, tuple[int, int, int]]]:
        """The slices of an index that leave something out: place in the index, and dimension, size before and size after.

        The dimension is that of a graph, where the parts of an index are applied from left to right: a number drops its
        dimension, None adds one.
        """
        return [
            (item, (dim, before, after))
            for item, dim, before, bounds in self._slices()
            if (after := len(range(*bounds, self._index[item].step or 1))) != before
        ]

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
    def _tensor(self) -> Tensor:
        return self._argument(0, "input", None)  # type: ignore[no-any-return]

    @property
    def _dim(self) -> int:
        return self._argument(2, "dim", 0)  # type: ignore[no-any-return]

    @property
    def _index(self) -> tuple[Any, ...]:
        index = self.args[1]
        return index if isinstance(index, tuple) else (index,)

    def _argument(self, position: int, name: str, default: Any) -> Any:
        return self.args[position] if position < len(self.args) else self.kwargs.get(name, default)

    def _sizes(self) -> list[Any]:
        """The sizes of a view, which are given one by one or as one sequence."""
        given: Any = self.args[2 if self.kind == "unflatten" else 1 :]
        given = given or (next((self.kwargs[name] for name in ("shape", "size", "sizes") if name in self.kwargs), ()),)
        return list(given[0]) if isinstance(given[0], (tuple, list)) else list(given)

    def _parts(self) -> list[int]:
        """The sizes of the parts of a split, given as a list, as the size of all but the last, or as their number."""
        names = ("split_size_or_sections", "split_size", "split_sizes", "chunks")
        given: Any = next((self.kwargs[name] for name in names if name in self.kwargs), None) or self.args[1]
        if not isinstance(given, int):
            return list(given)
        total = int(self._tensor.shape[self._dim])
        size = -(-total // given) if self.func in (Tensor.chunk, torch.chunk) else given
        return [min(size, total - start) for start in range(0, total, size)]
