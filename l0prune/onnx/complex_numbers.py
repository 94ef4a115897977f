"""Complex numbers on their way into a file, which holds pairs of real ones: what the exporter lacks is said in what it has."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.export import ExportedProgram

__all__ = ["without_unsqueezed_"]

_aten = torch.ops.aten


def without_unsqueezed_(program: ExportedProgram) -> None:
    """Write dimensions that are added to complex tensors, as to the factors of a rotary embedding, as views, in place.

    The exporter has no `unsqueeze` of them. One whose shape has several sizes that vary is left.
    """
    graph = program.graph
    for node in list(graph.nodes):
        value = node.meta.get("val")
        is_added = node.target is _aten.unsqueeze.default and isinstance(value, Tensor) and value.is_complex()
        if not is_added:
            continue
        sizes = [size if isinstance(size, int) else -1 for size in value.shape]
        if sizes.count(-1) > 1:
            continue
        with graph.inserting_before(node):
            view = graph.call_function(_aten.view.default, (node.args[0], sizes))
        view.meta = dict(node.meta)
        node.replace_all_uses_with(view)
        graph.erase_node(node)
    program.graph_module.recompile()
