"""Which modules of a model are of no use once residual branches have closed, found in its graph."""

from __future__ import annotations

import inspect
from collections import defaultdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

from l0prune.flow.channel_flow import ChannelFlow
from l0prune.flow.removable import State, branch_states, dead_nodes, input_dependent
from l0prune.kept import Kept
from l0prune.look.free_sizes import other_images
from l0prune.look.recording import path_of
from l0prune.model_call import ModelCall
from l0prune.ops.node import NoRuleError, aliased, module_of, node_shape, op_name
from l0prune.surgery.dropped import CACHES, Constant, ModuleDrop, is_within
from l0prune.surgery.in_graph import branch_constants
from l0prune.surgery.module_calls import CalledModule, Shape, called_modules
from l0prune.surgery.plan import SurgeryPlan, named_tensors
from l0prune.surgery.size_rules import SizeRule

__all__ = ["Dropping", "NotDroppableError"]


class NotDroppableError(Exception):
    """No modules can stand for the branches that closed; the message says why."""


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
        traced = ModelCall(*inputs)
        others = (*flow.captured.free.others(traced), *other_images(traced))
        self._calls, self._elsewhere = called_modules(model, traced, others)
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
        everywhere = [*calls, *self._elsewhere.get(path, ())]
        if any(call.form != calls[0].form for call in everywhere) or calls[0].items < 0 or shape not in returned:
            raise NotDroppableError(f"{path!r} returns more than tensors in a tuple")
        if len(needed) > len(calls):
            raise NotDroppableError(f"{path!r} returns several constants")
        position = returned.index(shape)
        argument, dim, rules = self._like(node, everywhere, position, path)
        if needed:
            self._needed[path] = needed
        factors, offsets, strides = zip(*rules, strict=True)
        return ModuleDrop(
            path,
            self._size(node, dim, shape),
            dim,
            strides,
            held=bool(needed),
            argument=argument,
            alone=calls[0].alone,
            items=calls[0].items,
            position=position,
            written=any(w and source in exits for e in exits for user in e.users for source, w in aliased(user)),
            cache_layer=_cache_layer(module),
            factors=factors,
            offsets=offsets,
        )

    def _like(
        self, node: Node, calls: list[CalledModule], position: int, path: str
    ) -> tuple[int | str, int, list[SizeRule]]:
        """The argument from whose sizes those of the result follow, the dimension of the channels, and how the others follow."""
        fitting = []
        for dim in self._channels(node):
            for name, shape in calls[0].given.items():  # a mask may be given at some sizes alone
                pairs = [(call.given.get(name, ()), call.returned[position] or ()) for call in calls]
                if len(shape) > dim and all(len(given) == len(made) == len(shape) for given, made in pairs):
                    rules = [_rule(pairs, d) if d != dim else SizeRule() for d in range(len(shape))]
                    fitting.append((name, dim, [rule for rule in rules if rule is not None]))
        fitting = [found for found in fitting if len(found[2]) == len(_shape_of(node))]
        if not fitting:
            raise NotDroppableError(f"the size of what {path!r} returns does not follow from that of an argument")
        return min(fitting, key=lambda found: sum(rule != SizeRule() for rule in found[2]))

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


def _rule(pairs: list[tuple[Shape, Shape]], dim: int) -> SizeRule | None:
    return SizeRule.of((given[dim], made[dim]) for given, made in pairs)


def _cache_layer(module: nn.Module) -> int:
    """The layer of a cache that a module writes to; -1 if it takes none."""
    layer = getattr(module, "layer_idx", None)
    takes = any(name in inspect.signature(type(module).forward).parameters for name in CACHES)
    return layer if takes and type(layer) is int else -1
