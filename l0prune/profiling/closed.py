"""What is left of an ONNX graph where dimensions are empty, as surgery leaves it: constants in the place of branches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx

__all__ = ["without_closed"]

_SOME = 0.01
_IMAGE = 4


def without_closed(
    graph: onnx.GraphProto, shapes: Mapping[str, Sequence[int]], ranks: Mapping[str, int]
) -> dict[str, npt.NDArray[np.float32]]:
    """Drop the nodes that have nothing to compute, and those whose result nothing needs then.

    What is left of a branch is added to an image by a batch norm, as `onnx/channel_constants.py` writes it.

    Args:
        graph: Without initializers; its nodes change.
        shapes: Of the initializers, by name; with a zero where a dimension is empty.
        ranks: Numbers of dimensions of other values, as far as they are known.

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
            before = 1 if is_spatial else max(ranks.get(node.output[0], 1) - 1, 0)
            shape = [1] * before + [sides[1]] + [1] * (rank - 2 if is_spatial else 0)
            constants[node.output[0]] = np.full(shape, _SOME, np.float32)
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
    graph.node.extend(_as_norm(node, constants) for node in reversed(left))
    used = {name for node in graph.node for name in node.input}
    return {name: constant for name, constant in constants.items() if name in used}


def _as_norm(node: onnx.NodeProto, constants: dict[str, npt.NDArray[np.float32]]) -> onnx.NodeProto:
    """A batch norm in the place of the sum of an image and a constant; its tensors join the constants."""
    added = [name for name in node.input if name in constants and constants[name].ndim == _IMAGE]
    if node.op_type != "Add" or len(added) != 1:
        return node
    image = next(name for name in node.input if name not in added)
    shift = constants[added[0]].reshape(-1)
    names = [f"{node.output[0]}_{part}" for part in ("scale", "bias", "mean", "variance")]
    constants |= dict(zip(names, (np.ones_like(shift), shift, np.zeros_like(shift), np.ones_like(shift)), strict=True))
    return onnx.helper.make_node("BatchNormalization", [image, *names], node.output, node.name, epsilon=1e-5)


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
