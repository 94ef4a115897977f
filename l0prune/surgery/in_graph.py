"""Cut a model in its exported graph: every size in the graph becomes the count of the indices that stay."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from l0prune.flow.channel_flow import ChannelFlow
from l0prune.input_sizes import InputSizes, check_inputs_
from l0prune.kept import DimensionGates, GateArray, Kept
from l0prune.ops.op import node_shape, op_name
from l0prune.surgery.dead_branches import drop_dead_branches
from l0prune.surgery.graph_model import GraphModel
from l0prune.surgery.graph_precision import captured_precision, convert_types_, precision_of, require_convertible
from l0prune.surgery.plan import SurgeryPlan

__all__ = ["cut_in_graph"]

aten = torch.ops.aten


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
    rewriter = _Rewriter(flow, kept, graph)
    for node in list(graph.graph.nodes):
        if node.op == "call_function":
            rewriter.rewrite(node)
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


@dataclass(eq=False)
class _Rewriter:
    flow: ChannelFlow
    kept: Kept
    graph: GraphModule
    n_selections: int = 0

    def __post_init__(self) -> None:
        self._scaled: dict[tuple[Node, Fraction], Node] = {}

    def gates(self, node: Any) -> list[DimensionGates]:
        """Gates of each dimension of a node's (single) output, or of a parameter."""
        if not isinstance(node, Node):
            return []
        if node.op == "get_attr":
            name = str(node.target)
            return list(self.flow.tensors.get(self.flow.aliases.get(name, name), ()))
        return self.flow.nodes.get(node.name, [])

    def rewrite(self, node: Node) -> None:
        """Bring the literal sizes of one node up to date."""
        handler = _HANDLERS.get(op_name(node.target)) or _HANDLERS.get(op_name(node.target).rstrip("_"))
        if handler is not None:
            handler(self, node)

    def sizes(self, sizes: Any, gates: list[DimensionGates]) -> list[Any]:
        """A shape with the counts of what stays in its gated dimensions; an inferred size stays inferred."""
        return [size if g is None else self.size(size, g) for size, g in zip(sizes, gates, strict=True)]

    def size(self, size: Any, gates: GateArray) -> Any:
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

    def argument(self, node: Node, name: str) -> Any:
        """An argument by its schema name, or the schema's default."""
        for position, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
            if argument.name == name:
                if name in node.kwargs:
                    return node.kwargs[name]
                return node.args[position] if position < len(node.args) else argument.default_value
        raise KeyError(name)

    def set(self, node: Node, name: str, value: Any) -> None:
        """Set an argument by its schema name."""
        for position, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
            if argument.name == name:
                if position < len(node.args):
                    node.args = (*node.args[:position], value, *node.args[position + 1 :])
                else:
                    node.kwargs = {**node.kwargs, name: value}
                return
        raise KeyError(name)

    def replace(self, node: Node, target: Callable[..., Any], *args: Any) -> None:
        """Turn a node into another call."""
        node.target, node.args, node.kwargs = target, args, {}


def _measured(size: Node) -> Iterator[tuple[Node, int]]:
    """The tensor dimensions that a symbolic size is computed from."""
    if size.target is aten.sym_size.int:
        yield size.args[0], size.args[1]  # type: ignore[misc]
        return
    for source in size.all_input_nodes:
        yield from _measured(source)


def _reshape(r: _Rewriter, node: Node) -> None:
    """New sizes; and always a reshape, because a view fails on tensors in channels-last order."""
    if node.target is aten.view.dtype:
        return
    gates = r.gates(node)
    name = "size" if op_name(node.target) in ("view", "_unsafe_view") else "shape"
    sizes = r.argument(node, name)
    r.replace(node, aten.reshape.default, node.args[0], r.sizes(sizes, gates) if gates else sizes)


def _reshape_freely(r: _Rewriter, node: Node) -> None:
    """Flatten and unflatten name sizes only for some dimensions: write the whole shape, inferring at most one."""
    gates = r.gates(node)
    if op_name(node.target) == "unflatten" and any(g is not None for g in gates):
        dim = r.argument(node, "dim") % (len(r.gates(node.args[0])) or 1)
        sizes = r.argument(node, "sizes")
        r.set(node, "sizes", r.sizes(sizes, gates[dim : dim + len(sizes)]))


def _squeeze(r: _Rewriter, node: Node) -> None:
    """Only dimensions of the dense model's size one go, not those of which one index is left."""
    source = node.args[0]
    gates = r.gates(source)
    if all(g is None for g in gates):
        return
    shape = node_shape(source)
    dims: Any = node.args[1] if len(node.args) > 1 else list(range(len(shape)))
    chosen = {d % len(shape) for d in ([dims] if isinstance(dims, int) else dims)}
    gone = sorted(d for d in chosen if shape[d] == 1)
    if gone:
        r.replace(node, aten.squeeze.dims, source, gone)
    else:
        node.replace_all_uses_with(source)  # type: ignore[arg-type]
        r.graph.graph.erase_node(node)


def _expand(r: _Rewriter, node: Node) -> None:
    gates = r.gates(node)
    if any(g is not None for g in gates):
        r.set(node, "size", r.sizes(r.argument(node, "size"), gates))


def _slice(r: _Rewriter, node: Node) -> None:
    source = r.gates(node.args[0])
    dim = r.argument(node, "dim") % max(len(source), 1)
    gates = source[dim] if source else None
    if gates is None:
        return
    if op_name(node.target) == "narrow":
        start = r.argument(node, "start") % len(gates)
        stop, step = start + r.argument(node, "length"), 1
    else:
        start, stop, step = r.argument(node, "start"), r.argument(node, "end"), r.argument(node, "step")
    kept = r.kept[gates]
    chosen = np.arange(len(kept))[slice(start, stop, step)]
    if len(chosen) == len(kept):
        return  # all of it, however long it is
    places = (np.cumsum(kept) - 1)[chosen[kept[chosen]]]
    steps = np.unique(np.diff(places))
    if len(places) and len(steps) <= 1:
        stride = int(steps[0]) if len(steps) else 1
        r.replace(node, aten.slice.Tensor, node.args[0], dim, int(places[0]), int(places[-1]) + 1, stride)
    else:
        _select_indices(r, node, dim, places)


def _select_indices(r: _Rewriter, node: Node, dim: int, places: npt.NDArray[np.int64]) -> None:
    name = f"_kept_indices_{r.n_selections}"
    r.n_selections += 1
    r.graph.register_buffer(name, torch.from_numpy(places.copy()), persistent=False)
    with r.graph.graph.inserting_before(node):
        indices = r.graph.graph.get_attr(name)
    r.replace(node, aten.index_select.default, node.args[0], dim, indices)


def _split(r: _Rewriter, node: Node) -> None:
    source = r.gates(node.args[0])
    dim = r.argument(node, "dim") % max(len(source), 1)
    if not source or source[dim] is None:
        return
    parts = r.flow.nodes[node.name]
    values = node.meta["val"]
    sizes = [
        r.kept.count(p[dim]) if p[dim] is not None else int(v.shape[dim]) for p, v in zip(parts, values, strict=True)
    ]
    r.replace(node, aten.split_with_sizes.default, node.args[0], sizes, dim)


def _convolution(r: _Rewriter, node: Node) -> None:
    """As many groups as have inputs left; all of those whose number varies."""
    groups = r.argument(node, "groups")
    gates = r.gates(node.args[0])
    if isinstance(groups, int) and groups > 1 and gates and gates[1] is not None:
        r.set(node, "groups", r.kept.count_groups(gates[1], groups))


def _layer_norm(r: _Rewriter, node: Node) -> None:
    gates = r.gates(node)
    if gates and gates[-1] is not None:
        r.set(node, "normalized_shape", [r.kept.count(gates[-1])])


def _group_norm(r: _Rewriter, node: Node) -> None:
    gates, groups = r.gates(node), r.argument(node, "num_groups")
    if gates and gates[1] is not None and groups > 1:
        r.set(node, "num_groups", r.kept.count(gates[1]) // (len(gates[1]) // groups))


def _pad(r: _Rewriter, node: Node) -> None:
    gates = r.gates(node)
    amounts = list(r.argument(node, "pad"))
    for i in range(len(amounts) // 2):
        g = gates[len(gates) - 1 - i] if gates else None
        if g is not None and (amounts[2 * i] or amounts[2 * i + 1]):
            kept = r.kept[g]
            before, after = amounts[2 * i], amounts[2 * i + 1]
            amounts[2 * i] = int(kept[:before].sum())
            amounts[2 * i + 1] = int(kept[len(kept) - after :].sum())
    r.set(node, "pad", amounts)


def _creation(r: _Rewriter, node: Node) -> None:
    gates = r.gates(node)
    if any(g is not None for g in gates):
        r.set(node, "size", r.sizes(r.argument(node, "size"), gates))


_HANDLERS: dict[str, Callable[[_Rewriter, Node], None]] = {
    **dict.fromkeys(("view", "reshape", "_unsafe_view"), _reshape),
    **dict.fromkeys(("unflatten",), _reshape_freely),
    "squeeze": _squeeze,
    **dict.fromkeys(("expand", "broadcast_to"), _expand),
    **dict.fromkeys(("slice", "narrow"), _slice),
    **dict.fromkeys(("split", "chunk", "split_with_sizes", "tensor_split", "unsafe_split", "unsafe_chunk"), _split),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
                     "convolution"), _convolution),
    **dict.fromkeys(("layer_norm", "rms_norm"), _layer_norm),
    "group_norm": _group_norm,
    **dict.fromkeys(("pad", "constant_pad_nd"), _pad),
    **dict.fromkeys(("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty"), _creation),
}  # fmt: skip
