"""Names inside a file: those of its inputs and outputs are the caller's, and what is computed in between gives way."""

from __future__ import annotations

import onnx_ir

__all__ = ["keep_apart_"]


def keep_apart_(model: onnx_ir.Model) -> None:
    """Give another name, in place, to weights and results that are named like an input or output, or like each other.

    The exporter names results after the operations of torch, and then inputs and outputs as it is asked to: an argument `cat`,
    or an output `relu`, is then named twice, which no runtime reads.
    """
    graph = model.graph
    inside = [*graph.initializers.values(), *(value for node in graph.all_nodes() for value in node.outputs)]
    outside = [*graph.inputs, *graph.outputs]
    taken = {value.name for value in outside}
    known = taken | {value.name for value in inside}
    for value in inside:
        if not value.name or any(value is other for other in outside):
            continue
        if value.name in taken:
            number = next(n for n in range(2, len(known) + 3) if f"{value.name}_{n}" not in known)
            value.name = f"{value.name}_{number}"
            known.add(value.name)
        taken.add(value.name)
