"""Find the integers of modules (numbers of heads, widths) that a cut changes, from the sizes in the graph that changed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn
from torch.fx import Node

from l0prune.flow.channel_flow import ChannelFlow
from l0prune.flow.op import op_name, varies
from l0prune.surgery.plan import AttributeChange

__all__ = ["GUESSES", "find_attributes"]

GUESSES = ("in order", "backwards", "with config")
"""Ways to match integers to sizes, in the order they are to be tried."""

_PADS = {"pad", "constant_pad_nd"}
_SIZE_ARGUMENTS = {"view", "reshape", "_unsafe_view", "unflatten", "expand", "split", "split_with_sizes", "slice", "narrow",
                   "zeros", "ones", "full", "new_zeros", "new_ones", "layer_norm", "rms_norm", "group_norm", "chunk",
                   *_PADS}  # fmt: skip
_SKIPPED = {"training", "in_channels", "out_channels", "in_features", "out_features", "num_features", "num_channels",
            "normalized_shape", "groups", "embedding_dim"}  # fmt: skip
_NORM_DIMENSION = {"layer_norm": -1, "rms_norm": -1, "group_norm": 1, "instance_norm": 1}


def find_attributes(
    flow: ChannelFlow, model: nn.Module, keep: npt.NDArray[np.bool_], *, guess: str = GUESSES[0]
) -> tuple[AttributeChange, ...]:
    """Attributes whose value equals a size in the module's own calls that the cut changes.

    A module that reshapes to (batch, positions, heads, head width) with `heads` gated holds the number of heads in some
    integer attribute; every integer of that module with the old value is changed to the new one. Where one old value has
    several new ones (padding before and after), integers are matched to them in order if there are as many; or backwards, as
    layers name their output before their input. A module may also read the integers of its `config`. Norms hold their width
    and number of groups under names of their own. The result is a guess: the caller verifies what it computes.
    """
    wanted: dict[tuple[str, int], list[int]] = defaultdict(list)
    kept = np.append(keep, True)
    for node in flow.captured.program.graph.nodes:
        if node.op != "call_function" or op_name(node.target) not in _SIZE_ARGUMENTS:
            continue
        sizes = _pad_amounts(flow, node, kept) if op_name(node.target) in _PADS else _sizes(flow, node, kept)
        for old, new in sizes:
            wanted[_owner(node), old].append(new)
    changes = []
    for (path, old), news in wanted.items():
        names = [
            name
            for name, value in _integers(model.get_submodule(path), config=guess == "with config")
            if type(value) is int and value == old and name not in _SKIPPED and not name.startswith("_")
        ]
        matched = news[:1] * len(names) if len(set(news)) == 1 else news
        if guess == "backwards":
            matched = matched[::-1]
        if len(matched) == len(names):
            changes += [AttributeChange(path, n, old, new) for n, new in zip(names, matched, strict=True) if new != old]
    return (*changes, *_norm_changes(flow, model, kept), *_recurrent_changes(flow, model, kept))


def _integers(module: nn.Module, *, config: bool) -> Iterator[tuple[str, Any]]:
    """Attributes of a module, and on request those of the `config` it holds, as `config.name`."""
    held = vars(module)
    yield from () if isinstance(module, nn.RNNBase) else held.items()
    if config and hasattr(held.get("config"), "__dict__"):
        yield from ((f"config.{name}", value) for name, value in vars(held["config"]).items())


def _recurrent_changes(flow: ChannelFlow, model: nn.Module, kept: npt.NDArray[np.bool_]) -> Iterator[AttributeChange]:
    """Widths of recurrent layers."""
    for path, module in model.named_modules():
        if isinstance(module, nn.RNNBase):
            name = f"{path}.weight_hh_l0" if path else "weight_hh_l0"
            into = f"{path}.weight_ih_l0" if path else "weight_ih_l0"
            for tensor, attribute in ((name, "hidden_size"), (into, "input_size")):
                gates = flow.tensors.get(flow.aliases.get(tensor, tensor), (None, None))[1]
                if gates is not None and not kept[gates].all():
                    yield AttributeChange(path, attribute, len(gates), int(kept[gates].sum()))


def _norm_changes(flow: ChannelFlow, model: nn.Module, kept: npt.NDArray[np.bool_]) -> list[AttributeChange]:
    """Widths and groups of norms, also of those without a weight."""
    changes: dict[tuple[str, str], AttributeChange] = {}
    for node in flow.captured.program.graph.nodes:
        name = op_name(node.target) if node.op == "call_function" else ""
        if name not in _NORM_DIMENSION:
            continue
        labels = flow.nodes.get(node.name, [])
        gates = labels[_NORM_DIMENSION[name]] if labels else None
        if gates is None:
            continue
        old, new = len(gates), int(kept[gates].sum())
        found: dict[str, tuple[Any, Any]] = {"normalized_shape": ((old,), (new,)), "num_channels": (old, new)}
        found["num_features"] = (old, new)
        if name == "group_norm":
            groups: Any = node.args[1]
            found["num_groups"] = (groups, new * groups // old if groups > 1 else groups)
        path = _owner(node)
        held = vars(model.get_submodule(path))
        for attribute, (before, after) in found.items():
            if before != after and held.get(attribute) == before:
                changes[path, attribute] = AttributeChange(path, attribute, before, after)
    return list(changes.values())


def _owner(node: Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    paths = [str(entry[0]) for entry in stack.values() if not str(entry[0]).startswith("_empty_nn_module_stack")]
    return paths[-1] if paths else ""


def _sizes(flow: ChannelFlow, node: Node, kept: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """(dense size, compact size) of every output dimension that the cut changes."""
    result: list[Any] = flow.nodes.get(node.name, [])
    parts = result if result and isinstance(result[0], (list, tuple)) else [result]
    values = node.meta["val"] if parts is result else [node.meta["val"]]
    sizes = [
        (len(gates), int(kept[gates].sum()))
        for part, value in zip(parts, values, strict=True)
        for gates, size in zip(part, value.shape, strict=False)
        if gates is not None and not varies(size)  # not one that grows with the batch: no attribute holds that
    ]
    return [(old, new) for old, new in sizes if old != new]


def _pad_amounts(flow: ChannelFlow, node: Node, kept: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """(dense amount, compact amount) of padding before and after a gated dimension."""
    amounts: Any = node.args[1]
    gates = flow.nodes.get(node.name, [])
    found = []
    for i in range(min(len(amounts) // 2, len(gates))):
        dimension = gates[len(gates) - 1 - i]
        before, after = amounts[2 * i], amounts[2 * i + 1]
        if dimension is not None and (before or after):
            stays = kept[dimension]
            found += [(before, int(stays[:before].sum())), (after, int(stays[len(stays) - after :].sum()))]
    return found
