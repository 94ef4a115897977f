"""A model that is an ATen graph: trainable, switching dropout and batch statistics with its mode."""

from __future__ import annotations

import copy
import functools
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.graph import PythonCode, _PyTreeCodeGen
from torch.fx.node import map_arg

from l0prune.errors import ConfigError
from l0prune.input_sizes import check_inputs_, input_sizes_of
from l0prune.ops.node import argument_of, op_name, set_argument
from l0prune.ops.operation import operation_of
from l0prune.surgery.graph_precision import convert_types_, precision_of, require_convertible

__all__ = ["GraphData", "GraphModel"]

_SWITCHED = "l0prune_switched_to_training"


class GraphModel(GraphModule):
    """A GraphModule whose `train()` and `eval()` work: `training` arguments of the ops follow the mode.

    Batch statistics are only switched on where the norm has running statistics to fall back on in evaluation mode; ops
    that were captured in training mode stay in it. Inputs of other sizes than the graph was captured for are an error, as far as
    `root` says what they are. Buffers that are not persistent in `root` stay so, constants of the
    code are no part of the state dict, and copies keep the attributes of the original.

    Args:
        root: Module with the tensors the graph refers to.
        graph: The graph.
    """

    checks_inputs = True

    def __init__(self, root: nn.Module, graph: Graph) -> None:
        for node in list(graph.nodes):
            if node.op == "call_function" and op_name(node.target) == "_assert_tensor_metadata":
                graph.erase_node(node)  # the type and device at capture: wrong once converted, or under autocast
        super().__init__(root, graph)
        _keep_transient(root, self)
        sizes = input_sizes_of(root)
        if sizes is not None:
            check_inputs_(self, sizes)

    def __deepcopy__(self, memo: dict[int, Any]) -> GraphModel:
        """A copy with everything, also what GraphModule's own copies leave behind."""
        copied: GraphModel = super().__deepcopy__(memo)  # type: ignore[assignment]
        _keep_transient(self, copied)
        for name, value in self.__dict__.items():
            if name not in copied.__dict__:
                copied.__dict__[name] = copy.deepcopy(value, memo)
        return copied

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GraphModel:
        """Convert or move the tensors; what the graph says of their precision follows.

        Raises:
            ConfigError: a lower precision, of which the graph does not tell where it is meant to hold.
        """
        old = precision_of(self)
        new = None if old is None else fn(torch.zeros(1, dtype=old)).dtype
        if old is None or new is None or new == old or not new.is_floating_point:
            super()._apply(fn, recurse)
            return self
        require_convertible(self.graph, old, new)
        super()._apply(fn, recurse)
        convert_types_(self.graph, old, new)
        self.recompile()
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled with its graph as data; FX would trace the code it wrote."""
        state = {name: value for name, value in self.__dict__.items() if name != "_graph"}
        return _unpickled, (state, GraphData.of(self.graph, (_SWITCHED,)))

    def __prepare_scriptable__(self) -> GraphModel:
        """Asked for by `torch.jit.script`, which compiles the source of a class: a graph has none.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "torch.jit.script compiles the code of a class, and a model in graph form has none: use torch.jit.trace, "
            "torch.export or l0prune.export_onnx. load(directory, base=dense) gives a model its class, unless it was lost in the "
            "cut: compact.surgery.not_in_place_because says why"
        )

    def recompile(self) -> PythonCode:
        """Make the forward pass of the graph anew; it looks at the sizes of its inputs first, also while it is exported."""
        code = super().recompile()
        kind = type(self)
        generated = kind.forward

        @functools.wraps(generated)
        def forward(self: GraphModel, *args: Any, **kwargs: Any) -> Any:
            sizes = input_sizes_of(self)
            if sizes is not None:
                sizes.check(args, kwargs)
            return generated(self, *args, **kwargs)

        kind.forward = forward  # type: ignore[method-assign]
        return code

    def train(self, mode: bool = True) -> GraphModel:
        """Set the mode of every module and of every op that depends on it."""
        nn.Module.train(self, mode)
        changed = False
        for node in self.graph.nodes:
            argument = _training_argument(node)
            if argument is None:
                continue
            if mode and set_argument(node, argument, True):
                node.meta[_SWITCHED] = changed = True
            elif not mode and node.meta.pop(_SWITCHED, False):
                changed |= set_argument(node, argument, False)
        if changed:
            self.recompile()
        return self

    def reporting(self, nodes: Mapping[str, str], found: dict[str, Tensor]) -> GraphModule:
        """A twin with the same tensors, in the present mode, that also tells what nodes compute on the way.

        Args:
            nodes: Name of a node -> key in `found`; names that the graph does not have are passed over.
            found: Is filled by every call of the twin.
        """

        def report(key: str, value: Tensor) -> None:
            found[key] = value

        graph = copy.deepcopy(self.graph)
        for node in list(graph.nodes):
            if node.name in nodes:
                with graph.inserting_after(node):
                    graph.call_function(report, (nodes[node.name], node))
        return GraphModule(self, graph)


def _unpickled(state: dict[str, Any], graph: GraphData) -> GraphModel:
    root = nn.Module()
    root.__dict__.update(state)
    model = GraphModel(root, graph.build())
    for name, value in state.items():
        if name not in model.__dict__:
            model.__dict__[name] = value
    return model


def _keep_transient(source: nn.Module, target: nn.Module) -> None:
    """Buffers of `target` that are not persistent in `source`, or no buffers there, are not persistent either."""
    modules = dict(target.named_modules())
    for path, module in source.named_modules():
        if path in modules:
            own = modules[path]
            saved = module._buffers.keys() - module._non_persistent_buffers_set
            own._non_persistent_buffers_set |= own._buffers.keys() - saved


def _training_argument(node: Node) -> str | None:
    """Name of the argument that follows the mode; None for ops that do not depend on it."""
    argument = operation_of(node.target).training if node.op == "call_function" else None
    if argument is None:
        return None
    has_statistics = any(known.name == "running_mean" for known in node.target._schema.arguments)  # type: ignore[union-attr]
    if has_statistics and argument_of(node, "running_mean") is None:
        return None  # batch statistics in either mode
    return argument


@dataclass(frozen=True)
class _Ref:
    """Stands for a node among the arguments of another."""

    name: str


@dataclass(frozen=True)
class GraphData:
    """What a graph is made of.

    Attributes:
        nodes: Of every node the kind, name, target, arguments, keyword arguments, and the marks that stay on it.
        pytree: How inputs and outputs nest; None for a graph of plain arguments.
    """

    nodes: tuple[tuple[Any, ...], ...]
    pytree: Any

    @classmethod
    def of(cls, graph: Graph, marks: tuple[str, ...]) -> GraphData:
        """Take a graph apart.

        Args:
            graph: Of ATen operations.
            marks: Entries of `node.meta` that are to be kept.
        """
        nodes = []
        for node in graph.nodes:
            args, kwargs = _with_references((node.args, node.kwargs))
            kept = {mark: node.meta[mark] for mark in marks if mark in node.meta}
            nodes.append((node.op, node.name, _name_of(node.target), args, kwargs, kept))
        codegen = graph._codegen
        return cls(tuple(nodes), codegen.pytree_info if isinstance(codegen, _PyTreeCodeGen) else None)

    def build(self) -> Graph:
        """The graph."""
        graph = Graph()
        known: dict[str, Node] = {}
        for op, name, target, args, kwargs, kept in self.nodes:
            own_args, own_kwargs = _with_nodes((args, kwargs), known)
            node = graph.create_node(op, _target_of(target), own_args, own_kwargs, name=name)
            node.meta.update(kept)
            known[name] = node
        if self.pytree is not None:
            graph.set_codegen(_PyTreeCodeGen(self.pytree))
        return graph


def _with_references(arguments: Any) -> Any:
    return map_arg(arguments, lambda used: _Ref(used.name))  # type: ignore[arg-type, return-value]


def _with_nodes(value: Any, known: dict[str, Node]) -> Any:
    if isinstance(value, _Ref):
        return known[value.name]
    if isinstance(value, dict):
        return {key: _with_nodes(part, known) for key, part in value.items()}
    if isinstance(value, slice):
        return slice(*(_with_nodes(part, known) for part in (value.start, value.stop, value.step)))
    if isinstance(value, (list, tuple)):
        return type(value)([_with_nodes(part, known) for part in value])
    return value


def _name_of(target: Any) -> Any:
    """A target as names: those of an operation, or of a function in its module."""
    if isinstance(target, torch._ops.OpOverload):
        return ("op", *str(target).split("."))
    if callable(target):
        name = target.__name__
        module = "torch" if getattr(torch, name, None) is target else target.__module__
        if getattr(importlib.import_module(module), name, None) is not target:
            name = name.removeprefix("_")
        return ("function", module, name)
    return target


def _target_of(target: Any) -> Any:
    if not isinstance(target, tuple):
        return target
    kind, *names = target
    if kind == "function":
        return getattr(importlib.import_module(names[0]), names[1])
    found: Any = torch.ops
    for name in names:
        found = getattr(found, name)
    return found
