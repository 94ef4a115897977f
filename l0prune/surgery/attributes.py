"""Find the integers of modules (numbers of heads, widths) that a cut changes, from the sizes in the graph that changed."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn
from torch.fx import Node

from l0prune.flow.channel_flow import ChannelFlow
from l0prune.flow.op import op_name
from l0prune.surgery.plan import AttributeChange

__all__ = ["find_attributes"]

_SIZE_ARGUMENTS = {"view", "reshape", "_unsafe_view", "unflatten", "expand", "split", "split_with_sizes", "slice", "narrow",
                   "pad", "constant_pad_nd", "zeros", "ones", "full", "new_zeros", "new_ones", "layer_norm", "rms_norm",
                   "group_norm", "chunk"}  # fmt: skip
_SKIPPED = {"training", "in_channels", "out_channels", "in_features", "out_features", "num_features", "num_channels",
            "normalized_shape", "groups", "embedding_dim"}  # fmt: skip


def find_attributes(flow: ChannelFlow, model: nn.Module, keep: npt.NDArray[np.bool_]) -> tuple[AttributeChange, ...]:
    """Attributes whose value equals a size in the module's own calls that the cut changes.

    A module that reshapes to (batch, positions, heads, head width) with `heads` gated holds the number of heads in some
    integer attribute; every integer of that module with the old value is changed to the new one, unless the same old value
    has two different new ones. The result is a guess: the caller verifies what it computes.
    """
    wanted: dict[tuple[str, int], set[int]] = defaultdict(set)
    kept = np.append(keep, True)
    for node in flow.captured.program.graph.nodes:
        if node.op != "call_function" or op_name(node.target) not in _SIZE_ARGUMENTS:
            continue
        for old, new in _changed_sizes(flow, node, kept):
            wanted[_owner(node), old].add(new)
    changes = []
    for (path, old), news in wanted.items():
        if len(news) != 1:
            continue
        new = news.pop()
        module = model.get_submodule(path)
        for name, value in list(vars(module).items()):
            if type(value) is int and value == old and name not in _SKIPPED and not name.startswith("_"):
                changes.append(AttributeChange(path, name, old, new))
    return tuple(changes)


def _owner(node: Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    paths = [str(entry[0]) for entry in stack.values() if not str(entry[0]).startswith("_empty_nn_module_stack")]
    return paths[-1] if paths else ""


def _changed_sizes(flow: ChannelFlow, node: Node, kept: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """(dense size, compact size) of every output dimension that the cut changes."""
    result: list[Any] = flow.nodes.get(node.name, [])
    parts = result if result and isinstance(result[0], (list, tuple)) else [result]
    changed = []
    for part in parts:
        for gates in part:
            if gates is not None:
                count = int(kept[gates].sum())
                if count != len(gates):
                    changed.append((len(gates), count))
    return changed
