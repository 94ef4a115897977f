"""What a file says of itself: names of its free sizes, the example, what is fixed; and the oldest version of the format."""

from __future__ import annotations

import json
from typing import Any

import onnx

from l0prune.look.free_sizes import FreeSizes
from l0prune.onnx.freedom import renamed, size_names
from l0prune.onnx.onnx_model import DYNAMIC_BATCH_KEY, EXAMPLE_KEY, FIXED_KEY, LARGEST_KEY

__all__ = ["label_", "oldest_ir_version"]

_IR_OF_TYPES = {
    **dict.fromkeys((onnx.TensorProto.UINT4, onnx.TensorProto.INT4), 10),
    **{number: 9 for name, number in onnx.TensorProto.DataType.items() if name.startswith("FLOAT8")},
    **{
        number: 11 for name, number in onnx.TensorProto.DataType.items() if name.startswith(("FLOAT4", "UINT2", "INT2"))
    },
}
"""Version of the format that a type of numbers came with."""


def label_(model: Any, free: FreeSizes, fixed: dict[str, str], largest: dict[str, int]) -> None:
    """Name the free sizes, say what the example was and what is fixed, and drop notes on this machine's source files."""
    names = size_names(free)
    values = [*model.graph.inputs, *(value for node in model.graph.all_nodes() for value in node.outputs)]
    for value in values:
        value.metadata_props.clear()
        if names and value.shape is not None:
            value.shape = type(value.shape)([renamed(size, names) for size in value.shape])
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
    for value in model.graph.initializers.values():
        value.metadata_props.clear()
        value.shape = value.type = (
            None  # known from the tensor; tools that replace the tensor take a second note for a contradiction
        )
    model.metadata_props.clear()
    model.metadata_props[DYNAMIC_BATCH_KEY] = "true" if free.has_batch else "false"
    for symbol in free.lengths:
        if symbol in free.example:
            model.metadata_props[f"{EXAMPLE_KEY}{names[str(symbol)]}"] = str(free.example[symbol])
    model.metadata_props.update({f"{LARGEST_KEY}{name}": str(number) for name, number in largest.items()})
    if fixed:
        model.metadata_props[FIXED_KEY] = json.dumps(fixed)


def oldest_ir_version(model: Any) -> int:
    """The lowest version of the format that holds a graph, so that older runtimes read the file: 10 needs onnxruntime 1.18."""
    kinds = {value.const_value.dtype.value for graph in model.graphs() for value in graph.initializers.values()}
    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()]
    try:
        oldest = onnx.helper.find_min_ir_version_for(opsets, ignore_unknown=True)
    except ValueError:
        return model.ir_version
    return min(model.ir_version, max(oldest, *(_IR_OF_TYPES.get(kind, 0) for kind in kinds), 0))
