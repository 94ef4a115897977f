"""Layers as linear maps from rows of numbers: what a product with a weight multiplies to make one position of its output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from l0prune.ops.node import NoRuleError, argument_of, op_name
from l0prune.ops.operation import operation_of

__all__ = ["Layer", "layer_of"]


@dataclass(frozen=True, eq=False)
class Layer:
    """A call of a linear layer or convolution: every position of its output is a weight times a row of its input.

    Attributes:
        node: The call.
        activation: What is multiplied.
        weight: The tensor that it is multiplied by.
        bias: What is added, or None.
        dim: Dimension of the weight that is contracted.
        out: Its dimension of outputs.
        channel: Dimension of the channels in input and result: 1 or -1.
        groups: Parts of the input, and of the output, that have weights of their own.
        transposed: Whether it is a transposed convolution.
    """

    node: Node
    activation: Node
    weight: Node
    bias: Node | None
    dim: int
    out: int
    channel: int
    groups: int = 1
    transposed: bool = False

    def matrices(self, weight: Tensor) -> list[Tensor]:
        """A weight as one matrix `(columns, outputs)` for each group."""
        if self.channel == -1:
            return [weight.movedim(self.dim, 0)]
        if self.transposed:
            return [part.movedim(1, -1).flatten(0, -2) for part in weight.chunk(self.groups, 0)]
        return [part.flatten(1).T for part in weight.chunk(self.groups, 0)]

    def weight_of(self, matrices: Sequence[Tensor], like: Tensor) -> Tensor:
        """The weight that `matrices` are those of, in the shape and precision of `like`."""
        if self.channel == -1:
            return matrices[0].movedim(0, self.dim).to(like)
        if self.transposed:
            first, second, *kernel = like.shape
            parts = [matrix.reshape(first // self.groups, *kernel, second).movedim(-1, 1) for matrix in matrices]
            return torch.cat(parts).to(like)
        return torch.cat([matrix.T for matrix in matrices]).reshape(like.shape).to(like)

    def n_columns(self, weight: Tensor) -> int:
        """Length of a row, of one group."""
        return weight.numel() // (weight.shape[self.out] if not self.transposed else weight.shape[1] * self.groups)

    def n_positions(self, result: Tensor) -> int:
        """Positions of a result."""
        return result.numel() // max(1, result.shape[self.channel])

    def outputs_at(self, result: Tensor, positions: Tensor) -> list[Tensor]:
        """The results at some positions, `(rows, outputs)` for each group."""
        rows = result.movedim(self.channel, -1).reshape(-1, result.shape[self.channel])[positions]
        return list(rows.chunk(self.groups, 1))

    def rows_at(self, activation: Tensor, result: Tensor, weight: Tensor, positions: Tensor) -> list[Tensor]:
        """What the weight multiplies to make the results at some positions, `(rows, columns)` for each group.

        Args:
            activation: The input of the call.
            result: Of its shape.
            weight: Of its shape.
            positions: Numbers of positions of the result, batch first, shape `(rows,)`.
        """
        if self.channel == -1:
            return [activation.reshape(-1, activation.shape[-1])[positions]]
        at, *places = torch.unravel_index(positions, (result.shape[0], *result.shape[2:]))
        kernel, n_space = weight.shape[2:], result.dim() - 2
        index: list[Any] = [at.view(-1, *[1] * n_space)]
        inside = torch.ones(1, dtype=torch.bool, device=activation.device)
        for d, place in enumerate(places):
            source, is_inside = self._sources(d, place, kernel[d], activation.shape[2 + d])
            shape = [-1, *[1] * n_space]
            shape[1 + d] = kernel[d]
            index.append(source.view(shape))
            inside = inside & is_inside.view(shape)
        taken = activation.movedim(1, -1)[tuple(index)] * inside.unsqueeze(-1)  # (rows, *kernel, channels)
        return [part.movedim(-1, 1).flatten(1) for part in taken.chunk(self.groups, -1)]

    def _sources(self, d: int, place: Tensor, kernel: int, size: int) -> tuple[Tensor, Tensor]:
        """Where in the input the kernel reads along a dimension of space, `(rows, kernel)`, and whether that is inside."""
        stride, dilation = (_along(self.node, name, d) for name in ("stride", "dilation"))
        taps = dilation * torch.arange(kernel, device=place.device)
        padding = self._padding(d, int(dilation) * (kernel - 1))
        if self.transposed:
            found = place[:, None] + padding - taps
            inside = (found % stride == 0) & (found >= 0) & (found < size * stride)
            return (found // stride).clamp(0, size - 1), inside
        found = place[:, None] * stride - padding + taps
        return found.clamp(0, size - 1), (found >= 0) & (found < size)

    def _padding(self, d: int, reach: int) -> int:
        padding = argument_of(self.node, "padding")
        if isinstance(padding, str):
            return reach // 2 if padding == "same" else 0
        return _along(self.node, "padding", d)


def _along(node: Node, name: str, d: int) -> int:
    """A stride, padding or dilation along one dimension of space: given for each, or one for all."""
    value = argument_of(node, name)
    found = value[d if len(value) > 1 else 0] if isinstance(value, (list, tuple)) else value
    if not isinstance(found, int):
        raise NoRuleError
    return found


def layer_of(node: Node) -> Layer | None:
    """The layer that a node of a graph calls with a weight that the graph holds; None for any other node."""
    contracts = operation_of(node.target).contracts if node.op == "call_function" else None
    if contracts is None:
        return None
    used = contracts(node)
    weight, bias = used.weight, used.bias
    if not (isinstance(used.activation, Node) and _is_held(weight) and (bias is None or _is_held(bias))):
        return None
    shape = weight.meta["val"].shape
    if any(node.kwargs.get(factor, 1) != 1 for factor in ("alpha", "beta")):  # of addmm
        return None
    if used.channel == -1:
        if len(shape) != 2:
            return None
        layer = Layer(node, used.activation, weight, bias, used.dim % 2, used.out % 2, -1)  # type: ignore[operator]
    else:
        general = op_name(node.target).rstrip("_") in ("convolution", "_convolution")
        transposed = argument_of(node, "transposed") if general else "transpose" in op_name(node.target)
        groups = argument_of(node, "groups")
        if not isinstance(groups, int) or used.activation.meta["val"].dim() != len(shape):
            return None
        dim = 0 if transposed else 1
        layer = Layer(node, used.activation, weight, bias, dim, 1 - dim, 1, groups, transposed)
    n_outputs = shape[layer.out] * (layer.groups if layer.transposed else 1)
    return layer if bias is None or bias.meta["val"].shape == (n_outputs,) else None


def _is_held(node: Any) -> bool:
    return isinstance(node, Node) and node.op == "get_attr" and isinstance(node.meta.get("val"), Tensor)
