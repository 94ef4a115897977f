"""Cut a model in its exported graph: every size in the graph becomes the count of the indices that stay.

A residual branch that is closed entirely is dropped: what it still contributes is a constant, computed once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from l0prune.errors import EquivalenceError
from l0prune.flow.channel_flow import ChannelFlow
from l0prune.flow.removable import State, branch_states, dead_nodes, input_dependent
from l0prune.input_sizes import InputSizes, check_inputs_
from l0prune.kept import DimensionGates, Kept
from l0prune.ops.node import aliased, op_name
from l0prune.ops.operation import InClosedBranch, operation_of
from l0prune.ops.sizes import Rewriter
from l0prune.surgery.graph_model import GraphModel
from l0prune.surgery.graph_precision import captured_precision, convert_types_, precision_of, require_convertible
from l0prune.surgery.plan import SurgeryPlan

__all__ = ["branch_constants", "cut_in_graph", "has_dropped_branches"]

_CONSTANT = "dropped_"
"""How the names of buffers begin that hold what a dropped branch contributes."""


def cut_in_graph(flow: ChannelFlow, tensors: Mapping[str, Tensor], plan: SurgeryPlan, kept: Kept) -> GraphModel:
    """The compact model as a graph.

    Args:
        flow: Trace of the dense model.
        tensors: The dense model's parameters and buffers by name.
        plan: What stays of each tensor, and what is folded into it.
        kept: Units that stay.

    Returns:
        A trainable module with the state-dict keys of the dense model.
    """
    graph = _with_cut_tensors(flow, tensors, plan, kept)
    _drop_dead_branches(graph, flow, kept)
    graph.graph.lint()
    graph.recompile()
    graph.train(mode=False)
    return graph


def branch_constants(
    flow: ChannelFlow, tensors: Mapping[str, Tensor], plan: SurgeryPlan, kept: Kept
) -> dict[str, Tensor]:
    """What is left of the branches that closed: name of a node that became constant -> its value.

    Args:
        flow: Trace of the dense model.
        tensors: The dense model's parameters and buffers by name.
        plan: What stays of each tensor, and what is folded into it.
        kept: Units that stay.

    Returns:
        Values with size one along batch, positions and space.

    Raises:
        EquivalenceError: a branch cannot be dropped.
    """
    _, constants, _ = _closed(_with_cut_tensors(flow, tensors, plan, kept), flow, kept)
    return {node.name: value.detach() for node, value in constants.items()}


def _with_cut_tensors(flow: ChannelFlow, tensors: Mapping[str, Tensor], plan: SurgeryPlan, kept: Kept) -> GraphModel:
    """The graph with tensors of its own, and their sizes; branches that closed are still there."""
    module = flow.captured.program.module(check_guards=False)
    graph = GraphModel(module, module.graph)
    check_inputs_(graph, InputSizes.of(flow.captured.program, module))
    captured = captured_precision(flow.captured.program)
    _replace_tensors(graph, flow, tensors, plan)
    now = precision_of(graph)
    if captured is not None and now is not None and now != captured:
        require_convertible(graph.graph, captured, now)
        convert_types_(graph.graph, captured, now)

    def gates_of(name: str) -> list[DimensionGates]:
        return list(flow.tensors.get(flow.aliases.get(name, name), ()))

    rewriter = Rewriter(flow.nodes, gates_of, kept, graph)
    for node in list(graph.graph.nodes):
        rewrite = operation_of(node.target).rewrite if node.op == "call_function" else None
        if rewrite is not None:
            rewrite(rewriter, node)
    return graph


def _replace_tensors(graph: GraphModule, flow: ChannelFlow, tensors: Mapping[str, Tensor], plan: SurgeryPlan) -> None:
    """Give the graph tensors of its own: cut, folded, and shared where the dense model shares them."""
    new: dict[str, Tensor] = {}
    for name, tensor in [*graph.named_parameters(remove_duplicate=False), *graph.named_buffers(remove_duplicate=False)]:
        known = flow.aliases.get(name, name)
        if known not in new:
            dense = tensors.get(known, tensor)
            value = plan.compact_tensor(known, dense)
            new[known] = (
                nn.Parameter(value, requires_grad=dense.requires_grad) if isinstance(tensor, nn.Parameter) else value
            )
        path, _, leaf = name.rpartition(".")
        owner = graph.get_submodule(path)
        if leaf in owner._parameters:
            owner._parameters[leaf] = new[known]  # type: ignore[assignment]
        else:
            owner._buffers[leaf] = new[known]


def _drop_dead_branches(graph: GraphModule, flow: ChannelFlow, kept: Kept) -> None:
    """Replace what is computed from empty dimensions by constants, and remove what nothing uses any more.

    Args:
        graph: The compact graph with its tensors cut already.
        flow: Trace of the dense model.
        kept: Units that stay.

    Raises:
        EquivalenceError: a branch cannot be dropped; gates that close it should have been refused before.
    """
    states, constants, dead = _closed(graph, flow, kept)
    if not states:
        return
    for node in [n for n in graph.graph.nodes if n not in states]:
        _feed_constants(graph, node, constants, dead)
    _remove_unused(graph, states)


def _closed(
    graph: GraphModule, flow: ChannelFlow, kept: Kept
) -> tuple[dict[Node, State], dict[Node, Tensor], set[Node]]:
    """What becomes of the nodes of a cut graph, the values of those that are constant, and those with an empty dimension.

    Raises:
        EquivalenceError: a branch cannot be dropped.
    """
    dead = dead_nodes(graph.graph, flow.nodes, kept)
    inputs = frozenset(node.name for node in graph.graph.nodes if node.op == "placeholder")
    states = branch_states(graph.graph.nodes, dead, input_dependent(graph.graph, inputs)) if dead else {}
    stuck = [node.name for node, state in states.items() if state is State.STUCK]
    if stuck:
        raise EquivalenceError(
            f"a closed branch reaches {stuck[0]!r}, which cannot do without it; open one of its gates"
        )
    constants: dict[Node, Tensor] = {}
    for node, state in states.items():
        if state is State.CONSTANT:
            constants[node] = _evaluate(graph, node, constants, dead)
    return states, constants, dead


def has_dropped_branches(model: nn.Module) -> bool:
    """Whether a compact model holds constants in the place of branches, which its weights no longer show."""
    return isinstance(model, GraphModule) and any(name.startswith(_CONSTANT) for name in model._buffers)


def _evaluate(graph: GraphModule, node: Node, constants: dict[Node, Tensor], dead: set[Node]) -> Tensor:
    """Value of a constant node in evaluation mode, with size one along batch, positions and space."""

    def value(argument: Any) -> Any:
        if not isinstance(argument, Node):
            return argument
        if argument in constants:
            return constants[argument]
        is_held = argument.op == "get_attr"
        return _attribute(graph, argument) if is_held else _evaluate(graph, argument, constants, dead)

    contracts = operation_of(node.target).contracts
    layer = None if contracts is None else contracts(node)
    with torch.no_grad():
        if op_name(node.target) == "expand":  # along positions, which a constant leaves out
            spread = value(node.args[0])
            return spread.view([1] * (node.meta["val"].dim() - spread.dim()) + list(spread.shape))  # type: ignore[no-any-return]
        if layer is not None and layer.activation in dead:  # its bias alone, or zero
            weight, shape = value(layer.weight), [1] * node.meta["val"].dim()
            shape[layer.channel] = -1
            made = weight.new_zeros(weight.shape[layer.out] * layer.groups) if layer.bias is None else value(layer.bias)
            return made.detach().view(shape)
        args = torch.fx.map_arg(node.args, value)
        kwargs = torch.fx.map_arg(node.kwargs, value)
        args = tuple(a.clone() if isinstance(a, Tensor) else a for a in args)  # ops may work in place
        return node.target(*args, **kwargs)  # type: ignore[operator, no-any-return]


def _attribute(graph: GraphModule, node: Node) -> Tensor:
    path, _, leaf = str(node.target).rpartition(".")
    value: Tensor = getattr(graph.get_submodule(path), leaf)
    return value


def _feed_constants(graph: GraphModule, node: Node, constants: dict[Node, Tensor], dead: set[Node]) -> None:
    """A live node takes constants from buffers, and drops empty operands of a concatenation."""
    if operation_of(node.target).closed is InClosedBranch.LEAVES_OUT:
        tensors = [t for t in node.args[0] if t not in dead]  # type: ignore[union-attr]
        node.args = (tensors, *node.args[1:])
    fed = [source for source in node.all_input_nodes if source in constants]
    if not fed:
        return
    writes_into_constant = any(is_write and source in constants for source, is_write in aliased(node))
    for source in fed:
        name = f"{_CONSTANT}{source.name}"
        if not hasattr(graph, name):
            graph.register_buffer(name, constants[source].detach().clone())
        with graph.graph.inserting_before(node):
            replacement = graph.graph.get_attr(name)
        replacement.meta["val"] = source.meta["val"]
        node.replace_input_with(source, replacement)
    if writes_into_constant:
        _out_of_place(node)


def _out_of_place(node: Node) -> None:
    """`constant += live` would write into the constant: use the op that returns a new tensor."""
    packet = getattr(torch.ops.aten, op_name(node.target).rstrip("_"))
    node.target = getattr(packet, node.target._overloadname)  # type: ignore[union-attr]


def _remove_unused(graph: GraphModule, states: dict[Node, State]) -> None:
    """Erase nodes whose result nothing uses, and the tensors only they used; a live op that writes in place stays."""
    n_gone = -1
    while n_gone:
        n_gone = 0
        for node in reversed(list(graph.graph.nodes)):
            writes = any(is_write for _, is_write in aliased(node)) and node not in states
            if node.op == "call_function" and not node.users and not writes:
                graph.graph.erase_node(node)
                n_gone += 1
    used_by_calls = {node for node in graph.graph.nodes if node.users}
    gone = [node for node in graph.graph.nodes if node.op == "get_attr" and node not in used_by_calls]
    kept_targets = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr" and node.users}
    for node in gone:
        if str(node.target).rpartition(".")[2] == "num_batches_tracked" and _sibling_used(
            str(node.target), kept_targets
        ):
            continue
        graph.graph.erase_node(node)
        _delete(graph, str(node.target))


def _sibling_used(target: str, used: set[str]) -> bool:
    return f"{target.rpartition('.')[0]}.running_mean" in used


def _delete(graph: GraphModule, target: str) -> None:
    path, _, leaf = target.rpartition(".")
    owner = graph.get_submodule(path)
    if hasattr(owner, leaf):
        delattr(owner, leaf)
