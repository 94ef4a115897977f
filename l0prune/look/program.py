"""Exported programs made ready to be followed: regions opened, unused ops left out, sizes that depend on data noted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.node import map_arg

from l0prune.ops.node import aliased

__all__ = ["drop_unused_", "forget_fake_results", "note_data_sizes_", "open_contexts_"]

_GRAD = torch.ops.higher_order.wrap_with_set_grad_enabled
_AUTOCAST = torch.ops.higher_order.wrap_with_autocast
_ENTER, _EXIT = torch.amp.autocast_mode._enter_autocast, torch.amp.autocast_mode._exit_autocast
_N_OPTIONS = {_GRAD: 1, _AUTOCAST: 4}
"""Arguments before the subgraph: whether gradients are on; or device type, dtype, enabled, cache enabled."""


def open_contexts_(program: ExportedProgram) -> None:
    """Put the ops of regions under `torch.no_grad` or `torch.autocast` into the graph itself, where rules see them.

    torch.export wraps such a region in a higher-order op with a graph of its own. What the program computes, and its gradients,
    stay the same.

    What leaves a region without gradients is detached. A region under autocast lies between an op that enters the context and
    one that leaves it. A region that writes into tensors in place, or has other subgraphs, is left as it is.

    Args:
        program: From torch.export; its graph and the names in its signature are changed.
    """
    for old, new in _open(program.graph_module):
        program.graph_signature.replace_all_uses(old, new)
    program.graph_module.delete_all_unused_submodules()
    program.graph_module.recompile()


def _open(module: GraphModule) -> list[tuple[str, str]]:
    """Names of values that are gone, with the names of those that took their place."""
    renamed = []
    for node in list(module.graph.nodes):
        if node.op == "call_function" and node.target in _N_OPTIONS:
            holder = node.args[_N_OPTIONS[node.target]]
            region = getattr(module, holder.target)
            _open(region)
            if not any(inner.op == "get_attr" or _writes(inner) for inner in region.graph.nodes):
                renamed += _splice(module, node, region)
                if not holder.users:
                    module.graph.erase_node(holder)
    return renamed


def _writes(node: Node) -> bool:
    return any(is_write for _, is_write in aliased(node))


def _splice(module: GraphModule, call: Node, region: GraphModule) -> list[tuple[str, str]]:
    """Copy the ops of `region` to the place of `call`, and use their values instead of its results."""
    graph, n_options = module.graph, _N_OPTIONS[call.target]  # type: ignore[index]
    options, operands = call.args[:n_options], call.args[n_options + 1 :]
    values: dict[Node, Any] = dict(zip(region.graph.find_nodes(op="placeholder"), operands, strict=True))
    ops = [node for node in region.graph.nodes if node.op == "call_function"]
    with graph.inserting_before(call):
        entered = _without_value(module, _ENTER, options) if ops and call.target is _AUTOCAST else None
        for node in ops:
            values[node] = graph.node_copy(node, values.__getitem__)
        results = map_arg(region.graph.output_node().args[0], values.__getitem__)
        if entered is not None:
            _without_value(module, _EXIT, (entered,))
        elif options == (False,):
            results = map_arg(results, lambda value: _detached(module, value))
    return _use_instead(module, call, results)


def _without_value(module: GraphModule, function: Callable[..., Any], args: tuple[Any, ...]) -> Node:
    node = module.graph.call_function(function, args)
    node.meta["val"] = None
    return node


def _detached(module: GraphModule, value: Node) -> Node:
    if not isinstance(value.meta.get("val"), torch.Tensor):
        return value
    node = module.graph.call_function(torch.ops.aten.detach.default, (value,))
    node.meta = dict(value.meta)
    return node


def _use_instead(module: GraphModule, call: Node, results: Any) -> list[tuple[str, str]]:
    renamed = []
    several = isinstance(results, (tuple, list))
    parts = [(user, results[user.args[1]]) for user in call.users] if several else [(call, results)]  # type: ignore[index]
    for old, new in parts:
        old.replace_all_uses_with(new)
        renamed.append((old.name, new.name))
        module.graph.erase_node(old)
    if several:
        module.graph.erase_node(call)
    return renamed


def forget_fake_results(program: ExportedProgram) -> None:
    """Empty the table of op results by which torch has found the sizes in a program.

    The sizes themselves, one `ShapeEnv` a program, stay in memory for good (torch 2.13: a symbol in a tensor's size is held
    from C++, where Python's collector sees no cycle). With their table a small network would leave four times as much.
    """
    for node in program.graph.nodes:
        shapes = getattr(getattr(node.meta.get("val"), "fake_mode", None), "shape_env", None)
        table = getattr(shapes, "fake_tensor_cache", None)
        if isinstance(table, dict):
            table.clear()
            return


def drop_unused_(program: ExportedProgram) -> None:
    """Take out ops that no output depends on, such as attention weights, averaged over heads, that nobody asked for.

    Those that some parameter is used for alone, such as a head whose result the model throws away, stay: a cut in place
    runs them too.
    """
    needed: set[Node] = set()
    for node in reversed(list(program.graph.nodes)):
        if node.op == "output" or node.is_impure() or any(user in needed for user in node.users):
            needed.add(node)
    parameters = program.graph_signature.inputs_to_parameters
    alone = [
        node
        for node in program.graph.nodes
        if node.name in parameters and node.users and not needed & node.users.keys()
    ]
    kept = set(alone)
    for node in program.graph.nodes:
        if any(source in kept for source in node.all_input_nodes):
            kept.add(node)
    program.graph.eliminate_dead_code(lambda node: node.is_impure() or node in kept)
    program.graph_module.recompile()


def note_data_sizes_(program: ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Give sizes that torch.export knows by a symbol alone the value that they have for the example.

    What a rule asks of a tensor of such a size, and what it costs, is then that of the example, as for every other free size.
    Where the program cannot be run (on the meta device there are no data) the sizes stay unknown.

    Args:
        program: From torch.export; hints of its symbols are set.
        args: Positional inputs it was exported with.
        kwargs: Keyword inputs.
    """
    unknown = [node for node in program.graph.nodes if any(_without_hint(size) for size in _sizes(node))]
    if not unknown:
        return
    inputs = program._graph_module_flat_inputs(args, kwargs)
    try:
        with torch.no_grad():
            _Noting(program.graph_module, set(unknown)).run(*inputs)
    except (RuntimeError, NotImplementedError):
        return


class _Noting(Interpreter):
    """Runs the graph, and notes the sizes of some results."""

    def __init__(self, module: torch.fx.GraphModule, wanted: set[Node]) -> None:
        super().__init__(module)
        self._wanted = wanted

    def run_node(self, n: Node) -> Any:
        """Run one node."""
        result = super().run_node(n)
        if n in self._wanted and isinstance(result, torch.Tensor):
            for size, number in zip(_sizes(n), result.shape, strict=True):
                if _without_hint(size):
                    size.node._hint = number
        return result


def _sizes(node: Node) -> tuple[Any, ...]:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()


def _without_hint(size: Any) -> bool:
    return isinstance(size, torch.SymInt) and size.node.hint is None
