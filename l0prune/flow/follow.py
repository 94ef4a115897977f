"""Walk an exported graph once, applying the rule of every op to the unit ids of its inputs."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from l0prune.errors import first_line
from l0prune.look.capture import SEALED, Captured, lies_in
from l0prune.look.recording import number_of_paths, path_of
from l0prune.look.watching import fixed_dimensions
from l0prune.ops.node import NoRuleError, module_of, node_shape
from l0prune.ops.operation import UNKNOWN, Op, Origin, Result, operation_of
from l0prune.ops.tracker import Labels, Tracker

__all__ = ["Followed", "follow", "restrict_to_recorded", "tensor_names"]

UNREACHED = "as wide as a layer that the example inputs do not reach"


@dataclass(eq=False)
class Followed:
    """Unit ids of every tensor in the graph.

    Attributes:
        tracker: Ties, pins, consumers, norms and costs.
        tensors: Labels of every parameter, buffer and constant by its name in the program.
        nodes: Labels of every node's output (a list of labels for several outputs).
        unknown: Ops without a rule, with the number of their uses.
    """

    tracker: Tracker
    tensors: dict[str, Labels] = field(default_factory=dict)
    nodes: dict[Node, Result] = field(default_factory=dict)
    unknown: dict[str, int] = field(default_factory=dict)


def tensor_names(program: ExportedProgram) -> dict[str, str]:
    """Placeholder name -> name of the parameter, buffer or constant behind it."""
    signature = program.graph_signature
    return {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }


def follow(
    program: ExportedProgram,
    *,
    aliases: dict[str, str],
    ignore: Iterable[str],
    choices: dict[str, int],
    query_heads: bool = False,
    sealed: Collection[str] = (),
) -> Followed:
    """Follow unit ids through `program`.

    Args:
        program: From torch.export, in evaluation mode.
        aliases: Other names of a shared tensor -> the one name it is known by.
        ignore: Module or parameter names whose units are pinned.
        choices: For ambiguous views, which candidate axis carries the ids.
        query_heads: Whether query heads within the groups of grouped-query attention are the units.
        sealed: Names of modules whose tensors stay as they are.

    Returns:
        Labels for all tensors and what the rules recorded.
    """
    followed = Followed(Tracker(choices, query_heads))
    origins: dict[Node, Origin] = {}
    names = tensor_names(program)
    kept = {**dict.fromkeys(sealed, SEALED), **dict.fromkeys(ignore, "ignored by name")}
    signature = program.graph_signature
    constants = frozenset(signature.inputs_to_lifted_tensor_constants.values())
    transient = frozenset(signature.non_persistent_buffers)
    for node in program.graph.nodes:
        if node.op == "placeholder":
            name = names.get(node.name)
            _place(followed, node, name, aliases, kept)
            if name is not None and name not in constants:  # a constant of the code cannot be scaled in the model
                learned = node.name in signature.inputs_to_parameters
                _give_origin(origins, node, aliases.get(name, name), saved=name not in transient, learned=learned)
        elif node.op == "call_function":
            followed.nodes[node] = _apply(followed, origins, node, program.state_dict)
            if (
                sealed
                and not operation_of(node.target).is_pointwise
                and any(lies_in(module_of(node), path) for path in sealed)
            ):
                for touched in (node, *node.all_input_nodes):
                    _pin_result(followed.tracker, followed.nodes.get(touched), SEALED)  # its code may name sizes
        elif node.op == "output":
            followed.tracker.op = ""
            for source in node.all_input_nodes:
                _pin_result(followed.tracker, followed.nodes.get(source), "model output")
    return followed


def _place(followed: Followed, node: Node, name: str | None, aliases: dict[str, str], kept: dict[str, str]) -> None:
    try:
        shape = node_shape(node)
    except NoRuleError:
        return
    if name is None:
        followed.nodes[node] = _no_labels(len(shape))
        return
    name = aliases.get(name, name)
    if name not in followed.tensors:
        followed.tensors[name] = followed.tracker.fresh_labels(shape)
        known_as = [name, *(other for other, first in aliases.items() if first == name)]
        for module, reason in kept.items():
            if any(lies_in(n, module) for n in known_as):
                followed.tracker.pin_all(followed.tensors[name], reason)
    followed.nodes[node] = followed.tensors[name]


def _give_origin(origins: dict[Node, Origin], node: Node, name: str, *, saved: bool, learned: bool) -> None:
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor):
        scalable = saved and (value.is_floating_point() or value.is_complex())
        origins[node] = Origin(name, tuple(range(value.dim())), scalable, learned)


def _apply(followed: Followed, origins: dict[Node, Origin], node: Node, tensors: Mapping[str, Any]) -> Result:
    if node.target is operator.getitem:
        if node.args[0] in origins:
            origins[node] = origins[node.args[0]]  # type: ignore[index]
        return _getitem(followed, node)
    op = Op(node, followed.tracker, followed.nodes, origins, tensors)
    followed.tracker.op = op.name
    operation = operation_of(node.target)
    reason = f"no rule for {node.target}"
    if operation is not UNKNOWN:
        if operation.normalises is not None and operation.normalises.by_weight:
            followed.tracker.count_norm(operation.normalises.kind, op.name_of(op.arg("weight")))
        recorded = followed.tracker.recorded
        try:
            return operation.rule(op)
        except NoRuleError:
            pass
        except Exception as error:  # noqa: BLE001 - the last line: a rule that fails is as good as none
            reason = failure_of_rule(node, error)
            followed.tracker.forget_since(recorded)
    return _without_rule(followed, node, reason)


def failure_of_rule(node: Node, error: Exception) -> str:
    """Why the units that an op touches are pinned, if its rule does not expect what it meets, such as a size that varies."""
    return f"the rule for {node.target} fails: {first_line(error, named=True)}"


def _getitem(followed: Followed, node: Node) -> Result:
    source, position = node.args
    result = followed.nodes.get(source)  # type: ignore[arg-type]
    if result and isinstance(result[0], list):
        return result[position]  # type: ignore[index, return-value]
    return _blank(node.meta.get("val"))


def _without_rule(followed: Followed, node: Node, reason: str) -> Result:
    """No rule: everything the op touches is pinned, so it costs opportunity and never correctness."""
    target = str(node.target)
    labelled = False
    for source in node.all_input_nodes:
        labelled |= _pin_result(followed.tracker, followed.nodes.get(source), reason)
    if labelled:
        followed.unknown[target] = followed.unknown.get(target, 0) + 1
    return _blank(node.meta.get("val"))


def _pin_result(tracker: Tracker, result: Result | None, reason: str) -> bool:
    """Pin all units of a node's output(s); says whether there were any."""
    found = False
    for part in result or []:
        for ids in part if isinstance(part, list) else [part]:
            tracker.pin(ids, reason)
            found |= ids is not None
    return found


def _blank(value: Any) -> Result:
    """Labels of an output nothing is known about: no units."""
    if isinstance(value, torch.Tensor):
        return _no_labels(value.dim())
    if isinstance(value, (tuple, list)):
        return [_no_labels(v.dim() if isinstance(v, torch.Tensor) else 0) for v in value]
    return _no_labels(0)


def _no_labels(n_dims: int) -> Labels:
    labels: Labels = [None] * n_dims
    return labels


def restrict_to_recorded(followed: Followed, captured: Captured, ignore: Iterable[str] = ()) -> None:
    """Pin what cannot be cut in place, what may meet layers on paths unseen, and what several paths normalise in another order.

    The multiplications of the example's path alone are counted.

    Args:
        followed: The labels; pins are added to its tracker.
        captured: The recorded program they belong to.
        ignore: Module or parameter names; layers of these names are known not to be reached.
    """
    tracker, program = followed.tracker, captured.program
    tracker.op = ""
    names = program.graph_signature.inputs_to_parameters
    ignored = tuple(ignore)
    for constant in program.constants:
        tracker.pin_all(followed.tensors[constant], "a constant of the code, which cannot be cut in place")
    unreached: set[int] = set()
    for node in program.graph.nodes:
        if node.op == "call_function" and operation_of(node.target).makers:
            for dim in fixed_dimensions(node):
                tracker.pin(followed.nodes[node][dim], "made at full size by the code")  # type: ignore[arg-type]
        name = names.get(node.name) if node.op == "placeholder" else None
        if name is not None and not node.users and not any(lies_in(name, n) for n in ignored):
            unreached |= set(node.meta["val"].shape[:2]) - {0, 1}
    for labels in followed.tensors.values():
        for ids in labels:
            if ids is not None and len(ids) in unreached:
                tracker.pin(ids, UNREACHED)
    if number_of_paths(program) > 1:
        for norm in tracker.norms:
            if norm.weight is None:
                tracker.pin(norm.ids, "normalised without a weight, in another order on each path")
    of_example = {node.name for node in program.graph.nodes if path_of(node) == 0}
    tracker.multiplications[:] = [m for m in tracker.multiplications if m.node in of_example]
