"""Find the integers of modules (numbers of heads, widths) that a cut changes, from the sizes in the graph that changed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.fx import Node

from l0prune.flow.channel_flow import ChannelFlow
from l0prune.kept import DimensionGates, Kept
from l0prune.ops.op import argument_of, concrete, module_of, op_name, varies
from l0prune.surgery.plan import AttributeChange

__all__ = ["CUT_BY_TYPE", "GUESSES", "find_attributes"]

GUESSES = ("in order", "backwards", "with config", "heads by name")
"""Ways to match integers to sizes, in the order they are to be tried."""

_CONVOLUTIONS = {"conv1d", "conv2d", "conv3d"}
_SPLITS = {"split", "split_with_sizes", "chunk"}
_PADS = {"pad", "constant_pad_nd"}
_SIZE_ARGUMENTS = {"view", "reshape", "_unsafe_view", "unflatten", "expand", *_SPLITS, "slice", "narrow",
                   "zeros", "ones", "full", "new_zeros", "new_ones", "layer_norm", "rms_norm", "group_norm",
                   *_PADS, *_CONVOLUTIONS}  # fmt: skip
CUT_BY_TYPE = (nn.Linear, nn.Embedding, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.conv._ConvNd,
                nn.modules.batchnorm._NormBase, nn.RNNBase)  # fmt: skip
"""Layers whose integers are cut with their tensors."""

_NORM_DIMENSION = {"layer_norm": -1, "rms_norm": -1, "group_norm": 1, "instance_norm": 1}


def find_attributes(
    flow: ChannelFlow, model: nn.Module, kept: Kept, *, guess: str | None = GUESSES[0]
) -> tuple[AttributeChange, ...]:
    """Attributes whose value equals a size in the module's own calls that the cut changes.

    A module that reshapes to (batch, positions, heads, head width) with `heads` gated holds the number of heads in some
    integer attribute; every integer of that module with the old value is changed to the new one. Where one old value has
    several new ones (padding before and after), integers are matched to them in order if there are as many; or backwards, as
    layers name their output before their input. Where several integers have the same value and one new one, all change, or
    those alone that have "head" in their name. A module may also read the integers of its `config`. A list or tuple that
    equals all the sizes of a call, such as the parts of a split, is changed as a whole. Norms hold their width
    and number of groups under names of their own. The result is a guess: the caller verifies what it computes. Without a
    `guess` only the integers of norms and recurrent layers are changed, which are known by name.
    """
    known = (
        *_norm_changes(flow, model, kept),
        *_recurrent_changes(flow, model, kept),
    )
    if guess is None:
        return known
    wanted: dict[tuple[str, int], list[int]] = defaultdict(list)
    sequences: dict[tuple[str, tuple[int, ...]], set[tuple[int, ...]]] = defaultdict(set)
    for node in flow.captured.program.graph.nodes:
        if node.op != "call_function" or op_name(node.target) not in _SIZE_ARGUMENTS:
            continue
        path = module_of(node)
        for old, new in _integers_of(flow, node, kept):
            wanted[path, old].append(new)
        for before, after in _sequences_of(flow, node, kept):
            sequences[path, before].add(after)
    changes = []
    for (path, old), news in wanted.items():
        names = [
            name
            for name, value in _integers(model.get_submodule(path), config=guess == "with config")
            if type(value) is int and value == old and not name.startswith("_")
        ]
        if guess == "heads by name" and len(set(news)) == 1:
            names = [name for name in names if "head" in name] or names
        matched = news[:1] * len(names) if len(set(news)) == 1 else news
        if guess == "backwards":
            matched = matched[::-1]
        if len(matched) == len(names):
            changes += [AttributeChange(path, n, old, new) for n, new in zip(names, matched, strict=True) if new != old]
    for (path, before), afters in sequences.items():
        changes += [
            AttributeChange(path, name, before, after)
            for name, value in vars(model.get_submodule(path)).items()
            for after in afters
            if len(afters) == 1 and _are_integers(value) and tuple(value) == before
        ]
    return (*changes, *known)


def _are_integers(value: Any) -> bool:
    return type(value) in (list, tuple) and all(type(item) is int for item in value)


def _integers(module: nn.Module, *, config: bool) -> Iterator[tuple[str, Any]]:
    """Attributes of a module, and on request those of the `config` it holds, as `config.name`."""
    held = vars(module)
    yield from () if isinstance(module, CUT_BY_TYPE) else held.items()
    if config and hasattr(held.get("config"), "__dict__"):
        yield from ((f"config.{name}", value) for name, value in vars(held["config"]).items())


def _recurrent_changes(flow: ChannelFlow, model: nn.Module, kept: Kept) -> Iterator[AttributeChange]:
    """Widths of recurrent layers and cells."""
    for path, module in model.named_modules():
        for leaf, dim, attribute in _recurrent_widths(module):
            tensor = f"{path}.{leaf}" if path else leaf
            gates = flow.tensors.get(flow.aliases.get(tensor, tensor), (None, None))[dim]
            if gates is not None and not kept[gates].all():
                yield AttributeChange(path, attribute, len(gates), kept.count(gates))


def _recurrent_widths(module: nn.Module) -> list[tuple[str, int, str]]:
    """Parameter, its dimension, and the integer of the module that says how long that is."""
    if isinstance(module, nn.RNNCellBase):
        return [("weight_hh", 1, "hidden_size"), ("weight_ih", 1, "input_size")]
    if not isinstance(module, nn.RNNBase):
        return []
    into = ("weight_ih_l0", 1, "input_size")
    if module.proj_size:
        return [("weight_hr_l0", 1, "hidden_size"), ("weight_hr_l0", 0, "proj_size"), into]
    return [("weight_hh_l0", 1, "hidden_size"), into]


def _norm_changes(flow: ChannelFlow, model: nn.Module, kept: Kept) -> list[AttributeChange]:
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
        old, new = len(gates), kept.count(gates)
        found: dict[str, tuple[Any, Any]] = {"normalized_shape": ((old,), (new,)), "num_channels": (old, new)}
        found["num_features"] = (old, new)
        if name == "group_norm":
            groups: Any = node.args[1]
            found["num_groups"] = (groups, new * groups // old if groups > 1 else groups)
        path = module_of(node)
        held = vars(model.get_submodule(path))
        for attribute, (before, after) in found.items():
            if before != after and held.get(attribute) == before:
                changes[path, attribute] = AttributeChange(path, attribute, before, after)
    return list(changes.values())


def _integers_of(flow: ChannelFlow, node: Node, kept: Kept) -> list[tuple[int, int]]:
    """(dense, compact) of every number in a call that the cut changes."""
    name = op_name(node.target)
    if name in _PADS:
        return _pad_amounts(flow, node, kept)
    if name in _CONVOLUTIONS:
        return _group_counts(flow, node, kept)
    pairs = [pair for shape in _shapes(flow, node, kept) for pair in shape]
    return [(old, new) for old, new in pairs if old != new]


def _sequences_of(flow: ChannelFlow, node: Node, kept: Kept) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(dense, compact) of all sizes of a view, or of the parts of a split, where the cut changes some."""
    shapes = _shapes(flow, node, kept)
    if op_name(node.target) in _SPLITS:
        shapes = [list(sizes) for sizes in zip(*shapes, strict=True)]
    for shape in shapes:
        if any(old != new for old, new in shape):
            yield tuple(old for old, _ in shape), tuple(new for _, new in shape)


def _shapes(flow: ChannelFlow, node: Node, kept: Kept) -> list[list[tuple[int, int]]]:
    """(dense size, compact size) of every dimension of every output; of one that grows with the batch, per row of it."""
    result: list[Any] = flow.nodes.get(node.name, [])
    several = bool(result) and isinstance(result[0], (list, tuple))
    parts, values = (result, node.meta["val"]) if several else ([result], [node.meta["val"]])
    return [
        [
            _per_row(size, gates, kept)  # type: ignore[arg-type]
            if varies(size)
            else (concrete(size), concrete(size) if gates is None else kept.count(gates))
            for gates, size in zip(part, value.shape, strict=False)
        ]
        for part, value in zip(parts, values, strict=True)
    ]


def _per_row(size: torch.SymInt, gates: DimensionGates, kept: Kept) -> tuple[int, int]:
    """What a size is a multiple of, such as the heads beside a batch; (-1, -1), which no attribute holds, without any."""
    factor = int(size.node.expr.as_coeff_Mul()[0])
    if gates is None or factor == 1:
        return -1, -1
    stays = factor * kept.count(gates)
    return (factor, stays // len(gates)) if stays % len(gates) == 0 else (-1, -1)


def _group_counts(flow: ChannelFlow, node: Node, kept: Kept) -> list[tuple[int, int]]:
    """(dense, compact) number of groups of a convolution; of one whose number varies, none go."""
    source, groups = node.args[0], argument_of(node, "groups")
    labels = flow.nodes.get(source.name, []) if isinstance(source, Node) else []
    gates = labels[1] if labels else None
    if gates is None or groups == 1 or isinstance(groups, Node):
        return []
    return [(groups, kept.count_groups(gates, groups))]


def _pad_amounts(flow: ChannelFlow, node: Node, kept: Kept) -> list[tuple[int, int]]:
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
