"""A number that is added to each channel is written as a batch norm, which onnxruntime computes in its layout of blocks.

A residual branch that was dropped leaves the constant that it added. For the sum of an image and a constant onnxruntime goes
back to the plain layout, and the sums after it are no longer fused into the convolutions before them; a norm stays in blocks.
"""

from typing import Any

import numpy as np
import onnx_ir

__all__ = ["write_as_norms_"]

_EPSILON = 1e-5
"""The least that some runtimes take; the variance is as much less than 1."""


def write_as_norms_(model: onnx_ir.Model) -> None:
    """Replace such sums in the main graph, in place."""
    graph = model.graph
    for node in list(graph):
        found = _image_and_constant(node)
        if found is None:
            continue
        image, added = found
        name = node.outputs[0].name
        constant = np.asarray(added.const_value.numpy()).reshape(-1)
        tensors = {
            "scale": np.ones_like(constant),
            "bias": constant,
            "mean": np.zeros_like(constant),
            "variance": np.full_like(constant, 1 - _EPSILON),
        }
        values = []
        for suffix, array in tensors.items():
            tensor = onnx_ir.tensor(array, name=f"{name}_{suffix}")
            value = onnx_ir.Value(name=tensor.name, const_value=tensor, type=onnx_ir.TensorType(tensor.dtype))
            value.shape = onnx_ir.Shape(array.shape)
            graph.register_initializer(value)
            values.append(value)
        norm = onnx_ir.node("BatchNormalization", [image, *values], {"epsilon": _EPSILON}, name=node.name)
        onnx_ir.convenience.replace_nodes_and_values(graph, node, [node], [norm], node.outputs, norm.outputs)
        if added.is_initializer() and not added.uses():
            del graph.initializers[added.name]


def _image_and_constant(node: onnx_ir.Node) -> tuple[onnx_ir.Value, Any] | None:
    """What is added up, where that is an image (N, C, H, W) in float32 and a number for each of its channels."""
    if (node.domain, node.op_type) not in (("", "Add"), ("ai.onnx", "Add")):
        return None
    first, second = node.inputs
    for image, constant in ((first, second), (second, first)):
        if image is None or constant is None or constant.const_value is None or image.const_value is not None:
            continue
        tensor, shape = constant.const_value, image.shape
        if tensor.dtype != onnx_ir.DataType.FLOAT or shape is None or len(shape) != 4:
            continue
        if tuple(tensor.shape) in ((1, shape[1], 1, 1), (shape[1], 1, 1)):
            return image, constant
    return None
