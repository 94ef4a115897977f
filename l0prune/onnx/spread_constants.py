"""A number for each channel that is spread over an image before it is added, is added as it is: the sum spreads it.

What stands for a dropped module returns its full shape where the code around it writes into it.
"""

import onnx_ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

__all__ = ["gather_constants_"]


def gather_constants_(model: onnx_ir.Model) -> None:
    """Let sums in the main graph read such constants as they were, and drop what only spread them, in place."""
    found = False
    for node in list(model.graph):
        if (node.domain, node.op_type) == ("", "Expand") and _is_constant(node.inputs[0]):
            for user, position in list(node.outputs[0].uses()):
                other = user.inputs[1 - position] if len(user.inputs) == 2 else None
                if user.op_type == "Add" and other is not None and _is_as_large(other, user.outputs[0]):
                    user.replace_input_with(position, node.inputs[0])
                    found = True
    if found:
        RemoveUnusedNodesPass()(model)


def _is_constant(value: onnx_ir.Value | None) -> bool:
    return value is not None and value.const_value is not None


def _is_as_large(value: onnx_ir.Value, total: onnx_ir.Value) -> bool:
    """Whether a sum has the size of one operand whatever the other is."""
    return value.shape is not None and total.shape is not None and list(value.shape) == list(total.shape)
