"""Cut a model in its exported graph: every size in the graph becomes the count of the indices that stay."""

from __future__ import annotations

from torch import Tensor, nn
from torch.fx import GraphModule

from l0prune.flow.channel_flow import ChannelFlow
from l0prune.input_sizes import InputSizes, check_inputs_
from l0prune.kept import DimensionGates, Kept
from l0prune.ops.operation import operation_of
from l0prune.ops.sizes import Rewriter
from l0prune.surgery.dead_branches import drop_dead_branches
from l0prune.surgery.graph_model import GraphModel
from l0prune.surgery.graph_precision import captured_precision, convert_types_, precision_of, require_convertible
from l0prune.surgery.plan import SurgeryPlan

__all__ = ["cut_in_graph"]


def cut_in_graph(flow: ChannelFlow, tensors: dict[str, Tensor], plan: SurgeryPlan, kept: Kept) -> GraphModel:
    """The compact model as a graph.

    Args:
        flow: Trace of the dense model.
        tensors: The dense model's parameters and buffers by name.
        plan: What stays of each tensor, and what is folded into it.
        kept: Units that stay.

    Returns:
        A trainable module with the state-dict keys of the dense model.
    """
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
    drop_dead_branches(graph, flow, kept)
    graph.graph.lint()
    graph.recompile()
    graph.train(mode=False)
    return graph


def _replace_tensors(graph: GraphModule, flow: ChannelFlow, tensors: dict[str, Tensor], plan: SurgeryPlan) -> None:
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
