"""Models that return plain tensors: what exporters ask for."""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from l0prune.errors import ExportError, first_line
from l0prune.model_call import ModelCall, output_names, output_tensors

__all__ = ["with_plain_outputs"]


def with_plain_outputs(model: nn.Module, call: ModelCall) -> tuple[nn.Module, list[str]]:
    """The model, wrapped where its outputs are not plain tensors, and a name for each output."""
    name = type(model).__name__
    shapes = [list(tensor.shape) for tensor in call.tensors]
    try:
        output = call(model)
    except Exception as error:
        raise ExportError(
            f"{name} does not run on the example inputs of shapes {shapes}: {first_line(error)}"
        ) from error
    tensors = output_tensors(output)
    if not tensors:
        raise ExportError(f"{name} returns no tensor (found {type(output).__name__}).")
    for index, tensor in enumerate(tensors):
        if tensor.dtype == torch.bfloat16:
            raise ExportError(f"{name}: output {index} is bfloat16, which onnxruntime's CPU lacks. Use model.float().")
        if tensor.is_floating_point() and bool(tensor.isnan().any()):
            raise ExportError(f"{name}: output {index} holds NaN for the example inputs; do the weights hold NaN?")
    plain = all(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(output))
    return (model if plain else _PlainOutputs(model), output_names(output))


class _PlainOutputs(nn.Module):
    """A model that returns the tensors of its outputs as a plain tuple; its forward keeps the model's signature."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training

        @functools.wraps(model.forward)
        def forward(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
            return tuple(output_tensors(self.model(*args, **kwargs)))

        self.forward = forward
