"""The precision of a graph: types that were written into it when it was captured follow those of its parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Graph, Node
from torch.fx.node import map_aggregate

from l0prune.errors import ConfigError
from l0prune.ops.node import op_name

__all__ = ["captured_precision", "convert_types_", "precision_of", "require_convertible"]

_CASTS = {"to", "_to_copy", "type_as"}


def precision_of(module: nn.Module) -> torch.dtype | None:
    """The floating-point type of all parameters; None if they have none or several."""
    kinds = {parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()}
    return kinds.pop() if len(kinds) == 1 else None


def captured_precision(program: ExportedProgram) -> torch.dtype | None:
    """The same of a program when it was captured; its parameters are the model's own, and may have been converted since."""
    parameters = program.graph_signature.inputs_to_parameters
    values = [node.meta.get("val") for node in program.graph.nodes if node.name in parameters]
    kinds = {value.dtype for value in values if isinstance(value, Tensor) and value.is_floating_point()}
    return kinds.pop() if len(kinds) == 1 else None


def require_convertible(graph: Graph, old: torch.dtype, new: torch.dtype) -> None:
    """Refuse a lower precision where the code may have asked for single precision on purpose, as norms and softmax do.

    A cast to the type that a number has already is all that a graph keeps of that.

    Raises:
        ConfigError: with the first such cast.
    """
    if old != torch.float32 or torch.finfo(new).bits >= torch.finfo(old).bits:
        return
    for node in graph.nodes:
        source = node.args[0].meta.get("val") if node.args and isinstance(node.args[0], Node) else None
        if _is_cast(node, old) and isinstance(source, Tensor) and source.dtype == old:
            raise ConfigError(
                f"this graph casts to {old} in {node.name!r}, and only its class knows whether that follows the weights or is on"
                f" purpose: load it with base= and convert that to {new}, or leave it and use torch.autocast"
            )


def convert_types_(graph: Graph, old: torch.dtype, new: torch.dtype) -> None:
    """Write the new type wherever a node names the old one, and its smallest and largest number in the place of the old ones."""
    limits = {torch.finfo(old).min: torch.finfo(new).min, torch.finfo(old).max: torch.finfo(new).max}

    def converted(value: Any) -> Any:
        if value is old:
            return new
        return limits.get(value, value) if type(value) is float else value

    for node in graph.nodes:
        if node.op == "call_function":
            node.args = map_aggregate(node.args, converted)
            node.kwargs = map_aggregate(node.kwargs, converted)


def _is_cast(node: Node, dtype: torch.dtype) -> bool:
    return (
        node.op == "call_function"
        and op_name(node.target) in _CASTS
        and any(value is dtype for value in (*node.args, *node.kwargs.values()))
    )
