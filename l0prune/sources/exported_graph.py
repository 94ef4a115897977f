"""The graph of an exported program that has been loaded, looked at as torch would run it."""

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import GraphModule, Node

from l0prune.sources.allowed_ops import is_allowed, name_of, writes_to

__all__ = ["forbidden"]

MOST_BITS = 1024  # of an integer that the graph computes, where each size has 64
SIZE_BITS = 64


def forbidden(program: ExportedProgram) -> str:
    """What the graph does that a network needs not, in a few words; empty where there is no such thing.

    It calls nothing but the ops of `l0prune.sources.allowed_ops`; it writes to tensors that it made itself, to buffers (counters,
    running statistics, caches) and to its inputs, never to parameters and constants; and what it computes of sizes stays small.
    """
    fixed = {InputKind.PARAMETER, InputKind.CONSTANT_TENSOR}
    names = {spec.arg.name for spec in program.graph_signature.input_specs if spec.kind in fixed}
    graph = program.graph_module
    fixed_nodes = {node for node in graph.graph.nodes if node.op == "placeholder" and node.name in names}
    return next(_problems(_Part(graph, fixed_nodes)), "")


@dataclass
class _Part:
    """A graph, or one that it calls.

    Attributes:
        graph: With its parts.
        fixed: Nodes whose memory must stay as it is.
        bits: Node -> bits of the integer it is.
    """

    graph: GraphModule
    fixed: set[Node]
    bits: dict[Node, int] = field(default_factory=dict)


def _problems(part: _Part) -> Iterator[str]:
    for node in part.graph.graph.nodes:
        if node.op in {"call_module", "call_method"}:
            yield f"it calls {str(node.target)[:60]!r}"
        if node.op != "call_function":
            continue
        if not is_allowed(name_of(node.target)):
            yield f"it calls {name_of(node.target)[:60]!r}"
            return  # what it does to its arguments is not known
        if isinstance(node.target, torch._ops.OpOverload):
            yield from _writes(node, part.fixed)
        elif node.target is operator.getitem and node.args[0] in part.fixed:
            part.fixed.add(node)
        else:
            yield from _grows(node, part.bits)
        yield from _inside(node, part)


def _writes(node: Node, fixed: set[Node]) -> Iterator[str]:
    """Writing to what is fixed; views of it are fixed as well."""
    schema = node.target._schema  # type: ignore[union-attr]
    given = {argument.name: value for argument, value in zip(schema.arguments, node.args, strict=False)} | node.kwargs
    for place in writes_to(schema):
        if _is_fixed(given.get(schema.arguments[place].name), fixed):
            yield f"{node.name!r} writes to a parameter or a constant"
    views = any(result.alias_info is not None for result in schema.returns)
    shared = [given.get(argument.name) for argument in schema.arguments if views and argument.alias_info is not None]
    if any(_is_fixed(value, fixed) for value in shared):
        fixed.add(node)


def _is_fixed(value: object, fixed: set[Node]) -> bool:
    return isinstance(value, Node) and value in fixed


def _grows(node: Node, bits: dict[Node, int]) -> Iterator[str]:
    """Integers that double in length, node by node."""
    sizes = [bits.get(arg, SIZE_BITS) if isinstance(arg, Node) else _n_bits(arg) for arg in node.args]
    name = name_of(node.target)
    if name == "_operator.mul":
        bits[node] = sum(sizes)
    elif name == "_operator.pow":
        power = node.args[1]
        bits[node] = sizes[0] * (int(abs(power)) if isinstance(power, int | float) else MOST_BITS)
    elif sizes:
        bits[node] = max(sizes) + 1
    if bits.get(node, 0) > MOST_BITS:
        yield f"{node.name!r} computes a number of more than {MOST_BITS} bits"


def _n_bits(value: object) -> int:
    return abs(value).bit_length() if isinstance(value, int) else SIZE_BITS


def _inside(node: Node, part: _Part) -> Iterator[str]:
    """Problems of the graphs that a node calls, where what it passes on stays fixed."""
    called = [arg for arg in node.args if isinstance(arg, Node) and arg.op == "get_attr"]
    graphs = [getattr(part.graph, str(arg.target), None) for arg in called]
    passed = [arg for arg in _flat(node.args) if isinstance(arg, Node) and arg not in called]
    for graph in graphs:
        if isinstance(graph, GraphModule):
            inputs = [inner for inner in graph.graph.nodes if inner.op == "placeholder"]
            # A condition comes before what is passed on.
            fixed = {own for own, given in zip(inputs[::-1], passed[::-1], strict=False) if given in part.fixed}
            yield from _problems(_Part(graph, fixed))


def _flat(args: object) -> Iterator[object]:
    if isinstance(args, tuple | list):
        for arg in args:
            yield from _flat(arg)
    else:
        yield args
