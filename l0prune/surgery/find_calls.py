"""Find the calls inside forward passes whose sizes are wrong in a compact model, by running it beside the exported graph."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.fx import Node
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from l0prune.flow.channel_flow import ChannelFlow
from l0prune.kept import DimensionGates, Kept
from l0prune.look.recording import path_of
from l0prune.model_call import evaluation_mode
from l0prune.ops.op import argument_of, concrete, in_example, module_of, op_name, varies
from l0prune.surgery.plan import CallChange
from l0prune.surgery.sized_call import KIND_OF, Rows, SizedCall

__all__ = ["CallFinder"]

_KIND_OF_OP = {
    **dict.fromkeys(("view", "reshape"), "view"),
    **dict.fromkeys(("expand", "broadcast_to"), "expand"),
    "unflatten": "unflatten",
    **dict.fromkeys(("split", "split_with_sizes", "chunk"), "split"),
    "slice": "slice",
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), "groups"),
}

_Sizes = tuple[Any, ...]
"""What a call and its node in the dense graph have in common: the sizes that come out."""
_Place = tuple[str, str]
"""Module and kind of calls."""
_Wanted = dict[_Place, list[Rows]]
"""For every call, its sizes in the cut graph."""


class CallFinder:
    """Finds the calls that the code of a compact model makes with sizes other than the cut graph would.

    Calls of a module are matched to the nodes of the graph it was exported to in order, and only if all the sizes that come
    out of them agree. What is found is a guess: the caller verifies what it computes.

    Args:
        flow: Trace of `model`.
        model: The dense model.
        kept: Units that stay.
        inputs: Positional and keyword inputs that the model was traced with.
    """

    def __init__(
        self,
        flow: ChannelFlow,
        model: nn.Module,
        kept: Kept,
        inputs: tuple[tuple[Any, ...], dict[str, Any]],
    ) -> None:
        self._args, self._kwargs = inputs
        dense = self._follow(model, {})
        self._wanted = _wanted(flow, model, dense.sizes, kept)

    def find(self, compact: nn.Module) -> tuple[CallChange, ...]:
        """The calls of `compact`, a copy with smaller layers, with the sizes they are to have.

        Whatever the compact model raises where sizes do not help is passed on.
        """
        cut = self._follow(compact, self._wanted)
        return tuple(CallChange(*place, rows) for place, rows in cut.changed.items())

    def _follow(self, model: nn.Module, wanted: _Wanted) -> _Follow:
        follow = _Follow(model, wanted)
        with follow.running(model):
            model(*self._args, **self._kwargs)
        return follow


class _Follow(TorchFunctionMode):
    """Inside this block, calls that take sizes are written down, and made with the sizes in `wanted` where theirs are others.

    Attributes:
        sizes: Module and kind -> for each call, the sizes that come out of each node it becomes in a graph.
        changed: Module, kind and number of a call within one forward pass of the module -> the sizes it was given.
    """

    def __init__(self, model: nn.Module, wanted: _Wanted) -> None:
        super().__init__()
        self.sizes: dict[_Place, list[list[tuple[int, _Sizes]]]] = defaultdict(list)
        self.changed: dict[tuple[str, str, int], Rows] = {}
        self._wanted = wanted
        self._paths = {module: path for path, module in model.named_modules()}
        self._running: list[tuple[str, Counter[str]]] = []

    @contextmanager
    def running(self, model: nn.Module) -> Iterator[None]:
        """Follow a forward pass of `model` in evaluation mode."""

        def enter(module: nn.Module, _: Any) -> None:
            if module in self._paths:
                self._running.append((self._paths[module], Counter()))

        def leave(module: nn.Module, _: Any, __: Any) -> None:
            if module in self._paths:
                self._running.pop()

        hooks = (register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True))
        try:
            with torch.no_grad(), evaluation_mode(model), self:
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Make the call, and write it down."""
        kwargs = kwargs or {}
        if func not in KIND_OF or not self._running:
            return func(*args, **kwargs)
        call = SizedCall(func, args, kwargs)
        path, seen = self._running[-1]
        place = (path, call.kind, seen[call.kind])
        for _, counted in self._running:
            counted[call.kind] += 1
        made = self.sizes[path, call.kind]
        rows = _wrong(call, self._rows_for(path, call.kind, len(made)))
        if rows:
            self.changed[place] = tuple(sorted({*self.changed.get(place, ()), *rows}))
            call = call.with_sizes(rows)
        made.append([])
        position = len(made) - 1
        result = call.make()
        made[position] = _sizes_of_call(call, result)
        return result

    def _rows_for(self, path: str, kind: str, position: int) -> Rows:
        """The sizes that a call is to have, the `position`-th of its kind that the module has made."""
        wanted = self._wanted.get((path, kind), [])
        return wanted[position] if position < len(wanted) else ()


def _wrong(call: SizedCall, rows: Rows) -> Rows:
    """The rows that a call has other sizes for; a split is given all its sizes together."""
    given = call.given()
    wrong = tuple(row for row in rows if given.get(row[0], row[1:]) != row[1:])
    return rows if wrong and call.kind == "split" else wrong


def _sizes_of_call(call: SizedCall, result: Any) -> list[tuple[int, _Sizes]]:
    """The sizes that come out of each node that a call becomes; for a slice also its place in the index."""
    if call.kind == "slice":
        return [(item, sizes) for item, sizes in call.cutting_slices()]
    if call.kind == "groups":
        return [(0, (*result.shape, *call.given()[0]))]
    return [(0, tuple(tuple(part.shape) for part in pytree.tree_leaves(result)))]


def _sizes_of_node(kind: str, node: Node) -> _Sizes | None:
    """The same of a node; None if it is a slice that leaves everything."""
    parts = [tuple(concrete(size) for size in value.shape) for value in pytree.tree_leaves(node.meta["val"])]
    if kind == "slice":
        dim, before = _sliced(node)
        return None if parts[0][dim] == before else (dim, before, parts[0][dim])
    if kind == "groups":
        return (*parts[0], in_example(argument_of(node, "groups")))
    return tuple(parts)


def _sliced(node: Node) -> tuple[int, int]:
    """Dimension of a slice, and its size before."""
    source: Any = node.args[0]
    shape = source.meta["val"].shape
    dim: int = argument_of(node, "dim") % len(shape)
    return dim, concrete(shape[dim])


def _wanted(
    flow: ChannelFlow,
    model: nn.Module,
    called: dict[_Place, list[list[tuple[int, _Sizes]]]],
    kept: Kept,
) -> _Wanted:
    """What each call is to be given, of those kinds and modules for which calls and nodes of the dense model agree."""
    paths = {module: path for path, module in model.named_modules()}
    nodes: dict[_Place, list[tuple[Node, _Sizes]]] = defaultdict(list)
    for node in flow.captured.program.graph.nodes:
        followed = node.op == "call_function" and path_of(node) == 0
        kind = _KIND_OF_OP.get(op_name(node.target)) if followed else None
        sizes = None if kind is None else _sizes_of_node(kind, node)
        if kind is not None and sizes is not None:
            nodes[paths[model.get_submodule(module_of(node))], kind].append((node, sizes))
    wanted = {}
    for (path, kind), calls in called.items():
        found = nodes.get((path, kind), [])
        if [sizes for _, sizes in found] == [sizes for call in calls for _, sizes in call]:
            nodes_in_order = iter(node for node, _ in found)
            wanted[path, kind] = [
                tuple(row for item, _ in call for row in _rows(flow, kind, next(nodes_in_order), kept, item))
                for call in calls
            ]
    return wanted


def _rows(flow: ChannelFlow, kind: str, node: Node, kept: Kept, item: int) -> Rows:
    """The sizes of a node after the cut, as far as they do not grow with an input; those of a slice for the item of an index."""
    if node.target is torch.ops.aten.view.dtype:
        return ()
    source: Any = node.args[0]
    before, after = flow.nodes.get(source.name, []), flow.nodes.get(node.name, [])
    if kind == "slice":
        dim, size = _sliced(node)
        return _bounds(node, before[dim] if before else None, size, kept, item)
    if kind == "groups":
        groups = argument_of(node, "groups")
        gates = before[1] if before else None
        if gates is None or groups == 1 or isinstance(groups, Node):
            return ()
        return ((0, kept.count_groups(gates, groups)),)
    if kind == "split":
        dim = argument_of(node, "dim")
        widths = [part[dim] if part else None for part in after]
        sizes = [concrete(value.shape[dim]) for value in node.meta["val"]]
        new = [size if gates is None else kept.count(gates) for gates, size in zip(widths, sizes, strict=True)]
        return () if any(varies(value.shape[dim]) for value in node.meta["val"]) else tuple(enumerate(new))
    first = argument_of(node, "dim") % len(before) if kind == "unflatten" and before else 0
    return tuple(
        (dim - first, concrete(size) if gates is None else kept.count(gates))
        for dim, (gates, size) in enumerate(zip(after, node.meta["val"].shape, strict=False))
        if not varies(size) and dim >= first
    )


def _bounds(node: Node, gates: DimensionGates, size: int, kept: Kept, item: int) -> Rows:
    """Start and stop of a slice among the indices that stay; nothing for one with steps."""
    start, stop, step = (argument_of(node, name) for name in ("start", "end", "step"))
    if gates is None or step != 1 or isinstance(start, Node) or isinstance(stop, Node):
        return ()
    stays = kept[gates]
    begin, end, _ = slice(start, stop).indices(size)
    return ((item, int(stays[:begin].sum()), int(stays[:end].sum())),)
