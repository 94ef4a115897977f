"""Which modules of a model are of no use once residual branches have closed, found in its graph."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

from l0prune.flow.channel_flow import ChannelFlow
from l0prune.flow.removable import State, branch_states, dead_nodes, input_dependent
from l0prune.kept import Kept
from l0prune.look.recording import path_of
from l0prune.model_call import evaluation_mode
from l0prune.ops.node import NoRuleError, aliased, module_of, node_shape, op_name
from l0prune.surgery.dropped import CACHES, Constant, ModuleDrop, is_within
from l0prune.surgery.in_graph import branch_constants
from l0prune.surgery.plan import SurgeryPlan, named_tensors

__all__ = ["Dropping", "NotDroppableError"]

Shape = tuple[int, ...]


class NotDroppableError(Exception):
    """No modules can stand for the branches that closed; the message says why."""


@dataclass(frozen=True)
class _Call:
    """What a module was called with, and what it returned.

    Attributes:
        given: Position or name of each argument that is a tensor -> its shape.
        alone: Whether there is one argument, without a name.
        returned: Shapes of what it returned, None for what is none; of a tensor, its alone.
        items: Length of the tuple; 0 for a tensor, -1 for what is neither.
    """

    given: dict[int | str, Shape]
    alone: bool
    returned: tuple[Shape | None, ...]
    items: int


class Dropping:
    """The modules that a cut drops, and what they return then.

    Args:
        flow: Trace of `model`.
        model: The dense model.
        plan: The cut.
        kept: Units that stay.
        inputs: Positional and keyword inputs that the model was traced with.

    Attributes:
        drops: The modules, none of which lies in another.

    Raises:
        NotDroppableError: without modules, something is left of which a dimension is empty.
        EquivalenceError: a branch cannot be dropped.
    """

    def __init__(
        self,
        flow: ChannelFlow,
        model: nn.Module,
        plan: SurgeryPlan,
        kept: Kept,
        inputs: tuple[tuple[Any, ...], dict[str, Any]],
    ) -> None:
        self._flow, self._kept = flow, kept
        self._values = branch_constants(flow, named_tensors(model), plan, kept)
        program = flow.captured.program
        self._nodes = [n for n in program.graph.nodes if n.op == "call_function" and path_of(n) == 0]
        self._live = input_dependent(program.graph, frozenset(program.graph_signature.user_inputs))
        self._states = branch_states(program.graph.nodes, dead_nodes(program.graph, flow.nodes, kept), self._live)
        self._calls = _calls_of(model, inputs)
        self._inside = self._nodes_by_module(model)
        gone = self._gone()
        closed = [
            path
            for path, nodes in self._inside.items()
            if path in self._calls
            and all(node in gone or node not in self._live or _passes_on(node) for node in nodes)
            and any(node in gone and node in self._live and not _passes_on(node) for node in nodes)
            and self._is_one(path)
        ]
        places = {path for path in closed if not any(path.startswith(f"{outer}.") for outer in closed)}
        self._dropped = {node for path in places for node in self._inside[path]}
        self._needed: dict[str, list[Node]] = {}
        self.drops = tuple(self._drop(path, model.get_submodule(path)) for path in sorted(places))
        for name, cut in plan.tensors.items():
            for dim, runs in cut.kept.items():
                if not runs and not is_within(name, self.drops):
                    raise NotDroppableError(f"{name}[{dim}] is entirely closed, and only a graph can drop what uses it")

    def constants(self) -> dict[str, Constant]:
        """Name of each dropped module that returns a constant -> the constant.

        Raises:
            NotDroppableError: it is not one number a channel, or differs between calls.
        """
        found: dict[str, Constant] = {}
        for drop in self.drops:
            for node in self._needed.get(drop.module, ()):
                value = self._values[node.name]
                if value.dim() != len(drop.strides) or not value.numel() == value.shape[drop.dim] == drop.size:
                    raise NotDroppableError(f"{drop.module!r} would return more than a number a channel")
                constant = Constant(value.flatten(), node.name)
                if not torch.equal(found.setdefault(drop.module, constant).value, constant.value):
                    raise NotDroppableError(f"{drop.module!r} would return another constant in each of its calls")
        return found

    def _nodes_by_module(self, model: nn.Module) -> dict[str, list[Node]]:
        """For every module the nodes in it and in what is below, by the first name of the module."""
        first = {module: path for path, module in model.named_modules()}
        found: dict[str, list[Node]] = defaultdict(list)
        for node in self._nodes:
            path = first[model.get_submodule(module_of(node))]
            while path:
                found[path].append(node)
                path = path.rpartition(".")[0]
        return found

    def _gone(self) -> set[Node]:
        """Nodes that have nothing to compute, and those that nothing needs then."""
        gone = set(self._states)
        for node in reversed(self._nodes):
            writes = any(is_write for _, is_write in aliased(node))
            if node not in gone and not writes and gone.issuperset(node.users):
                gone.add(node)
        return gone

    def _is_one(self, path: str) -> bool:
        """Whether all calls of a module return the same: of constants those that are made of the same tensors."""
        exits = self._exits(path)
        return len(self._calls[path]) == 1 or len({self._made_of(node) for node in exits}) <= 1

    def _made_of(self, node: Node) -> frozenset[str]:
        """Names of the tensors that a constant is made of; none for what is no constant."""
        if node not in self._states:
            return frozenset([node.name]) if node.op != "call_function" else self._all_made_of(node.all_input_nodes)
        if self._states[node] is State.DEAD:
            return frozenset()
        return self._all_made_of(node.all_input_nodes)

    def _all_made_of(self, nodes: list[Node]) -> frozenset[str]:
        return frozenset().union(*(self._made_of(node) for node in nodes))

    def _exits(self, path: str) -> list[Node]:
        """Nodes of a module that something outside of it reads."""
        inside = set(self._inside[path])
        return [node for node in self._inside[path] if not (inside.issuperset(node.users) or _passes_on(node))]

    def _drop(self, path: str, module: nn.Module) -> ModuleDrop:
        exits = self._exits(path)
        needed = [n for n in exits if self._states.get(n) is State.CONSTANT and not self._dropped.issuperset(n.users)]
        if not exits or any(node not in self._live for node in exits):
            raise NotDroppableError(f"{path!r} returns nothing that is followed")
        node = (needed or exits)[0]
        calls = self._calls[path]
        shape = _shape_of(node)
        returned = calls[0].returned
        if any(call != calls[0] for call in calls[1:]) or calls[0].items < 0 or shape not in returned:
            raise NotDroppableError(f"{path!r} returns more than tensors in a tuple")
        if len(needed) > len(calls):
            raise NotDroppableError(f"{path!r} returns several constants")
        argument, dim, strides, factors = self._like(node, calls[0].given, path)
        if needed:
            self._needed[path] = needed
        return ModuleDrop(
            path,
            self._size(node, dim, shape),
            dim,
            strides,
            held=bool(needed),
            argument=argument,
            alone=calls[0].alone,
            items=calls[0].items,
            position=returned.index(shape),
            written=any(w and source in exits for e in exits for user in e.users for source, w in aliased(user)),
            cache_layer=_cache_layer(module),
            factors=factors,
        )

    def _like(self, node: Node, given: Mapping[int | str, Shape], path: str) -> tuple[int | str, int, Shape, Shape]:
        """The argument that has the shape of the result but for its channels, their dimension, the strides and the factors."""
        shape = _shape_of(node)
        fitting = [(dim, name) for dim in self._channels(node) for name in given if len(given[name]) == len(shape)]
        for scale in (_stride, _factor):
            for dim, name in fitting:
                both = enumerate(zip(given[name], shape, strict=True))
                scales = tuple(1 if d == dim else scale(a, b) for d, (a, b) in both)
                if all(scales):
                    return (name, dim, scales, ()) if scale is _stride else (name, dim, (1,) * len(shape), scales)
        raise NotDroppableError(f"none of the arguments of {path!r} has the shape of what it returns")

    def _channels(self, node: Node) -> list[int]:
        """Dimensions that may be that of the channels, the likeliest first."""
        gates = self._flow.nodes.get(node.name) or []
        followed = [dim for dim, part in enumerate(gates) if isinstance(part, np.ndarray)]
        value = self._values.get(node.name)
        if value is not None:
            varying = [dim for dim, size in enumerate(value.shape) if size > 1]
            return varying or followed or [value.dim() - 1]
        empty = [dim for dim in followed if not self._kept[gates[dim]].any()]
        gated = [dim for dim in followed if (gates[dim] >= 0).any()]
        return list(dict.fromkeys([*empty, *gated, *followed, len(_shape_of(node)) - 1]))

    def _size(self, node: Node, dim: int, shape: Shape) -> int:
        part = (self._flow.nodes.get(node.name) or [None] * len(shape))[dim]
        return int(np.count_nonzero(self._kept[part])) if isinstance(part, np.ndarray) else shape[dim]


def _shape_of(node: Node) -> Shape:
    try:
        return node_shape(node)
    except NoRuleError:
        return (-1,)


def _passes_on(node: Node) -> bool:
    """Whether a call returns its operand itself: a conversion to the type that it has."""
    given, made = (
        (n.meta.get("val") for n in (*node.all_input_nodes[:1], node)) if node.all_input_nodes else (None, None)
    )
    return (
        op_name(node.target) == "to"
        and isinstance(given, Tensor)
        and isinstance(made, Tensor)
        and given.dtype == made.dtype
    )


def _stride(size: int, result: int) -> int:
    """By what a size is divided to give another, rounded up; 0 if it is not."""
    if size == result:
        return 1
    stride = round(size / result) if result else 0
    return stride if stride > 1 and -(-size // stride) == result else 0


def _factor(size: int, result: int) -> int:
    """By what a size is multiplied to give another; 0 if it is not."""
    return result // size if size > 0 and result % size == 0 else 0


def _cache_layer(module: nn.Module) -> int:
    """The layer of a cache that a module writes to; -1 if it takes none."""
    layer = getattr(module, "layer_idx", None)
    takes = any(name in inspect.signature(type(module).forward).parameters for name in CACHES)
    return layer if takes and type(layer) is int else -1


def _calls_of(model: nn.Module, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> dict[str, list[_Call]]:
    """The calls of every module in one forward pass, by the first name of the module."""
    names = {module: path for path, module in model.named_modules()}
    found: dict[str, list[_Call]] = defaultdict(list)

    def write_down(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if module in names:
            found[names[module]].append(
                _Call(dict(_tensors(args, kwargs)), len(args) == 1 and not kwargs, *_returned(output))
            )

    handles = [module.register_forward_hook(write_down, with_kwargs=True) for module in names]
    try:
        with torch.no_grad(), evaluation_mode(model):
            model(*inputs[0], **inputs[1])
    finally:
        for handle in handles:
            handle.remove()
    return found


def _tensors(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[tuple[int | str, Shape]]:
    named: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    for name, value in named:
        if isinstance(value, Tensor):
            yield name, tuple(value.shape)


def _returned(output: Any) -> tuple[tuple[Shape | None, ...], int]:
    if isinstance(output, Tensor):
        return (tuple(output.shape),), 0
    if type(output) is not tuple or not all(item is None or isinstance(item, Tensor) for item in output):
        return (), -1
    return tuple(None if item is None else tuple(item.shape) for item in output), len(output)
