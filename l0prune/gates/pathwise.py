"""Reparameterised samples from their values and slopes, and evaluation in blocks that stay in the processor's cache."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from l0prune.gates.noise import at_least_single

__all__ = ["in_blocks", "pathwise"]

_BLOCK = 1 << 16


class _Pathwise(torch.autograd.Function):
    """Passes `value` through; its derivative in each parameter is what the caller computed."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *pairs: Tensor) -> Tensor:
        parameters, slopes = pairs[::2], pairs[1::2]
        ctx.save_for_backward(*slopes)
        ctx.parameters = [(p.shape, p.dtype, p.device) for p in parameters]
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        results: list[Tensor | None] = [None]
        for slope, (shape, dtype, device) in zip(ctx.saved_tensors, ctx.parameters, strict=True):
            results += [(gradient * slope).sum_to_size(shape).to(device, dtype), None]
        return tuple(results)


def pathwise(value: Tensor, parameters: Sequence[Tensor], slopes: Sequence[Tensor]) -> Tensor:
    """`value`, differentiable in parameters it was computed from without recording the computation.

    Args:
        value: Computed without gradients; takes on the dtype of the first parameter.
        parameters: They broadcast to the shape of value; further ones than there are slopes are left out.
        slopes: Derivative of value in each of the first parameters, in the shape of value.

    Returns:
        The same numbers as `value`; differentiable once.
    """
    flat = [tensor for pair in zip(parameters, slopes, strict=False) for tensor in pair]
    result: Tensor = _Pathwise.apply(value.to(parameters[0].dtype), *flat)
    return result


def in_blocks(function: Callable[..., tuple[Tensor, ...]], *arguments: Tensor) -> tuple[Tensor, ...]:
    """`function` applied to blocks of its arguments, so that what it computes on the way stays in the cache.

    The first argument comes in at least single precision.

    Args:
        function: Elementwise, tensors of one shape to a tuple of tensors of that shape.
        arguments: Tensors of one shape, at least one.

    Returns:
        What `function(*arguments)` returns.
    """
    first = arguments[0].to(at_least_single(arguments[0].dtype))
    arguments = (first, *arguments[1:])
    if first.device.type != "cpu" or first.numel() <= _BLOCK:
        return function(*arguments)
    flat = [argument.reshape(-1).split(_BLOCK) for argument in arguments]
    blocks = [function(*block) for block in zip(*flat, strict=True)]
    return tuple(torch.cat(parts).view(first.shape) for parts in zip(*blocks, strict=True))
