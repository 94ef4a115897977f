"""What is left of an ONNX graph where dimensions are empty, as surgery leaves it: constants in the place of branches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx

__all__ = ["without_closed"]

_SOME = 0.01


def without_closed(graph: onnx.GraphProto, shapes: Mapping[str, Sequence[int]]) -> dict[str, npt.NDArray[np.float32]]:
    """Drop the nodes that have nothing to compute, and those whose result nothing needs then.

    Args:
        graph: Without initializers; its nodes change.
        shapes: Of the initializers, by name; with a zero where a dimension is empty.

    Returns:
        Name -> constant, for the results of contractions over nothing.
    """
    dead: set[str] = set()
    constants: dict[str, npt.NDArray[np.float32]] = {}
    kept = []
    for node in graph.node:
        sides = _sides(node, shapes)
        if sides is not None and (sides[0] == 0 or node.input[0] in dead) and sides[1] > 0:
            is_spatial = node.op_type in ("Conv", "ConvTranspose")
            rank = len(shapes[node.input[1]])
            constants[node.output[0]] = np.full(
                (1, sides[1], *([1] * (rank - 2))) if is_spatial else (sides[1],), _SOME, np.float32
            )
            continue
        if node.op_type == "Concat":
            live = [name for name in node.input if name not in dead]
            del node.input[:]
            node.input.extend(live)
            is_dead = not live
        else:
            is_dead = any(name in dead or 0 in shapes.get(name, ()) for name in node.input)
        if is_dead:
            dead.update(node.output)
        else:
            kept.append(node)
    needed = {output.name for output in graph.output}
    left = []
    for node in reversed(kept):
        if needed & set(node.output):
            needed.update(node.input)
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            left.append(copy)
    del graph.node[:]
    graph.node.extend(reversed(left))
    return {name: constant for name, constant in constants.items() if name in needed}


def _sides(node: onnx.NodeProto, shapes: Mapping[str, Sequence[int]]) -> tuple[int, int] | None:
    """Inputs and outputs of a contraction with a weight; None for other nodes."""
    shape = shapes.get(node.input[1], ()) if len(node.input) > 1 else ()
    if len(shape) < 2:
        return None
    if node.op_type == "MatMul":
        return shape[-2], shape[-1]
    if node.op_type == "Gemm":
        is_transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        return (shape[1], shape[0]) if is_transposed else (shape[0], shape[1])
    if node.op_type == "Conv":
        return shape[1], shape[0]
    return (shape[0], shape[1]) if node.op_type == "ConvTranspose" else None
