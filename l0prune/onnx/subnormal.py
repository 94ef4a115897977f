"""Weights below the normal range of their type, which slow many processors up to a hundred times: written as zero.

Training with weight decay leaves them in channels that die. They are smaller than 1.2e-38 in float32, so a network that needs
them does not exist; what reads them is slow all the same (onnxruntime issue 12959, pytorch issue 46180).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

__all__ = ["flush_file_", "flush_program_", "said"]

_TYPES = {TensorProto.FLOAT, TensorProto.DOUBLE}
"""Those of half the size have no such range to spare, or are computed in float32."""


def flush_program_(model: Any) -> int:
    """Zero such weights of a model of onnx_ir, in place; their number."""
    import onnx_ir

    n_flushed = 0
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None and value.const_value.dtype.value in _TYPES:
                array, n_found = _flushed(value.const_value.numpy())
                if n_found:
                    value.const_value = onnx_ir.tensor(array, name=value.name)
                n_flushed += n_found
    return n_flushed


def flush_file_(model: onnx.ModelProto) -> int:
    """Zero such weights of a model as a file holds it, in place; their number."""
    n_flushed = 0
    for tensor in _tensors(model.graph):
        if tensor.data_type in _TYPES:
            array, n_found = _flushed(numpy_helper.to_array(tensor))
            if n_found:
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
            n_flushed += n_found
    return n_flushed


def said(n_flushed: int, path: Any) -> str:
    """What was done, for the user."""
    return (
        f"{path}: {n_flushed:,} weights below the normal numbers of their type (1.2e-38 in float32) are written as 0, "
        "because many processors compute with them up to a hundred times more slowly"
    )


def _flushed(array: np.ndarray) -> tuple[np.ndarray, int]:
    """The array, a copy where something is below the range; how many were."""
    below = np.abs(array) < np.finfo(array.dtype).tiny
    below &= array != 0
    n_found = int(below.sum())
    return (np.where(below, array.dtype.type(0), array) if n_found else array), n_found


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Initializers and constants, those of inner graphs as well."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.HasField("t"):
                yield attribute.t
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)
