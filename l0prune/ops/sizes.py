"""The sizes of calls after a cut: what stays along the dimensions of a node, new arguments for it, and calls in code."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import Any, ClassVar, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from l0prune.kept import DimensionGates, Kept
from l0prune.ops.node import argument_of, concrete, node_shape, set_argument, varies

__all__ = ["Cut", "Pairs", "Rewriter", "Rows", "SizedCall", "Sizes", "resized"]

Pairs: TypeAlias = list[tuple[int, int]]
"""Numbers, each before the cut and after it."""
Rows: TypeAlias = tuple[tuple[int, ...], ...]
"""Sizes of a call, as in `CallChange.sizes`."""
Sizes: TypeAlias = tuple[Any, ...]
"""What a call and its node in the dense graph have in common: the sizes that come out."""

_SizedCall = TypeVar("_SizedCall", bound="SizedCall")


class Cut:
    """What stays of every dimension in a graph.

    Args:
        nodes: Name of a node -> gates of each dimension of its output (a list for several outputs).
        kept: The units that stay.
    """

    def __init__(self, nodes: Mapping[str, list[Any]], kept: Kept) -> None:
        self._nodes = nodes
        self.kept = kept

    def gates(self, node: Any) -> list[Any]:
        """Gates of each dimension of a node's output; of several outputs, those of each."""
        return self._nodes.get(node.name, []) if isinstance(node, Node) else []

    def along(self, node: Node) -> tuple[int, DimensionGates]:
        """The dimension of its first operand that a call works along, and its gates."""
        source = self.gates(node.args[0])
        dim = argument_of(node, "dim") % (len(source) or len(node_shape(node.args[0])) or 1)
        return dim, source[dim] if source else None

    def count(self, size: int | torch.SymInt, gates: DimensionGates) -> int:
        """How many indices of a dimension of some size stay."""
        return concrete(size) if gates is None else self.kept.count(gates)

    def shapes(self, node: Node) -> list[Pairs]:
        """(dense, compact) size of every dimension of every output; of one that grows with the batch, per row of it."""
        gates, value = self.gates(node), node.meta["val"]
        several = bool(gates) and isinstance(gates[0], (list, tuple))
        outputs = zip(gates, value, strict=True) if several else ((gates, value),)
        return [
            [
                self._per_row(size, g) if varies(size) else (concrete(size), self.count(size, g))
                for g, size in zip(part, tensor.shape, strict=False)
            ]
            for part, tensor in outputs
            if tensor is not None  # some operations leave outputs out
        ]

    def changed(self, node: Node) -> Pairs:
        """The sizes of the outputs that are others after the cut."""
        return [(dense, compact) for shape in self.shapes(node) for dense, compact in shape if dense != compact]

    def _per_row(self, size: torch.SymInt, gates: DimensionGates) -> tuple[int, int]:
        """What a size is a multiple of, such as the heads beside a batch; (-1, -1), which no attribute holds, without any."""
        factor = int(size.node.expr.as_coeff_Mul()[0])
        if gates is None or factor == 1:
            return -1, -1
        stays = factor * self.kept.count(gates)
        return (factor, stays // len(gates)) if stays % len(gates) == 0 else (-1, -1)


class Rewriter(Cut):
    """Brings calls in the graph of a compact model up to date.

    Args:
        nodes: As in `Cut`.
        tensors: Name of a tensor that the graph holds -> gates of each of its dimensions.
        kept: The units that stay.
        graph: The module whose graph is rewritten.
    """

    def __init__(
        self,
        nodes: Mapping[str, list[Any]],
        tensors: Callable[[str], list[DimensionGates]],
        kept: Kept,
        graph: GraphModule,
    ) -> None:
        super().__init__(nodes, kept)
        self.graph = graph
        self._tensors = tensors
        self._n_selections = 0
        self._scaled: dict[tuple[Node, Fraction], Node] = {}

    def gates(self, node: Any) -> list[Any]:
        """Also those of a tensor that the graph holds."""
        is_held = isinstance(node, Node) and node.op == "get_attr"
        return self._tensors(str(node.target)) if is_held else super().gates(node)

    def sizes(self, sizes: Any, gates: list[DimensionGates]) -> list[Any]:
        """A shape with the counts of what stays in its gated dimensions; an inferred size stays inferred."""
        return [size if g is None else self._size(size, g) for size, g in zip(sizes, gates, strict=True)]

    def _size(self, size: Any, gates: npt.NDArray[np.int64]) -> Any:
        """The new size of a gated dimension. One that grows with an input, such as heads times batch, keeps its proportion."""
        if not isinstance(size, Node):
            return size if size == -1 else self.kept.count(gates)
        if any(self.gates(source)[dim] is not None for source, dim in _measured(size) if self.gates(source)):
            return size  # computed from a dimension that is cut already
        share = Fraction(self.kept.count(gates), len(gates))
        if (size, share) not in self._scaled:
            with self.graph.graph.inserting_after(size):
                product = self.graph.graph.call_function(operator.mul, (size, share.numerator))
            with self.graph.graph.inserting_after(product):
                self._scaled[size, share] = self.graph.graph.call_function(
                    operator.floordiv, (product, share.denominator)
                )
        return self._scaled[size, share]

    def replace(self, node: Node, target: Callable[..., Any], *args: Any) -> None:
        """Turn a node into another call."""
        node.target, node.args, node.kwargs = target, args, {}

    def select(self, node: Node, dim: int, places: npt.NDArray[np.int64]) -> None:
        """Turn a node into one that takes given places of its first operand."""
        name = f"_kept_indices_{self._n_selections}"
        self._n_selections += 1
        self.graph.register_buffer(name, torch.from_numpy(places.copy()), persistent=False)
        with self.graph.graph.inserting_before(node):
            indices = self.graph.graph.get_attr(name)
        self.replace(node, torch.ops.aten.index_select.default, node.args[0], dim, indices)


def resized(name: str) -> Callable[[Rewriter, Node], None]:
    """A rewrite that brings the shape of the result up to date, which is the argument `name`."""

    def rewrite(rewriter: Rewriter, node: Node) -> None:
        gates = rewriter.gates(node)
        if any(g is not None for g in gates):
            set_argument(node, name, rewriter.sizes(argument_of(node, name), gates))

    return rewrite


def _measured(size: Node) -> Iterator[tuple[Node, int]]:
    """The tensor dimensions that a symbolic size is computed from."""
    if size.target is torch.ops.aten.sym_size.int:
        yield size.args[0], size.args[1]  # type: ignore[misc]
        return
    for source in size.all_input_nodes:
        yield from _measured(source)


class SizedCall:
    """A call in a module's code of a function that takes sizes; here, those of its result, one by one or as one sequence.

    Attributes:
        kind: Name of its kind in a plan.
        functions: Functions of this kind.
        together: Whether the sizes that it is given have to be given all together.
    """

    kind: ClassVar[str]
    functions: ClassVar[tuple[Callable[..., Any], ...]]
    together: ClassVar[bool] = False

    def __init__(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.func, self.args, self.kwargs = func, args, kwargs

    def make(self) -> Any:
        """Its result."""
        return self.func(*self.args, **self.kwargs)

    def given(self) -> dict[int, tuple[Any, ...]]:
        """Its sizes by place, in the form of the rows of a plan; a size that is to be inferred is absent."""
        return {
            place: (size,) for place, size in enumerate(self._sizes()) if not (isinstance(size, int) and size == -1)
        }

    def with_sizes(self: _SizedCall, rows: Rows) -> _SizedCall:
        """The same call with other sizes; one that is to be inferred still is."""
        sizes, given = self._sizes(), self.given()
        for place, size in rows:
            if place in given:
                sizes[place] = size
        return type(self)(self.func, (self._tensor, *self._before_sizes(), sizes), {})

    def results(self, result: Any) -> list[tuple[int, Sizes]]:
        """The sizes that come out of each node that the call becomes, with the place in the call that it stands for."""
        return [(0, tuple(tuple(part.shape) for part in pytree.tree_leaves(result)))]

    @classmethod
    def of_node(cls, node: Node) -> Sizes | None:
        """The same of a node; None if it stands for no call of this kind."""
        values = pytree.tree_leaves(node.meta["val"])
        return tuple(tuple(concrete(size) for size in value.shape) for value in values)

    @classmethod
    def rows(cls, cut: Cut, node: Node, item: int) -> Rows:
        """What a node asks for after the cut, as far as it does not grow with an input.

        Args:
            cut: What stays.
            node: A node that this kind of call becomes.
            item: The place in the call that it stands for.
        """
        del item
        first = cls.first_size(node)
        return tuple(
            (dim - first, cut.count(size, gates))
            for dim, (gates, size) in enumerate(zip(cut.gates(node), node.meta["val"].shape, strict=False))
            if not varies(size) and dim >= first
        )

    @classmethod
    def first_size(cls, node: Node) -> int:
        """The dimension of the result that the first size is for."""
        del node
        return 0

    def _before_sizes(self) -> tuple[Any, ...]:
        """Arguments between the tensor and the sizes."""
        return ()

    def _sizes(self) -> list[Any]:
        given: Any = self.args[1 + len(self._before_sizes()) :]
        given = given or (next((self.kwargs[name] for name in ("shape", "size", "sizes") if name in self.kwargs), ()),)
        return list(given[0]) if isinstance(given[0], (tuple, list)) else list(given)

    @property
    def _tensor(self) -> Tensor:
        return self._argument(0, "input", None)  # type: ignore[no-any-return]

    def _argument(self, position: int, name: str, default: Any) -> Any:
        return self.args[position] if position < len(self.args) else self.kwargs.get(name, default)
