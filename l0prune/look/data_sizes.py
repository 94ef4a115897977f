"""Sizes that depend on data, such as the number of entries that a mask selects: what they were in the example."""

from __future__ import annotations

from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Interpreter, Node

__all__ = ["note_data_sizes_"]


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
