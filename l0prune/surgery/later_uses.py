"""Integers that the forward pass does not read, but other methods do: those that fuse branches, put on a new head, or export.

A RepVGG block keeps `in_channels` and `groups` to build one convolution of its branches later; a network keeps `num_features` for
a new classifier. Nothing in the graph tells of them. What does is their value, their name, and the layers below the module.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from torch import Tensor, nn

from l0prune.surgery.attributes import CUT_BY_TYPE
from l0prune.surgery.in_place import apply_attributes_
from l0prune.surgery.plan import AttributeChange, SurgeryPlan

__all__ = ["change_for_later_uses_"]

_SIDES = {
    **dict.fromkeys(
        ("in_channels", "in_features", "in1_features", "in2_features", "input_size", "num_embeddings"), "in"
    ),
    **dict.fromkeys(("out_channels", "out_features", "embedding_dim"), "out"),
    **dict.fromkeys(("groups", "num_groups"), "groups"),
    **dict.fromkeys(("num_features", "num_channels", "normalized_shape", "hidden_size", "proj_size"), ""),
}
"""Integers of layers -> the side of the layer that they measure; none for layers with one width."""

_WIDTH = re.compile(r"chan|plane|dim|feat|width|hidden|inner|filter|embed(?!dings)|embd|group")
_WIDTH_WORDS = {"ch", "chs", "c", "c1", "c2", "in", "out", "inp", "oup", "cin", "cout", "mid", "nf", "emb"}
_NO_WIDTH = re.compile(
    r"base|max|len|seq|pos|context|ctx|block|patch|kernel|stride|pad|dilat|image|img|resol|height|window|grid|vocab|class|token"
    r"|step|depth|layer|count|iter|index|idx|embeddings|head(?!.*hidden)|group.?size|branch|repeat"
)
_INNER = re.compile(r"(?<!head_)hidden|inner|mid|inter|expan|mlp|ff")
_IN = re.compile(r"^_?in(_|p|c|f|$)|_in(_|$)|cin|c1$")
_OUT = re.compile(r"^_?ou[tp]|_out(_|$)|cout|c2$")


@dataclass(frozen=True)
class _Size:
    """A size of a layer below a module.

    Attributes:
        depth: How far below; 0 for the module's own tensors.
        side: "in", "out", "groups", or "" for layers and tensors of which it is not known.
        dense: Before the cut.
        compact: After it.
    """

    depth: int
    side: str
    dense: int
    compact: int


def change_for_later_uses_(
    compact: nn.Module, dense: nn.Module, plan: SurgeryPlan, agrees: Callable[[nn.Module, SurgeryPlan], bool]
) -> tuple[SurgeryPlan, dict[str, int]]:
    """Change the integers that stand for a width that was cut, although the forward pass does not ask for it.

    An integer is changed if its name says that it is a width and its value is that of sizes below its module that all became one
    other. Where they became several, those of the side in its name count (`in_channels`), then the nearest. The model has to
    compute the same as before: changes that it does not bear are undone, those of one name in all modules of a class together.

    Args:
        compact: Cut in place by `plan`, and right; its integers are changed.
        dense: The model it was cut from.
        plan: Its plan.
        agrees: Whether a model that was cut by a plan computes what it should.

    Returns:
        The plan with the integers that were changed, and those that were left because it cannot be told what they stand for:
        module and attribute -> value.
    """
    changes, left = _found(compact, dense, plan)
    if not changes:
        return plan, left
    fuller = _with(plan, changes)
    apply_attributes_(compact, tuple(changes))
    if agrees(compact, fuller):
        return fuller, left
    apply_attributes_(compact, tuple(change.undone for change in changes))
    by_name: dict[tuple[str, str], list[AttributeChange]] = defaultdict(list)
    for change in changes:
        by_name[type(dense.get_submodule(change.module)).__qualname__, change.attribute].append(change)
    for alike in by_name.values():
        fuller = _with(plan, alike)
        apply_attributes_(compact, tuple(alike))
        if agrees(compact, fuller):
            plan = fuller
        else:
            apply_attributes_(compact, tuple(change.undone for change in alike))
    return plan, left


def _with(plan: SurgeryPlan, changes: list[AttributeChange]) -> SurgeryPlan:
    return replace(plan, attributes=(*plan.attributes, *changes))


def _found(compact: nn.Module, dense: nn.Module, plan: SurgeryPlan) -> tuple[list[AttributeChange], dict[str, int]]:
    """Integers to change, and integers that may have to change as well."""
    known = {(change.module, change.attribute) for change in plan.attributes}
    changes, left = [], {}
    below = _sizes_below(compact, dense)
    for path, module in dense.named_modules():
        if isinstance(module, CUT_BY_TYPE) or all(size.dense == size.compact for size in below[path]):
            continue
        for name, value in vars(module).items():
            if type(value) is not int or value < 2 or (path, name) in known or _is_no_width(name):
                continue
            became = _became(name, [size for size in below[path] if size.dense == value])
            if len(became) > 1 or (became != {value} and became and not _is_width(name)):
                left[f"{path}.{name}" if path else name] = value
            elif became and became != {value}:
                changes.append(AttributeChange(path, name, value, became.pop()))
    return changes, left


def _became(name: str, sizes: list[_Size]) -> set[int]:
    """What sizes of one value became, as far as they can be those that a name speaks of; empty where there are none."""
    lowered = name.lower()
    groups = [size for size in sizes if size.side == "groups"]
    sizes = groups if groups and "group" in lowered else [size for size in sizes if size.side != "groups"]
    chosen = {size.compact for size in sizes}
    side = "in" if _IN.search(lowered) else "out" if _OUT.search(lowered) else None
    if len(chosen) > 1 and side is not None:
        chosen = {size.compact for size in sizes if size.side == side} or chosen
    if len(chosen) > 1 and not _INNER.search(lowered):
        nearest = min(size.depth for size in sizes)
        chosen = {size.compact for size in sizes if size.depth == nearest}
    return chosen


def _is_width(name: str) -> bool:
    lowered = name.lower()
    return bool(_WIDTH.search(lowered)) or not _WIDTH_WORDS.isdisjoint(lowered.split("_"))


def _is_no_width(name: str) -> bool:
    return bool(_NO_WIDTH.search(name.lower()))


def _sizes_below(compact: nn.Module, dense: nn.Module) -> dict[str, list[_Size]]:
    """For every module, the sizes of its own tensors and of all layers in it."""
    below: dict[str, list[_Size]] = defaultdict(list)
    cut = dict(compact.named_modules())
    for path, layer in dense.named_modules():
        parts = path.split(".") if path else []
        for side, old, new in _sizes(layer, cut[path]) if path in cut else ():
            for depth in range(len(parts) + 1):
                below[".".join(parts[: len(parts) - depth])].append(_Size(depth, side, old, new))
    return below


def _sizes(dense: nn.Module, compact: nn.Module) -> Iterator[tuple[str, int, int]]:
    """Side, dense and compact value of the sizes of one module."""
    if isinstance(dense, CUT_BY_TYPE):
        for name, side in _SIDES.items():
            old, new = getattr(dense, name, None), getattr(compact, name, None)
            if type(old) is int and type(new) is int:
                yield side, old, new
            elif isinstance(old, tuple) and isinstance(new, tuple):
                yield from ((side, *pair) for pair in zip(old, new, strict=True))
        return
    after = _own_tensors(compact)
    for name, tensor in _own_tensors(dense).items():
        if name in after:
            yield from (("", old, new) for old, new in zip(tensor.shape, after[name].shape, strict=False))


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
