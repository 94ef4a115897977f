"""Convolutions: plain, depthwise, grouped, transposed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch.fx import Node

from l0prune.ops.contractions import contract, count_multiplications
from l0prune.ops.node import NoRuleError, argument_of, in_example, op_name, set_argument
from l0prune.ops.operation import Contraction, Op, Operation
from l0prune.ops.sizes import Cut, Pairs, Rewriter, Rows, SizedCall, Sizes
from l0prune.ops.tracker import NO_UNIT, IdArray, Labels, Split

__all__: list[str] = []

INSIDE_GROUP = "channels inside a convolution group stay together"


def _groups_left(cut: Cut, node: Node) -> tuple[int, int] | None:
    """(dense, compact) number of groups: as many as have inputs left, all if none has; None where that cannot change."""
    gates, groups = cut.gates(node.args[0]), argument_of(node, "groups")
    if not gates or gates[1] is None or groups == 1 or isinstance(groups, Node):
        return None
    return groups, cut.kept.count_groups(gates[1], groups) or groups


def _fewer_groups(rewriter: Rewriter, node: Node) -> None:
    if (found := _groups_left(rewriter, node)) is not None:
        set_argument(node, "groups", found[1])


def _numbers_of_groups(cut: Cut, node: Node) -> Pairs:
    found = _groups_left(cut, node)
    return [] if found is None else [found]


class GroupsCall(SizedCall):
    """A convolution; its only size is the number of groups, the seventh argument."""

    kind = "groups"
    functions = (F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)

    def given(self) -> dict[int, tuple[Any, ...]]:
        """The number of groups."""
        return {0: (self._argument(6, "groups", 1),)}

    def with_sizes(self, rows: Rows) -> GroupsCall:
        """The same convolution in another number of groups."""
        groups = rows[0][1]
        if len(self.args) > 6:
            return GroupsCall(self.func, (*self.args[:6], groups, *self.args[7:]), self.kwargs)
        return GroupsCall(self.func, self.args, {**self.kwargs, "groups": groups})

    def results(self, result: Any) -> list[tuple[int, Sizes]]:
        """Shape of the result, and number of groups."""
        return [(0, (*result.shape, *self.given()[0]))]

    @classmethod
    def of_node(cls, node: Node) -> Sizes | None:
        """The same of a node."""
        (shape,) = super().of_node(node) or ((),)
        return (*shape, in_example(argument_of(node, "groups")))

    @classmethod
    def rows(cls, cut: Cut, node: Node, item: int) -> Rows:
        """As in `SizedCall`."""
        found = _groups_left(cut, node)
        return () if found is None else ((0, found[1]),)


def _weights(node: Node) -> Contraction:
    """Parts of a convolution; the outputs of a group of a transposed one have their own part of the weight's rows."""
    general = op_name(node.target).rstrip("_") in ("convolution", "_convolution")
    transposed = argument_of(node, "transposed") if general else "transpose" in op_name(node.target)
    groups = argument_of(node, "groups")
    dim, out = (0, 1) if transposed else (1, 0)
    return Contraction(
        argument_of(node, "input"),
        argument_of(node, "weight"),
        None if transposed and groups != 1 else dim,
        out,
        argument_of(node, "bias"),
        channel=1,
        groups=groups if transposed else 1,
    )


@Operation(
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution _convolution",
    rewrite=_fewer_groups,
    sizes=_numbers_of_groups,
    call=GroupsCall,
    contracts=_weights,
)
def convolution(op: Op) -> Labels:
    """Weight `(out, in / groups, *kernel)`, `(in, out / groups, *kernel)` if transposed: it consumes inputs and makes outputs.

    A unit of several groups is one of them.
    """
    layer = _weights(op.node)
    x, weight, bias, groups, transposed = layer.activation, layer.weight, layer.bias, op.arg("groups"), layer.out == 1
    x_labels, w_labels = op.labels(x), op.labels(weight)
    x_shape, w_shape, out_shape = op.shape(x), op.shape(weight), op.shape()
    if len(x_shape) != len(w_shape):
        raise NoRuleError  # an input without a batch dimension
    for ids in w_labels[2:]:
        op.tracker.pin(ids, NO_UNIT)
    space = _space(op, x_labels[2:], x_shape[2:], w_shape[2:])
    positions = zip((x_shape if transposed else out_shape)[2:], space, strict=True)
    outer = [(out_shape[0], x_labels[0]), *positions, (math.prod(w_shape[2:]), None)]
    n_groups = in_example(groups)
    if groups == 1:
        contract(op, x_labels[1], weight, 1 - layer.out)
        out_ids = w_labels[layer.out]
        count_multiplications(op, [*outer, (x_shape[1], x_labels[1]), (out_shape[1], out_ids)])
    else:
        if isinstance(groups, Node):  # as many as the batch has entries, say: none of them may go
            out_ids, inside = _places_in_groups(op, x_labels[1], weight, n_groups, transposed=transposed)
        else:
            out_ids, inside = _grouped(op, x_labels[1], weight, n_groups, transposed=transposed)
        count_multiplications(op, [*outer, (x_shape[1] // n_groups, inside), (out_shape[1], out_ids)])
    if bias is not None:
        op.tracker.tie(op.labels(bias)[0], out_ids)
    return [x_labels[0], out_ids, *space]


def _space(op: Op, labels: Labels, sizes: tuple[int, ...], kernel: tuple[int, ...]) -> Labels:
    """Units along dimensions of space pass where the kernel has one position, taken at every step; elsewhere they are pinned."""
    out: Labels = []
    for k, ids in enumerate(labels):
        alone = kernel[k] == 1 and _at(op.arg("stride"), k) == 1 and _at(op.arg("padding"), k) == 0
        if alone and op.shape()[2 + k] == sizes[k]:
            out.append(ids)
        else:
            op.tracker.pin(ids, "convolved along it")
            out.append(None)
    return out


def _at(option: Any, dim: int) -> Any:
    """A stride or padding along one dimension of space: given for each, or one for all."""
    return option[dim if len(option) > 1 else 0] if isinstance(option, (list, tuple)) else option


def _grouped(
    op: Op, in_ids: IdArray | None, weight: Any, groups: int, *, transposed: bool
) -> tuple[IdArray | None, IdArray | None]:
    """Either whole groups are units, or, where those are all pinned, the channels at the same place of every group.

    Returns:
        Units of the outputs, and of the inputs of one group.
    """
    if in_ids is None:
        return _places_in_groups(op, None, weight, groups, transposed=transposed)
    if op.shape(op.arg("input"))[1] > groups:
        key, first = f"{op.node.name}:groups", op.labels(weight)[0]
        op.tracker.splits.append(Split(key, 2, in_ids if first is None else np.concatenate([in_ids, first])))
        if op.tracker.choices.get(key) == 1:
            return _places_in_groups(op, in_ids, weight, groups, transposed=transposed)
    return _whole_groups(op, in_ids, weight, groups, transposed=transposed), None


def _whole_groups(op: Op, in_ids: IdArray, weight: Any, groups: int, *, transposed: bool) -> IdArray | None:
    """The unit is a whole group: all its inputs and outputs, so that a removed group leaves `groups - 1`.

    Depthwise is the case of one input a group. No consumer is recorded: a group mixes nothing but its own unit.
    """
    first, second = op.labels(weight)[:2]
    op.tracker.pin(second, INSIDE_GROUP)
    if first is None:
        op.tracker.pin(in_ids, INSIDE_GROUP)
        return None
    out_ids = first
    if transposed:
        op.tracker.tie(in_ids, first)
        out_ids = op.tracker.fresh(op.shape()[1])
    op.tracker.tie_rows(np.concatenate([in_ids.reshape(groups, -1), out_ids.reshape(groups, -1)], axis=1))
    return out_ids


def _places_in_groups(
    op: Op, in_ids: IdArray | None, weight: Any, groups: int, *, transposed: bool
) -> tuple[IdArray, IdArray | None]:
    """The unit is a place in every group, of the inputs or of the outputs: all groups stay, and stay as long as each other."""
    rows = None if in_ids is None else in_ids.reshape(groups, -1).T
    if rows is not None:
        op.tracker.tie_rows(rows)
    inside = None if rows is None else rows[:, 0]
    first, second = op.labels(weight)[:2]
    out_ids = op.tracker.fresh(op.shape()[1])
    if transposed:
        contract(op, in_ids, weight, 0)
        outputs = None if second is None else np.tile(second, groups)
    else:
        contract(op, inside, weight, 1)
        outputs = first
    op.tracker.tie(outputs, out_ids, INSIDE_GROUP)
    op.tracker.tie_rows(out_ids.reshape(groups, -1).T)
    return out_ids, inside
