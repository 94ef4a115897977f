"""Tensors that code makes from numbers, and numbers that it reads from tensors: sizes, conditions, positions in memory."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node

from l0prune.ops.node import op_name
from l0prune.ops.operation import Op, Operation
from l0prune.ops.sizes import Cut, resized
from l0prune.ops.tracker import Labels

__all__: list[str] = []


@Operation(
    "zeros ones full empty new_zeros new_ones new_full new_empty",
    rewrite=resized("size"),
    sizes=Cut.changed,
    makers=(torch.zeros, torch.ones, torch.full, torch.empty,
            Tensor.new_zeros, Tensor.new_ones, Tensor.new_full, Tensor.new_empty),
)  # fmt: skip
def creation(op: Op) -> Labels:
    """A constant tensor: fixed sizes may shrink with what they are joined to."""
    size = op.arg("size")
    return [op.tracker.fresh(s) if isinstance(s, int) and s > 1 else None for s in size]


@Operation("zeros_like ones_like full_like empty_like rand_like randn_like")
def creation_like(op: Op) -> Labels:
    """A tensor of another's shape."""
    return op.labels(op.arg("self"))


@Operation("sym_size size")
def sym_size(op: Op) -> Labels:
    """The length of a dimension that varies: asking for it changes nothing, but the number must stay."""
    labels = op.labels(op.arg("self"))
    op.tracker.pin(labels[op.arg("dim") % len(labels)], "its size is used as a number")
    return []


@Operation("item _local_scalar_dense is_nonzero equal")
def read(op: Op) -> Labels:
    """What the number is used for is not in the graph."""
    for tensor in op.tensor_args():
        op.tracker.pin_all(op.labels(tensor), "a condition, or other code, reads it")
    return []


@Operation("sym_storage_offset sym_stride")
def place(op: Op) -> Labels:
    """Where a tensor lies in memory: a mere assertion about it holds after a cut as well; any other use pins."""
    if not _is_only_asserted(op.node):
        op.tracker.pin_all(op.labels(op.arg("self")), "its place in memory is used as a number")
    return []


_ASSERTIONS = {"_assert_scalar", "_assert_async"}


def _is_only_asserted(number: Node) -> bool:
    """Whether a number goes into comparisons with zero alone, and these into assertions."""
    comparisons = list(number.users)
    return all(
        op_name(node.target) == "ge"
        and node.args[1] == 0
        and all(op_name(user.target) in _ASSERTIONS for user in node.users)
        for node in comparisons
    )
