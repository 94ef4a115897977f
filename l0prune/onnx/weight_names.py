"""Names of weights in a file: a matrix that the exporter has transposed is named after the parameter it is of."""

from __future__ import annotations

import hashlib
from collections import defaultdict

import numpy as np
import onnx_ir
import torch
from torch import nn

__all__ = ["name_transposed_"]

_MATRIX = 2
_FLOATS = (torch.float16, torch.float32, torch.float64)


def name_transposed_(model: onnx_ir.Model, torch_model: nn.Module) -> None:
    """Rename the matrices of products, in place, from a number of the exporter's to `PARAMETER_transposed`.

    So that a file says which of its products belongs to which layer. A matrix that is equal to several parameters, or to none,
    keeps its name; of a parameter with several names the last one counts, which is that of the head where it is tied to an
    embedding.

    Args:
        model: The file.
        torch_model: What it was exported from.
    """
    graph, tensors = model.graph, dict(torch_model.named_parameters(remove_duplicate=False))
    matrices = {}
    for node in graph:
        if node.op_type == "MatMul" and len(node.inputs) == _MATRIX:
            weight = node.inputs[1]
            if weight is not None and weight.is_initializer() and weight.name not in tensors:
                matrices[weight.name] = weight
    arrays = {name: value.const_value.numpy() for name, value in matrices.items() if value.const_value is not None}
    arrays = {name: array for name, array in arrays.items() if array.ndim == _MATRIX}
    wanted = {(array.shape, str(array.dtype)) for array in arrays.values()}
    of_content: dict[bytes, dict[int, str]] = defaultdict(dict)
    for name, tensor in tensors.items():
        if tensor.ndim == _MATRIX and tensor.dtype in _FLOATS:
            array = tensor.detach().cpu().numpy().T
            if (array.shape, str(array.dtype)) in wanted:
                of_content[_digest(array)][tensor.data_ptr()] = name
    for name, array in arrays.items():
        known = of_content.get(_digest(array), {})
        if len(known) == 1:
            new = f"{next(iter(known.values()))}_transposed"
            if new not in graph.initializers:
                matrices[name].name = new


def _digest(array: np.ndarray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest()
